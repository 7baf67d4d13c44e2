"""How requests come in and replies go out. Transports do not know each other."""
