"""HTTP (CONTRACT section 6): the OpenAI API, requests with their replies, health and metrics."""
