"""What a load took and an unload gave back, measured. Everything here takes milliseconds: call it in a thread."""

from __future__ import annotations

import ctypes
from pathlib import Path

from msgspec import Struct

from edged.governor import probe
from edged.types import ModelSpec


class Unloaded(Struct, frozen=True):
    """freed_bytes: of private memory came back, trimmed_bytes of them only when the allocator was told to give back
    what it holds free; kept_bytes: of what the load took did not."""

    freed_bytes: int
    trimmed_bytes: int
    kept_bytes: int


def after_load(spec: ModelSpec, before_bytes: int) -> tuple[int, int]:
    """(private bytes, all bytes) that a load took. Weights are mapped: they are not private, and they are there."""
    private = max(0, probe.private_bytes() - before_bytes)
    path = Path(spec.path)
    return private, private + (path.stat().st_size if path.is_file() else 0)


def after_unload(took_bytes: int, before_bytes: int) -> Unloaded:
    """Measure, trim, measure again. Args: private memory that the load took, and that there was before the unload."""
    untrimmed = probe.private_bytes()
    trim()
    now = probe.private_bytes()
    freed = before_bytes - now
    return Unloaded(freed, untrimmed - now, max(0, took_bytes - freed))


def trim() -> bool:
    """Tell the C library to give free memory back to the kernel. False: there was none, or it has no such call (only
    glibc does)."""
    call = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return call is not None and bool(call(0))
