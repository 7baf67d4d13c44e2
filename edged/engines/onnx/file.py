"""What an ONNX file says of its model, without onnxruntime: a few fields of its protocol buffers. Read-only.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from edged.engines.mistaken import what_it_is
from edged.errors import ModelUnavailable

# Numbers of the fields that are read, by message
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_OP = 4
TENSOR_DIMS, TENSOR_NAME, TENSOR_LOCATION = 1, 8, 14
EXTERNAL = 1  # TensorProto.DataLocation
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
ONLY_ON_CPU = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention"})


class Facts(Struct, frozen=True, kw_only=True):
    """Of a model, as far as its file says.

    bytes: of the file, and of those its weights are in.
    positions: most tokens of a text; width: of a token's vector; widest: row of activations, in numbers; None: it does
        not say.
    quantized: activations are quantized while it runs, with one scale for a whole batch.
    """

    bytes: int
    positions: int | None = None
    width: int | None = None
    widest: int | None = None
    quantized: bool = False


def read(path: Path) -> Facts:
    """The facts of a file; milliseconds, whatever its size.

    Raises:
        ModelUnavailable: there is no such file, or it is no ONNX model.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            ops, tensors, external = _graph(data)
            size = len(data)
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, IndexError) as error:  # an empty file cannot be mapped
        raise _no_model(path, str(error)) from None
    if not ops:
        raise _no_model(path, "it has no graph")
    beside = [path.with_name(path.name + "_data"), path.with_name(path.name + ".data")] if external else []
    matrices = {name: dims for name, dims in tensors.items() if len(dims) == 2}
    table = next((dims for name, dims in matrices.items() if "position_embeddings" in name), None)
    width = table[1] if table else None
    return Facts(
        bytes=size + sum(other.stat().st_size for other in beside if other.is_file()),
        positions=table[0] if table else None,
        width=width,
        widest=max((dims[1] for dims in matrices.values() if dims[0] == width), default=width),
        quantized=bool(ops & ONLY_ON_CPU),
    )


def _no_model(path: Path, reason: str) -> ModelUnavailable:
    known = what_it_is(path)
    return ModelUnavailable(f"{path} is no ONNX model{f' but {known}' if known else f': {reason}'}")


def _graph(data: mmap.mmap) -> tuple[set[str], dict[str, list[int]], bool]:
    """(operators, shapes of the weights by name, whether some are in another file)."""
    ops: set[str] = set()
    tensors: dict[str, list[int]] = {}
    external = False
    for number, start, end in _fields(data, 0, len(data)):
        if number != MODEL_GRAPH:
            continue
        for kind, begin, stop in _fields(data, start, end):
            if kind == GRAPH_NODE:
                ops |= {data[a:b].decode() for n, a, b in _fields(data, begin, stop) if n == NODE_OP}
            elif kind == GRAPH_INITIALIZER:
                name, dims, elsewhere = _tensor(data, begin, stop)
                tensors[name] = dims
                external = external or elsewhere
    return ops, tensors, external


def _tensor(data: mmap.mmap, start: int, end: int) -> tuple[str, list[int], bool]:
    """(name, shape, whether its numbers are in another file). A shape is written packed, or one field a dimension."""
    name, dims, external = "", [], False
    for number, begin, stop in _fields(data, start, end):
        if number == TENSOR_NAME:
            name = data[begin:stop].decode()
        elif number == TENSOR_DIMS:
            while begin < stop:
                value, begin = _varint(data, begin)
                dims.append(value)
        elif number == TENSOR_LOCATION:
            external = _varint(data, begin)[0] == EXTERNAL
    return name, dims, external


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, where its value begins, where it ends) of the fields of a message. ValueError where it is none."""
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == VARINT:
            stop = _varint(data, at)[1]
        elif wire == BYTES:
            size, at = _varint(data, at)
            stop = at + size
        elif wire in (FIXED64, FIXED32):
            stop = at + (8 if wire == FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire}")
        if stop > end:
            raise ValueError("it is cut off; pull the model again")
        yield tag >> 3, at, stop
        at = stop


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """(value, where the next one begins). IndexError behind the end."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")
