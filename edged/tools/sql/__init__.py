"""SQL tools: one statement each, on a database of the user's."""
