"""Foundry Local's control of models, for its SDK."""
