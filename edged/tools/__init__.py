"""What an agent can do on the board and beside it."""
