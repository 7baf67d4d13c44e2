"""Embedding models in ONNX files. One thread owns every object of onnxruntime.

Reading order: `model` (one session: tokens, batches, vectors), `worker` (the thread), `engine` (its asyncio face).
Importing this package loads no native library: that happens with the first model.

A language model in ONNX would be a second class beside `model.EmbeddingModel` that the worker steps like it, a token at
a time, and `generate` of the engine would hand it jobs; dispatch, residency and sizes stay as they are.
"""

from edged.engines.onnx.engine import OnnxEngine

__all__ = ["OnnxEngine"]
