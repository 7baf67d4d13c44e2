"""Which models are in memory: predicted before, measured after, decided in one place."""
