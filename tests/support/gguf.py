"""Copies of real models with another chat template."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
STRING, ARRAY = 8, 9
ALIGNMENT = 32
TEMPLATE = b"tokenizer.chat_template"


def with_template(source: Path, target: Path, template: str, *, computes: bool = False) -> None:
    """Write a copy of a model whose header has this template.

    Args:
        computes: with its tensors; else they are a hole, and nobody can compute with it.
    """
    with source.open("rb") as file:
        magic, version, tensors, count = struct.unpack("<4sIQQ", file.read(24))
        pairs = [_pair(file, template) for _ in range(count)]
        begins = file.tell()
        for _ in range(tensors):
            _text(file)
            (dims,) = struct.unpack("<I", file.read(4))
            file.seek(8 * dims + 12, os.SEEK_CUR)
        ends = file.tell()
        file.seek(begins)
        header = struct.pack("<4sIQQ", magic, version, tensors, count) + b"".join(pairs) + file.read(ends - begins)
        file.seek(-(-ends // ALIGNMENT) * ALIGNMENT)
        begins, data = -(-len(header) // ALIGNMENT) * ALIGNMENT, source.stat().st_size - file.tell()
        with target.open("wb") as copy:
            copy.write(header)
            copy.truncate(begins + data)
            copy.seek(begins)
            if computes:
                shutil.copyfileobj(file, copy)


def _pair(file: BinaryIO, template: str) -> bytes:
    begins = file.tell()
    key = _text(file)
    (kind,) = struct.unpack("<I", file.read(4))
    value = file.tell()
    _skip(file, kind)
    ends = file.tell()
    file.seek(begins)
    if key != TEMPLATE:
        return file.read(ends - begins)
    told = file.read(value - begins)
    file.seek(ends)
    return told + struct.pack("<Q", len(template.encode())) + template.encode()


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == STRING:
        _text(file)
    elif kind == ARRAY:
        of, count = struct.unpack("<IQ", file.read(12))
        for _ in range(count if of == STRING else 0):
            _text(file)
        file.seek(SIZES.get(of, 0) * count, os.SEEK_CUR)
    else:
        file.seek(SIZES[kind], os.SEEK_CUR)


def _text(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(length)


def write_adapter(
    path: Path, matrices: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]], alpha: float
) -> None:
    """A low-rank adapter for a model of the llama architecture. matrices: by the name of the weights, A [rank, in] and
    B [out, rank]."""
    pairs = [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")]
    head = b"".join(_string(key) + struct.pack("<I", STRING) + _string(value) for key, value in pairs)
    head += _string("adapter.lora.alpha") + struct.pack("<If", 6, alpha)
    tensors = {
        f"{name}.lora_{part}": each for name, both in matrices.items() for part, each in zip("ab", both, strict=True)
    }
    offset, infos = 0, b""
    for name, values in tensors.items():
        infos += _string(name) + struct.pack("<IQQIQ", 2, *reversed(values.shape), 0, offset)
        offset += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
    begin = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs) + 1) + head + infos
    with path.open("wb") as file:
        file.write(begin)
        for values in tensors.values():
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.write(values.astype(np.float32).tobytes())
        file.write(bytes(-file.tell() % ALIGNMENT))


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
