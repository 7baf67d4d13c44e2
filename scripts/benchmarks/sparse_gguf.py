"""A model file as large as one likes that takes no room: a true header, and a hole where the weights would be.

Everything a reader may look at before it loads is right: architecture and sizes, a vocabulary, names, shapes and
offsets of all tensors. So whoever refuses such a model does so because of its size.
"""

from __future__ import annotations

import struct
from pathlib import Path

ALIGNMENT = 32  # of tensors in the file, GGUF's default
UINT32, FLOAT32, STRING, ARRAY, INT32 = 4, 6, 8, 9, 5  # types of metadata
F32 = 0  # type of tensors
MAX_LAYERS = 256  # llama.cpp takes 512
HEAD = 128  # width of an attention head, as in most models
TOKENS = 1024

Tensor = tuple[str, tuple[int, ...]]  # name, and elements by dimension, the innermost first


def write(path: Path, at_least_bytes: int) -> int:
    """Write it; its size in bytes (that of the hole as well)."""
    width, layers = shape(at_least_bytes)
    listed = tensors(width, layers)
    pairs = _pairs(width, layers)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(pairs)) + b"".join(pairs)
    offset = 0
    for name, dimensions in listed:
        header += _string(name) + struct.pack("<I", len(dimensions)) + struct.pack(f"<{len(dimensions)}Q", *dimensions)
        header += struct.pack("<IQ", F32, offset)
        offset += _aligned(_tensor_bytes(dimensions))
    whole = _aligned(len(header)) + offset
    with path.open("wb") as file:
        file.write(header)
        file.truncate(whole)
    return whole


def shape(at_least_bytes: int) -> tuple[int, int]:
    """(width, layers) of a model whose weights are at least so large, and not twice as large."""
    width = 2048
    while _weights(width, MAX_LAYERS) < at_least_bytes:
        width *= 2
    one = _weights(width, 1)
    each = _weights(width, 2) - one
    return width, 1 + max(0, -(-(at_least_bytes - one) // each))


def tensors(width: int, layers: int) -> list[Tensor]:
    """All tensors of a Llama."""
    inner = 4 * width
    listed: list[Tensor] = [
        ("token_embd.weight", (width, TOKENS)),
        ("output_norm.weight", (width,)),
        ("output.weight", (width, TOKENS)),
    ]
    for i in range(layers):
        listed += [
            (f"blk.{i}.attn_norm.weight", (width,)),
            *((f"blk.{i}.attn_{name}.weight", (width, width)) for name in ("q", "k", "v", "output")),
            (f"blk.{i}.ffn_norm.weight", (width,)),
            (f"blk.{i}.ffn_gate.weight", (width, inner)),
            (f"blk.{i}.ffn_down.weight", (inner, width)),
            (f"blk.{i}.ffn_up.weight", (width, inner)),
        ]
    return listed


def _weights(width: int, layers: int) -> int:
    return sum(_aligned(_tensor_bytes(dimensions)) for _, dimensions in tensors(width, layers))


def _tensor_bytes(dimensions: tuple[int, ...]) -> int:
    size = 4
    for count in dimensions:
        size *= count
    return size


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pairs(width: int, layers: int) -> list[bytes]:
    texts = [f"<{i}>" for i in range(TOKENS)]
    return [
        _pair("general.architecture", STRING, _string("llama")),
        _pair("general.name", STRING, _string("as large as one likes")),
        *(
            _pair(f"llama.{name}", UINT32, struct.pack("<I", value))
            for name, value in (
                ("block_count", layers),
                ("context_length", 8192),
                ("embedding_length", width),
                ("feed_forward_length", 4 * width),
                ("attention.head_count", width // HEAD),
                ("attention.head_count_kv", width // HEAD),
                ("rope.dimension_count", HEAD),
                ("vocab_size", TOKENS),
            )
        ),
        _pair("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
        _pair("tokenizer.ggml.model", STRING, _string("llama")),
        _array("tokenizer.ggml.tokens", STRING, [_string(text) for text in texts]),
        _array("tokenizer.ggml.scores", FLOAT32, [struct.pack("<f", 0.0)] * TOKENS),
        _array("tokenizer.ggml.token_type", INT32, [struct.pack("<i", 1)] * TOKENS),
        _pair("tokenizer.ggml.bos_token_id", UINT32, struct.pack("<I", 1)),
        _pair("tokenizer.ggml.eos_token_id", UINT32, struct.pack("<I", 2)),
        _pair("tokenizer.chat_template", STRING, _string(TEMPLATE)),
    ]


TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def _pair(key: str, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def _array(key: str, kind: int, values: list[bytes]) -> bytes:
    return _pair(key, ARRAY, struct.pack("<IQ", kind, len(values)) + b"".join(values))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
