"""What a model's file says that it takes, whatever runs it."""

from __future__ import annotations

from edged.engines import registry
from edged.errors import ModelUnavailable
from edged.types import ModelSpec


def calculated(spec: ModelSpec) -> int | None:
    """Bytes, from the file's own numbers; None where it is not here, does not tell, or takes none worth counting."""
    try:
        sizes = registry.kind(spec.engine).sizes
        return sizes.calculate(spec).total if sizes else None
    except (ModelUnavailable, OSError):
        return None
