"""What a load took and an unload gave back, measured. Everything here takes milliseconds: call it in a thread."""

from __future__ import annotations

from msgspec import Struct

from edged.host import malloc, memory


class Unloaded(Struct, frozen=True):
    """freed_bytes: of private memory came back, trimmed_bytes of them only when the allocator was told to give back
    what it holds free; kept_bytes: of what the load took did not."""

    freed_bytes: int
    trimmed_bytes: int
    kept_bytes: int


class Held(Struct, frozen=True):
    """What this process holds, in bytes. mapped: pages of files: weights, code of libraries."""

    private: int
    mapped: int


def held() -> Held:
    """Now."""
    return Held(memory.private_bytes(), memory.file_bytes())


def after_load(before: Held) -> Held:
    """What a load took beyond what there was before it."""
    now = held()
    return Held(max(0, now.private - before.private), max(0, now.mapped - before.mapped))


def after_unload(took_bytes: int, before_bytes: int) -> Unloaded:
    """Measure, trim, measure again. Args: private memory that the load took, and that there was before the unload."""
    untrimmed = memory.private_bytes()
    malloc.trim()
    now = memory.private_bytes()
    freed = before_bytes - now
    return Unloaded(freed, untrimmed - now, max(0, took_bytes - freed))
