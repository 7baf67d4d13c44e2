"""Weights with a low-rank adapter merged into them: one file, in the format that the CPU multiplies fastest.

    python -m edged.engines.llama.merge WEIGHTS.gguf ADAPTER.gguf OUT.gguf GGML_TYPE|same

Runs in a process of its own, at the lowest priority: it needs three times its largest matrix, and what it leaves in
memory is given back with the process. ggml's own functions read and write the blocks, so every type that llama.cpp
knows can be merged.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import llama_cpp as lc
import numpy as np
from numpy.typing import NDArray

from edged.engines.llama import gguf
from edged.engines.llama.gguf import Tensor
from edged.errors import EdgedError, ModelUnavailable

F32, F16 = 0, 1
PR_SET_PDEATHSIG = 1  # prctl.h: it ends with the daemon
NICEST = 19  # setpriority(2); the disk is asked with the priority that belongs to it
SAME = "same"  # the matrices keep their types
COPIED = 1 << 20  # bytes at a time of a matrix that stays as it is


class _Traits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class Blocks:
    """ggml's functions that turn blocks into float32 and back."""

    def __init__(self) -> None:
        self._ggml = ctypes.CDLL(str(Path(lc.__file__).parent / "lib" / "libggml-base.so"))
        self._ggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
        self._ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._ggml.ggml_quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, number, number, number, pointer)

    def fits(self, kind: int, width: int) -> bool:
        """Whether a row of that width is whole blocks of a type."""
        return width % int(self._ggml.ggml_get_type_traits(kind).contents.blck_size) == 0

    def floats(self, data: bytes, kind: int, rows: int, width: int) -> NDArray[np.float32]:
        """[rows, width] of a tensor's bytes."""
        out = np.empty((rows, width), np.float32)
        if kind == F32:
            out[:] = np.frombuffer(data, np.float32, rows * width).reshape(rows, width)
        else:
            self._ggml.ggml_get_type_traits(kind).contents.to_float(data, out.ctypes.data, rows * width)
        return out

    def quantized(self, values: NDArray[np.float32], kind: int) -> bytes:
        """The bytes of [rows, width] in a type."""
        if kind == F32:
            return values.tobytes()
        if kind == F16:
            return values.astype(np.float16).tobytes()
        traits, (rows, width) = self._ggml.ggml_get_type_traits(kind).contents, values.shape
        out = ctypes.create_string_buffer(rows * width // int(traits.blck_size) * int(traits.type_size))
        size = self._ggml.ggml_quantize_chunk(kind, values.ctypes.data, out, 0, rows, width, None)
        return out.raw[:size]


def main(arguments: list[str]) -> None:
    """See the module. Ends with the reason on stderr and status 1 where it cannot."""
    weights, adapter, out, kind = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(NICEST)
    try:
        merge(Path(weights), Path(adapter), Path(out), kind=None if kind == SAME else int(kind))
    except (EdgedError, OSError) as error:
        sys.exit(error.message if isinstance(error, EdgedError) else str(error))


def merge(weights: Path, adapter: Path, out: Path, *, kind: int | None) -> None:
    """Write the weights with the adapter merged into them; `out` appears when it is whole.

    Args:
        kind: ggml_type of the matrices that the adapter changes, where their rows are whole blocks of it; the others
            and, with None, all of them
            keep theirs.

    Raises:
        ModelUnavailable: one of the files cannot be read, or they do not belong together.
        OSError: the disk is full, or the folder cannot be written.
    """
    pairs, tensors = gguf.header(weights)
    deltas, blocks = _Deltas(adapter), Blocks()
    if lost := deltas.matrices - {tensor.name for tensor in tensors}:
        raise ModelUnavailable(f"{adapter.name} does not belong to {weights.name}, which has no {min(lost)}")
    told = pairs.get("general.alignment")
    alignment = told if isinstance(told, int) and told > 0 else gguf.ALIGNMENT
    kinds = {
        tensor.name: kind if kind is not None and blocks.fits(kind, tensor.dims[0]) else tensor.kind
        for tensor in tensors
        if tensor.name in deltas.matrices
    }
    out.parent.mkdir(exist_ok=True)
    part = out.with_name(f"{out.name}.part{os.getpid()}")
    with _whole_or_gone(part), weights.open("rb") as source, part.open("wb") as sink:
        begins = source.seek(0, os.SEEK_END) - (tensors[-1].offset + tensors[-1].size)
        sizes = [_size(tensor, kinds.get(tensor.name, tensor.kind)) for tensor in tensors]
        sink.write(_header(weights, tensors, kinds, sizes, alignment))
        _pad(sink, alignment)
        for tensor, size in zip(tensors, sizes, strict=True):
            source.seek(begins + tensor.offset)
            if tensor.name in kinds:
                width, rows = tensor.dims[0], tensor.dims[1]
                values = blocks.floats(source.read(_size(tensor, tensor.kind)), tensor.kind, rows, width)
                values += deltas.of(tensor.name)
                sink.write(blocks.quantized(values, kinds[tensor.name]))
            else:
                for read in _pieces(source, size):
                    sink.write(read)
            _pad(sink, alignment)
        sink.flush()
        os.fsync(sink.fileno())
    part.replace(out)


@contextlib.contextmanager
def _whole_or_gone(part: Path) -> Iterator[None]:
    """On a full disk nothing is left of the attempt, which may be what fills it."""
    try:
        yield
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class _Deltas:
    """What an adapter adds to each matrix: (alpha / rank) B A."""

    def __init__(self, path: Path) -> None:
        pairs, tensors = gguf.header(path)
        alpha = pairs.get("adapter.lora.alpha")
        if not isinstance(alpha, float):
            raise ModelUnavailable(f"{path.name} is no low-rank adapter: it has no adapter.lora.alpha")
        self._path, self._alpha = path, alpha
        self._begins = path.stat().st_size - (tensors[-1].offset + tensors[-1].size)
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self.matrices = {name.removesuffix(".lora_a") for name in self._tensors if name.endswith(".lora_a")}

    def of(self, name: str) -> NDArray[np.float32]:
        """[out, in]."""
        a, b = (self._read(self._tensors[f"{name}.{part}"]) for part in ("lora_a", "lora_b"))
        scaled: NDArray[np.float32] = b * np.float32(self._alpha / len(a))
        return scaled @ a

    def _read(self, tensor: Tensor) -> NDArray[np.float32]:
        width, rows = tensor.dims
        kind = {F32: np.float32, F16: np.float16}.get(tensor.kind)
        if kind is None:
            raise ModelUnavailable(f"{self._path.name} is quantized; an adapter to merge is float16 or float32")
        with self._path.open("rb") as file:
            read = np.fromfile(file, kind, rows * width, offset=self._begins + tensor.offset)
        return read.reshape(rows, width).astype(np.float32)


def _header(weights: Path, tensors: list[Tensor], kinds: dict[str, int], sizes: list[int], alignment: int) -> bytes:
    version, count, pairs = gguf.raw_pairs(weights)
    made = [gguf.MAGIC, struct.pack("<IQQ", version, len(tensors), count), pairs]
    offset = 0
    for tensor, size in zip(tensors, sizes, strict=True):
        made += [
            _string(tensor.name),
            struct.pack("<I", len(tensor.dims)),
            struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims),
        ]
        made.append(struct.pack("<IQ", kinds.get(tensor.name, tensor.kind), offset))
        offset += -(-size // alignment) * alignment
    return b"".join(made)


def _size(tensor: Tensor, kind: int) -> int:
    size = gguf.tensor_bytes(tensor.dims, kind)
    if size is None:
        raise ModelUnavailable(f"{tensor.name} has a type that is not known here: {kind}")
    return size


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _pieces(source: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (read := source.read(min(size, COPIED))):
        yield read
        size -= len(read)


def _pad(sink: BinaryIO, alignment: int) -> None:
    sink.write(bytes(-sink.tell() % alignment))


if __name__ == "__main__":
    main(sys.argv[1:])
