"""Completions and embeddings of plain models, for clients that bring their own tools. Nothing is stored."""
