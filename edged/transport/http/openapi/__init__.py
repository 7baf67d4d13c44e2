"""What a caller may do here, as an OpenAPI document."""
