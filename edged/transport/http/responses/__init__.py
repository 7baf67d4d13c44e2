"""OpenAI's Responses API (CONTRACT section 6)."""
