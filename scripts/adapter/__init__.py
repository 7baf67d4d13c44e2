"""Teaching a small model the compact dialect: a LoRA adapter from request sets. See README.md."""
