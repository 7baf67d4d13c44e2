"""What edged gives up while the board is short of memory, too hot or badly powered."""
