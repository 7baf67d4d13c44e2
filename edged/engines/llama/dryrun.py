"""What llama.cpp allocates for a model, as llama.cpp itself says, without allocating it: a process of its own.

`python -m edged.engines.llama.dryrun PATH CELLS KV_TYPE` prints a `Measured` as JSON. llama.cpp goes
through a load and a context with `no_alloc`: header, vocabulary and graphs are real, buffers are counted only.

Why a process: llama.cpp's objects belong to the engine thread, which computes; the vocabulary of 152k tokens takes
50 MB and leaves holes in the heap; and `llama_get_memory_breakdown` returns a C++ map, which is read here by the layout
that GCC's library gives it. Where that is another one the process dies and nothing else does.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from edged.host import process

# The symbol of `llama_get_memory_breakdown(llama_context const *)`: every 64-bit Linux mangles it alike.
BREAKDOWN = "_Z26llama_get_memory_breakdownPK13llama_context"
PR_SET_PDEATHSIG = 1
# Recurrent states are allocated and cleared even so, which counts as memory of ours and must not count twice.
ALLOCATED = re.compile(r"RS buffer size = +([\d.]+) MiB")
# A tree of a few buffer types; more is a layout that we do not know.
MOST_BUFFERS = 64


class Buffers(Struct, frozen=True):
    """Bytes in buffers of one type."""

    weights: int
    context: int
    compute: int


class Measured(Struct, frozen=True):
    """Bytes. buffers: by llama.cpp's names of their types; output: rows of logits; heap: everything else."""

    buffers: dict[str, Buffers]
    output: int
    heap: int


class _Map(ctypes.Structure):
    """std::map of libstdc++: a red-black tree."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("compare", "color", "root", "left", "right", "count")]


def measure(path: str, cells: int, kv_type: str) -> Measured:
    """Go through a load. For a process that ends afterwards: it frees nothing.

    Raises:
        RuntimeError: llama.cpp does not take the model, or has no such function.
    """
    import llama_cpp as lc

    from edged.engines.llama import bindings, sizes
    from edged.types import KvType

    said: list[str] = []
    receive = lc.llama_log_callback(lambda _level, text, _data: said.append((text or b"").decode("utf-8", "replace")))
    lc.llama_log_set(receive, ctypes.c_void_p(0))
    lc.llama_backend_init()
    before = process.dirty_bytes()
    params = bindings.model_params()
    params.load_mode = lc.LLAMA_LOAD_MODE_NONE  # what is mapped cannot be counted without mapping it
    params.no_alloc = True
    model = lc.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise RuntimeError("llama.cpp does not load it")
    wanted = bindings.context_params(cells, sizes.MAX_SEQUENCES, KvType(kv_type))
    wanted.n_threads = wanted.n_threads_batch = 1
    context = lc.llama_init_from_model(model, wanted)
    if not context:
        raise RuntimeError("llama.cpp makes no context")
    allocated = sum(float(size) for line in said for size in ALLOCATED.findall(line)) * 2**20
    heap = max(0, process.dirty_bytes() - before - int(allocated))
    n_vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    return Measured(dict(_breakdown(lc.llama_cpp._lib, context)), sizes.output_bytes(n_vocab), heap)


def _breakdown(library: Any, context: Any) -> Iterator[tuple[str, Buffers]]:
    from llama_cpp import _ggml

    read, name = getattr(library, BREAKDOWN), _ggml.libggml.ggml_backend_buft_name
    read.argtypes, read.restype = [ctypes.c_void_p], _Map
    name.argtypes, name.restype = [ctypes.c_void_p], ctypes.c_char_p
    found = read(context)
    if not 0 < found.count <= MOST_BUFFERS:
        raise RuntimeError("llama.cpp's answer cannot be read")
    for key, weights, held, compute in _values(found.root):
        yield name(key).decode(), Buffers(weights, held, compute)


def _values(node: int) -> Iterator[tuple[int, ...]]:
    """The entries of a tree: each node is color, parent, left, right, then the key and three sizes."""
    if node:
        words = (ctypes.c_size_t * 8).from_address(node)
        yield from _values(words[2])
        yield tuple(words[4:])
        yield from _values(words[3])


def main(path: str, cells: str, kv_type: str, parent: str) -> None:
    """The process."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the kernel was told
        return
    process.be_first_to_go()  # where memory runs out after all, this is what nobody misses
    sys.stdout.write(msgspec.json.encode(measure(path, int(cells), kv_type)).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
