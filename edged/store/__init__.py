"""edged's own database: what was asked, what was done, what was answered."""
