"""The agent: ask the model, parse what it decided, act."""
