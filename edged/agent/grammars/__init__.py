"""What a model may write, as llguidance grammars, and what such a grammar may cost."""
