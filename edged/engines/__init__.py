"""Everything that runs models, one folder an engine kind."""
