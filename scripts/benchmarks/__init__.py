"""edged's benchmarks: one module each, with `run() -> list[Row]` and a docstring whose first line says what it shows."""
