"""`edged models`: the weights on this board, what fits it, and updates of the running daemon's models."""
