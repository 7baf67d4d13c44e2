"""What a GGUF model will take in memory, by parts, before it is loaded: llama.cpp is asked, else it is calculated."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from functools import cache, lru_cache
from itertools import combinations
from pathlib import Path

import msgspec

from edged.engines.llama import gguf, sizes
from edged.engines.llama.drop_pages import EMBEDDINGS
from edged.engines.llama.dryrun import Measured
from edged.engines.llama.merged import as_loaded
from edged.engines.llama.sizes import Shape
from edged.errors import ModelUnavailable
from edged.host import systemd
from edged.types import JSON, MemoryNeed, ModelSpec

log = logging.getLogger("edged.engines.llama")

DRY_RUN_S = 30.0  # a second or less here; a large vocabulary from a slow card takes several
# What the dry run's process takes itself beside the vocabulary: the interpreter, the libraries, nodes of graphs.
DRY_RUN_BYTES = 64 * 2**20
# llama.cpp's tables of a vocabulary, in bytes a token; a token and its merges are kept in several.
TABLE_BYTES = 400
# llguidance's, with the tables that go with it: measured at 49k and 152k tokens.
GRAMMAR_BYTES = 200
# What requests leave behind: pieces of text that are remembered, masks, books of sequences.
REQUEST_BYTES = 4 * 2**20
# What comes in with the first load and stays: llama.cpp, NumPy, llguidance. 24 to 29 MiB, measured.
LIBRARY_BYTES = 26 * 2**20
LIBRARIES = "llama_cpp"
# Their code goes with the last model (`heap.give_back_code`) and comes again with the next. Measured, of x86-64.
PACKAGES = frozenset({"llama_cpp", "llguidance", "numpy", "numpy.libs"})
CODE_BYTES = 8 * 2**20
DISTRIBUTIONS = ("llama-cpp-python", "llguidance", "numpy")
OUTPUT = "output.weight"
MAPPED = "CPU"  # the buffer type whose tensors stay where the file is mapped
# Where a page of a file is used, a recent kernel brings in all of the window around it that lies in the page cache in
# one piece: a huge page at most. Measured with the 1.5B: 130 MiB of copied matrices are there after all, 136 counted.
WINDOW_BYTES = 2 * 2**20
MOST_LAYERS = 1024  # several times as many as the largest models have
LARGEST_VOCABULARY = 160_000  # where the file does not say: of the small models' vocabularies the largest (Qwen's)


def identity(spec: ModelSpec) -> str:
    """All that a prediction depends on, as a text: files, context, types, what computes, and on which CPU.

    Raises:
        ModelUnavailable: a file is missing.
    """
    spec = as_loaded(spec)
    paths = [*gguf.parts(Path(spec.path)), *([Path(spec.adapter)] if spec.adapter else [])]
    files = [(stat.st_size, stat.st_mtime_ns) for stat in map(_stat, paths)]
    return json.dumps([spec.path, spec.adapter, files, sizes.context_cells(spec.context), spec.kv_type, *_runtime()])


def least_bytes(spec: ModelSpec) -> int:
    """What it takes in any case; ModelUnavailable as `identity`."""
    spec = as_loaded(spec)
    return sum(_stat(part).st_size for part in gguf.parts(Path(spec.path))) + _adapter_bytes(spec)


def _adapter_bytes(spec: ModelSpec) -> int:
    """llama.cpp copies an adapter's matrices as they are in the file."""
    return _stat(Path(spec.adapter)).st_size if spec.adapter else 0


@cache
def _runtime() -> tuple[str, ...]:
    return (platform.machine(), *map(_version, DISTRIBUTIONS))


def _version(distribution: str) -> str:
    import importlib.metadata  # a quarter of a MiB, which no idle daemon needs

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # the load will say so
        return ""


def predict(spec: ModelSpec) -> MemoryNeed:
    """From the numbers in the model's files, erring on the high side. Reads their headers: call it in a thread.

    Raises:
        ModelUnavailable: there is no such file, or it is no model.
    """
    spec = as_loaded(spec)
    path = Path(spec.path)
    pairs, tensors = _header(path)
    try:
        shape = shape_of(pairs, tensors, path.name)
    except (TypeError, ValueError) as error:  # numbers that are none
        raise ModelUnavailable(f"{path.name} is damaged: {error}") from None
    cells = sizes.context_cells(spec.context)
    return MemoryNeed(
        weights=sum(t.size for t in tensors)
        + _used_twice(tensors)
        + shape.n_vocab * (TABLE_BYTES + GRAMMAR_BYTES)
        + _adapter_bytes(spec)
        + REQUEST_BYTES,
        kv=sizes.kv_bytes(shape, cells, spec.kv_type),
        compute=sizes.compute_bytes(shape, cells),
        output=sizes.output_bytes(shape.n_vocab),
        prefixes=sizes.SWAPPED_BYTES,
    )


