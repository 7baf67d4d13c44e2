"""edged's benchmarks: one module each, with `run() -> list[Row]`; the first line of its docstring is its title."""
