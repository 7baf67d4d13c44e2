"""ONNX Runtime as a kind of engine: embedding models in ONNX files."""

from __future__ import annotations

from edged.engines.kind import EngineKind, Surroundings
from edged.engines.onnx import sizes as onnx_sizes
from edged.engines.onnx.engine import OnnxEngine
from edged.interfaces import Estimate

# About what a model takes: onnxruntime copies its weights, and computes texts of 512 tokens at most.
WEIGHTS_TIMES, EXTRA_BYTES = 2, 32 * 2**20


class OnnxKind(EngineKind):
    """See EngineKind."""

    name = "onnx"
    suffix = ".onnx"
    companions = ("tokenizer.json",)
    generates = False
    embeds = True
    sizes = Estimate(
        identity=onnx_sizes.identity,
        least=onnx_sizes.least_bytes,
        ask=onnx_sizes.predicted_need,
        ask_bytes=lambda spec: 0,
        calculate=onnx_sizes.predicted_need,
        libraries=onnx_sizes.library_bytes,
    )

    def make(self, around: Surroundings) -> OnnxEngine:
        """See EngineKind."""
        return OnnxEngine(threads=around.threads, on_fatal=around.on_fatal)

    def about_bytes(self, file_bytes: int, parameters: int, context: int, kv_bytes_per_token: int = 0) -> int:
        """See EngineKind."""
        return file_bytes * WEIGHTS_TIMES + EXTRA_BYTES