def dry_run(spec: ModelSpec) -> MemoryNeed | None:
    """As llama.cpp itself counts, in a process that is killed with ours. Blocks for as long as a second: call it in a
    thread. None where it does not say; the log has why.

    Raises:
        ModelUnavailable: as `predict`.
    """
    spec = as_loaded(spec)
    cells = sizes.context_cells(spec.context)
    environment = systemd.child_environment()
    command = [
        sys.executable,
        "-m",
        "edged.engines.llama.dryrun",
        spec.path,
        str(cells),
        spec.kv_type,
        str(os.getpid()),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=DRY_RUN_S, check=True, stdin=subprocess.DEVNULL, env=environment
        )
        measured = msgspec.json.decode(done.stdout, type=Measured)
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        log.info("%s: llama.cpp does not tell its size (%s); it is calculated", spec.name, words or error)
        return None
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        log.info("%s: llama.cpp does not tell its size (%s); it is calculated", spec.name, error)
        return None
    need = counted(measured, _header(Path(spec.path))[1])
    return msgspec.structs.replace(need, weights=need.weights + _adapter_bytes(spec))


def dry_run_bytes(spec: ModelSpec) -> int:
    """What the dry run's process takes, at most; ModelUnavailable as `predict`."""
    spec = as_loaded(spec)
    n_vocab = _n_vocab(_header(Path(spec.path))[1]) or LARGEST_VOCABULARY
    return DRY_RUN_BYTES + n_vocab * TABLE_BYTES


def counted(measured: Measured, tensors: list[gguf.Tensor]) -> MemoryNeed:
    """Parts from a dry run. What is copied into another buffer than the CPU's plain one is mapped no more (`mapped`),
    so each tensor is there once for every buffer it is in; but for neighbours of what is used in place."""
    copied = sum(each.weights for name, each in measured.buffers.items() if name != MAPPED)
    n_vocab = _n_vocab(tensors) or LARGEST_VOCABULARY
    return MemoryNeed(
        weights=sum(each.weights for each in measured.buffers.values())
        + measured.heap
        + n_vocab * GRAMMAR_BYTES
        + REQUEST_BYTES,
        kv=sum(each.context for each in measured.buffers.values()),
        compute=sum(each.compute for each in measured.buffers.values()),
        output=measured.output,
        prefixes=sizes.SWAPPED_BYTES,
        beside=neighbours(tensors, copied),
    )


def predicted_bytes(spec: ModelSpec) -> int:
    """All that a model may take beside the libraries, nothing known of earlier loads. Blocks as `dry_run`, raises as
    `predict`."""
    return (dry_run(spec) or predict(spec)).total


def library_bytes() -> int:
    """What the next load brings in beside the model: their code only, where one was loaded before."""
    return CODE_BYTES if LIBRARIES in sys.modules else LIBRARY_BYTES


