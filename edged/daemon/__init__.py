"""The daemon: parts put together, started, watched and stopped."""
