"""Updates of models with a way back: pulled beside the old file, tested, switched to, written down."""
