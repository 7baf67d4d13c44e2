"""What a model's file says that it takes, whatever runs it."""

from __future__ import annotations

from edged.engines.llama import predict
from edged.engines.onnx import sizes as onnx_sizes
from edged.errors import ModelUnavailable
from edged.types import EngineKind, ModelSpec


def calculated(spec: ModelSpec) -> int | None:
    """Bytes, from the file's own numbers; None where it is not here, or does not tell."""
    try:
        return (onnx_sizes.predicted_need if spec.engine is EngineKind.ONNX else predict.predict)(spec).total
    except (ModelUnavailable, OSError):
        return None
