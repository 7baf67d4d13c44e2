"""What a grammar may cost. Grammars come from requests, too (response_schema)."""

LIMITS: dict[str, int | bool] = {
    # A lexer state takes up to 2 kB: 40 MB at most, where llguidance's own default allows 500.
    "max_lexer_states": 20_000,
    # Symbols. A schema of 2,000 text fields stays below it and takes 0.3 s, during which no model computes.
    "max_grammar_size": 50_000,
    # Items of the parser at one place: four for each property that may come next, so a thousand of those.
    "max_items_in_row": 5_000,
    "verbose_errors": False,  # a reason is shown to callers and must not quote other parts of the grammar
}
