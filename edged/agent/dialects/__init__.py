"""How models are spoken to: from messages and tools to a prompt, and from text to calls."""
