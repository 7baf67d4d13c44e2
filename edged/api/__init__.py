"""What a caller may do, by subject, whatever transport brought the call."""
