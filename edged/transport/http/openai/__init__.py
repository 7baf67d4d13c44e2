"""The OpenAI API's surface."""
