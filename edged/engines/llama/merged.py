"""Where a model's weights lie with its adapter merged into them, and how that file is made. Loads nothing of llama.cpp.

A merged file lies in `merged` beside the weights and is named after both files as they are, so it is never taken for
others. While there is none, the adapter is applied when the model is loaded.

    WEIGHTS+ADAPTER-0123456789abcdef.gguf
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edged.engines.kind import Preparation
from edged.engines.llama import gguf
from edged.host import process
from edged.types import ModelSpec

FOLDER = "merged"
MARK = re.compile(r"-[0-9a-f]{16}\.gguf(?:\.part(?P<process>\d{1,9}))?")  # the end of a name, after both files' names
# Bytes of a file's end that are looked at: images give all their files one time, and an adapter that was trained anew
# has the size of the one before.
END = 4096
# The merged matrices keep the file's own types. Of 60 requests in Spanish the adapter of the 0.5B, applied at the load,
# decides 35 right, and merged into IQ4_NL, which is multiplied twice as fast, 30 of them (docs/decisions.md).
TYPE = "same"
# What the process takes: 88 MiB with the 0.5B, whose largest matrix has 17 MB as float32; three such exist at a time.
PROCESS_BYTES, MATRICES = 60 * 2**20, 3


def as_loaded(spec: ModelSpec) -> ModelSpec:
    """The files that a model is loaded from: the merged one in place of two, where it is there."""
    found = _place(spec)
    return msgspec.structs.replace(spec, path=str(found), adapter="") if found and found.is_file() else spec


def preparation(spec: ModelSpec) -> Preparation | None:
    """How its merged file is made; None: it is there, or there is nothing to merge. Reads the weights' header, and
    removes what was made of the same two when they were others: it is as large as the weights.

    Raises:
        ModelUnavailable: the weights cannot be read.
    """
    out = _place(spec)
    if out is None:
        return None
    for old in _made(out.parent, _stem(Path(spec.path), Path(spec.adapter))):
        if old != out:
            with contextlib.suppress(OSError):  # it may be read only
                old.unlink()
    if out.is_file():
        return None
    _, tensors = gguf.header(Path(spec.path))
    largest = max(
        (tensor.dims[0] * tensor.dims[1] for tensor in tensors if "blk." in tensor.name and len(tensor.dims) > 1),
        default=0,
    )
    command = [sys.executable, "-m", "edged.engines.llama.merge", spec.path, spec.adapter, str(out), TYPE]
    return Preparation(
        command=tuple(command),
        folder=out.parent,
        disk_bytes=Path(spec.path).stat().st_size,
        memory_bytes=PROCESS_BYTES + MATRICES * 4 * largest,
    )


def made_from(weights: Path) -> list[Path]:
    """The files that were made of these weights, with whatever adapter; also what is left of an attempt."""
    return list(_made(weights.parent / FOLDER, _stem(weights)))


def _place(spec: ModelSpec) -> Path | None:
    if not spec.adapter or len(gguf.parts(Path(spec.path))) > 1:
        return None
    weights, adapter = Path(spec.path), Path(spec.adapter)
    digest = hashlib.sha256(f"{TYPE}\n".encode())
    try:
        for path in (weights, adapter):
            with path.open("rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
                digest.update(os.pread(file.fileno(), END, max(0, found.st_size - END)))
    except OSError:
        return None
    return weights.parent / FOLDER / f"{_stem(weights, adapter)}-{digest.hexdigest()[:16]}.gguf"


def _stem(weights: Path, adapter: Path | None = None) -> str:
    return f"{weights.stem}+{adapter.stem if adapter else ''}"


def _made(folder: Path, stem: str) -> Iterator[Path]:
    """Merged files whose names begin so, without those that are being written."""
    try:
        every = list(folder.iterdir())
    except OSError:
        return
    for path in every:
        ends = MARK.search(path.name)
        if ends is None or ends.end() < len(path.name) or not path.name.startswith(stem):
            continue
        if not stem.endswith("+") and path.name[: ends.start()] != stem:
            continue
        if ends["process"] is None or not process.exists(int(ends["process"])):
            yield path
