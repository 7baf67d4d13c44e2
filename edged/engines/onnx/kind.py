"""ONNX Runtime as a kind of engine: embedding models in ONNX files."""

from __future__ import annotations

from pathlib import Path

from edged.engines.kind import EngineKind, FileFacts, Surroundings
from edged.engines.onnx import file
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

    def check_file(self, path: Path) -> None:
        """See EngineKind."""
        file.read(path)

    def facts(self, path: Path) -> FileFacts:
        """See EngineKind."""
        found = file.read(path)
        return FileFacts(
            format="onnx",
            architecture="bert",  # the only family whose graphs are taken (see `model.INPUTS`)
            quantization="INT8" if found.quantized else "",
            context=found.positions or 0,
            embeds=True,
        )

    def about_bytes(self, file_bytes: int, parameters: int, context: int, kv_bytes_per_token: int = 0) -> int:
        """See EngineKind."""
        return file_bytes * WEIGHTS_TIMES + EXTRA_BYTES
