"""What becomes of a damaged store."""
