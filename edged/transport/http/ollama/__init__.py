"""The Ollama API's surface."""
