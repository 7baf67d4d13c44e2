"""What all HTTP surfaces share: listeners, keys, origins, limits, streaming, errors."""
