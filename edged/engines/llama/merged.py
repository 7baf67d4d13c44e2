"""Where a model's weights lie with its adapter merged into them, and how that file is made. Loads nothing of llama.cpp.

A merged file lies in `merged` beside the weights and is named after both files as they are, so it is never taken for
others. While there is none, the adapter is applied when the model is loaded.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import msgspec

from edged.engines.kind import Preparation
from edged.engines.llama import gguf
from edged.types import ModelSpec

FOLDER = "merged"
# ggml_type of the merged matrices. Of the formats that llama.cpp multiplies fastest on ARM and x86 it keeps most: on
# 120 requests of four plants the 0.5B writes 94 calls right with its adapter applied to the published weights, 94 with
# it merged into IQ4_NL, and 84 merged into Q4_0, which is as fast (docs/decisions.md).
IQ4_NL = 20
# What the process takes: 88 MiB with the 0.5B, whose largest matrix has 17 MB as float32; three such exist at a time.
PROCESS_BYTES, MATRICES = 60 * 2**20, 3


def as_loaded(spec: ModelSpec) -> ModelSpec:
    """The files that a model is loaded from: the merged one in place of two, where it is there."""
    found = _place(spec)
    return msgspec.structs.replace(spec, path=str(found), adapter="") if found and found.is_file() else spec


def preparation(spec: ModelSpec) -> Preparation | None:
    """How its merged file is made; None: it is there, or there is nothing to merge. Reads the weights' header.

    Raises:
        ModelUnavailable: the weights cannot be read.
    """
    out = _place(spec)
    if out is None or out.is_file():
        return None
    _, tensors = gguf.header(Path(spec.path))
    largest = max(
        tensor.dims[0] * tensor.dims[1] for tensor in tensors if "blk." in tensor.name and len(tensor.dims) > 1
    )
    command = [sys.executable, "-m", "edged.engines.llama.merge", spec.path, spec.adapter, str(out), str(IQ4_NL)]
    return Preparation(
        command=tuple(command),
        folder=out.parent,
        disk_bytes=Path(spec.path).stat().st_size,
        memory_bytes=PROCESS_BYTES + MATRICES * 4 * largest,
    )


def _place(spec: ModelSpec) -> Path | None:
    if not spec.adapter or len(gguf.parts(Path(spec.path))) > 1:
        return None
    weights = Path(spec.path)
    try:
        files = [path.stat() for path in (weights, Path(spec.adapter))]
    except OSError:
        return None
    about = "".join(f"{file.st_size} {file.st_mtime_ns}\n" for file in files)
    name = hashlib.sha256(f"{about}{IQ4_NL}".encode()).hexdigest()[:16]
    return weights.parent / FOLDER / f"{weights.stem}-{name}.gguf"