def shape_of(pairs: dict[str, JSON], tensors: list[gguf.Tensor], name: str) -> Shape:
    """The shape from GGUF metadata. ModelUnavailable where that does not tell it."""
    arch = pairs.get("general.architecture")

    def value(key: str) -> JSON:
        return pairs.get(f"{arch}.{key}")

    def number(key: str, default: int | None = None) -> int:
        found = value(key)
        told = found if isinstance(found, list) and found else [default if found is None else found]
        if not all(_is_count(each) for each in told):
            raise ModelUnavailable(f"{name} does not tell its {key}")
        return int(max(told))

    n_layer, width = number("block_count"), number("embedding_length")
    if not 0 < n_layer <= MOST_LAYERS or width < 1:
        raise ModelUnavailable(f"{name} is damaged: {n_layer} layers of {width} elements")
    heads = number("attention.head_count", 1) or 1
    inner, state = number("ssm.inner_size", 0), number("ssm.state_size", 0)
    convolved = max(0, number("ssm.conv_kernel", 0) - 1) * (inner + 2 * number("ssm.group_count", 0) * state)
    return Shape(
        n_embd=width,
        n_ff=number("feed_forward_length", 4 * width),
        heads_kv=_heads_kv(value("attention.head_count_kv"), n_layer, 0 if inner else heads, name),
        head_k=number("attention.key_length", width // heads),
        head_v=number("attention.value_length", width // heads),
        n_vocab=_n_vocab(tensors) or number("vocab_size", LARGEST_VOCABULARY),
        window=number("attention.sliding_window", 0),
        windowed=_windowed(value("attention.sliding_window_pattern"), n_layer),
        state=inner * state + convolved,
    )


def _heads_kv(told: JSON, n_layer: int, default: int, name: str) -> tuple[int, ...]:
    heads = told if isinstance(told, list) and len(told) >= n_layer else [told if isinstance(told, int) else default]
    if not all(_is_count(each) for each in heads):
        raise ModelUnavailable(f"{name} does not tell its attention.head_count_kv")
    return tuple(heads[:n_layer]) if len(heads) >= n_layer else (heads[0],) * n_layer


def _is_count(value: JSON) -> bool:
    return isinstance(value, int) and value >= 0


def _windowed(told: JSON, n_layer: int) -> tuple[bool, ...]:
    """Which layers have a sliding window: as listed, or all but every nth. Where the file does not say, llama.cpp may
    know by the architecture; here all layers then count as whole."""
    if isinstance(told, list):
        return tuple(bool(each) for each in told)
    if isinstance(told, int) and told > 0:
        return tuple((i + 1) % told != 0 for i in range(n_layer))
    return ()


def neighbours(tensors: list[gguf.Tensor], copied: int) -> int:
    """Bytes of copied matrices that stay mapped, because they lie in one window with what is used in place. copied: how
    many bytes were copied, of which matrices is found out: all of some types."""
    matrices = [t for t in tensors if len(t.dims) == 2 and t.name != EMBEDDINGS]
    by_kind: dict[int, int] = {}
    for tensor in matrices:
        by_kind[tensor.kind] = by_kind.get(tensor.kind, 0) + tensor.size
    sets = (kinds for n in range(len(by_kind) + 1) for kinds in combinations(by_kind, n))
    kinds = next((k for k in sets if abs(sum(by_kind[kind] for kind in k) - copied) <= copied // 100), ())
    gone = [t for t in matrices if t.kind in kinds]
    names = {t.name for t in gone}
    used = {
        window
        for t in tensors
        if t.name not in names and t.size
        for window in range(t.offset // WINDOW_BYTES, (t.offset + t.size - 1) // WINDOW_BYTES + 1)
    }
    total = 0
    for t in gone:
        for window in range(t.offset // WINDOW_BYTES, (t.offset + t.size - 1) // WINDOW_BYTES + 1):
            if window in used:
                first, end = window * WINDOW_BYTES, (window + 1) * WINDOW_BYTES
                total += min(t.offset + t.size, end) - max(t.offset, first)
    return total


def _used_twice(tensors: list[gguf.Tensor]) -> int:
    """Bytes of embeddings that are the output's matrix, too, for which a copy may be made."""
    sizes_by_name = {tensor.name: tensor.size for tensor in tensors}
    return 0 if OUTPUT in sizes_by_name else sizes_by_name.get(EMBEDDINGS, 0)


def _n_vocab(tensors: list[gguf.Tensor]) -> int:
    return next((t.dims[1] for t in tensors if t.name == EMBEDDINGS and len(t.dims) == 2), 0)


def _header(path: Path) -> tuple[dict[str, JSON], list[gguf.Tensor]]:
    """Of all files of a model; what the first says counts. Not to be changed: it is remembered."""
    parts = gguf.parts(path)
    return _read(parts, tuple((stat.st_size, stat.st_mtime_ns) for stat in map(_stat, parts)))


@lru_cache(maxsize=4)  # a prediction reads it several times, and vocabularies take 30 ms and more to pass over
def _read(parts: tuple[Path, ...], _state: tuple[tuple[int, int], ...]) -> tuple[dict[str, JSON], list[gguf.Tensor]]:
    pairs, tensors = gguf.header(parts[0])
    for part in parts[1:]:
        tensors = tensors + gguf.header(part)[1]
    return pairs, tensors


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ModelUnavailable(f"{path.name} cannot be read: {error.strerror}") from None
