"""edged's own HTTP surface (CONTRACT section 6)."""
