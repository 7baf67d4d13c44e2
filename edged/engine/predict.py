"""What a GGUF model will take in memory, before it is loaded: from the numbers in its file."""

from __future__ import annotations

from pathlib import Path

from edged import gguf
from edged.engine.sizes import Shape, context_bytes
from edged.errors import ModelUnavailable
from edged.types import JSON, ModelSpec


def predicted_bytes(spec: ModelSpec) -> int:
    """Weights (mapped), keys and values, compute buffers. Reads the file's header: call it in a thread.

    Raises:
        ModelUnavailable: there is no such file, or it is no model.
    """
    path = Path(spec.path)
    return path.stat().st_size + context_bytes(shape_of(gguf.metadata(path), path.name), spec.context)


def shape_of(pairs: dict[str, JSON], name: str) -> Shape:
    """The shape from GGUF metadata; heads per layer that differ count as the largest."""
    arch = pairs.get("general.architecture")

    def number(key: str, default: int | None = None) -> int:
        value = pairs.get(f"{arch}.{key}", default)
        value = max(value) if isinstance(value, list) and value else value
        if not isinstance(value, int):
            raise ModelUnavailable(f"{name} does not tell its {key}")
        return value

    heads, width = number("attention.head_count"), number("embedding_length")
    return Shape(
        n_layer=number("block_count"),
        n_embd=width,
        n_ff=number("feed_forward_length", 4 * width),
        n_head_kv=number("attention.head_count_kv", heads),
        head_k=number("attention.key_length", width // heads),
        head_v=number("attention.value_length", width // heads),
        n_vocab=number("vocab_size", LARGEST_VOCABULARY),
    )


LARGEST_VOCABULARY = 160_000  # where the file does not say: of the small models' vocabularies the largest (Qwen's)
