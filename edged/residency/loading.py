"""Brings models in and takes them out, measures both, and tells of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from msgspec import Struct, structs

from edged.host import malloc, memory
from edged.host.clock import Stopwatch
from edged.interfaces import Loader, Sizer
from edged.residency.record import ModelRecord, Way
from edged.residency.refusal import MIB
from edged.residency.ways import Ways, label
from edged.types import JSON, ModelState

log = logging.getLogger("edged.residency")

# Of what a load took, so much may stay without a warning: at the first unload the runtime's libraries (75 MiB at most,
# measured), later what the allocator cannot give back.
KEPT_FIRST, KEPT = 96 * MIB, 16 * MIB


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


class Loading:
    """Loads and unloads, one after the other.

    Args:
        tell: gets (event name, data).
    """

    def __init__(self, loader: Loader, sizer: Sizer, ways: Ways, tell: Callable[[str, dict[str, JSON]], None]) -> None:
        self._loader, self._sizer, self._ways, self._tell = loader, sizer, ways, tell
        self._unloads = 0

    async def load(self, record: ModelRecord, ways: Sequence[Way], number: int, came: Callable[[], None]) -> None:
        """Load in one of the ways, and measure what that took. EdgedError: the runtime's reason.

        Args:
            came: called as soon as the model may be used, before the rest of the bookkeeping.
        """
        way, best = ways[number], record.alias.variants[0]
        record.state, record.spec, record.need = ModelState.LOADING, way.spec, way.need
        record.lesser = "" if way.spec == best else self._why_lesser(ways, number, record)
        before = await asyncio.to_thread(_held)
        watch = Stopwatch()
        try:
            await self._loader.load(way.spec)
        except BaseException:
            record.state = ModelState.UNLOADED
            raise
        record.load_s = watch.ms() / 1000
        took = await asyncio.to_thread(_after_load, before)
        record.private_bytes, record.mapped_bytes = took.private, took.mapped
        record.state, record.ways = ModelState.READY, None
        record.used()
        record.loaded_at = record.looked_at = record.used_at
        came()
        told: dict[str, JSON] = {
            "load_ms": record.load_s * 1000,
            "bytes": record.measured_bytes,
            "context": way.spec.context,
        }
        if way.spec.variant:
            told["variant"] = way.spec.variant
        if record.lesser:
            told["why"] = record.lesser
        log.info("model %s (%s) loaded in %.0f ms", record.name, label(way), record.load_s * 1000)
        self._tell("model_loaded", {"model": record.name, **told})
        await self._sizer.observe(way.spec, record.measured_bytes)

    def _why_lesser(self, ways: Sequence[Way], number: int, record: ModelRecord) -> str:
        if not number:  # the best of those that may be loaded now, or that are here
            return (
                "it was made smaller" if record.variants() != record.alias.variants else "better ones are not installed"
            )
        need, most = ways[0].need.total, self._ways.most(self._ways.resident())
        return f"{label(ways[0])} needs {need // MIB} MiB, and there is room for {most // MIB} MiB"

    async def unload(self, record: ModelRecord, reason: str, *, why: str = "") -> None:
        """Free a model, and prove that its memory came back."""
        record.state = ModelState.UNLOADING
        before = await asyncio.to_thread(memory.private_bytes)
        await self._loader.unload(record.name)
        record.state = ModelState.UNLOADED
        found = await asyncio.to_thread(_after_unload, record.private_bytes, before)
        self._unloads += 1
        told: dict[str, JSON] = {"reason": reason, **structs.asdict(found), **({"why": why} if why else {})}
        log.info(
            "model %s unloaded (%s): %d MiB of private memory came back, %d of them trimmed",
            record.name, reason, found.freed_bytes // MIB, found.trimmed_bytes // MIB,
        )  # fmt: skip
        if found.kept_bytes > (KEPT_FIRST if self._unloads == 1 else KEPT):
            log.warning(
                "model %s: %d MiB of the %d MiB that its load took did not come back when it was unloaded (%s)",
                record.name, found.kept_bytes // MIB, record.private_bytes // MIB, why or reason,
            )  # fmt: skip
        self._tell("model_unloaded", {"model": record.name, **told})


# Measured; each takes milliseconds, in a thread


def _held() -> Held:
    """Now."""
    return Held(memory.private_bytes(), memory.file_bytes())


def _after_load(before: Held) -> Held:
    """What a load took beyond what there was before it."""
    now = _held()
    return Held(max(0, now.private - before.private), max(0, now.mapped - before.mapped))


def _after_unload(took_bytes: int, before_bytes: int) -> Unloaded:
    """Measure, trim, measure again. Args: private memory that the load took, and that there was before the unload."""
    untrimmed = memory.private_bytes()
    malloc.trim()
    now = memory.private_bytes()
    freed = before_bytes - now
    return Unloaded(freed, untrimmed - now, max(0, took_bytes - freed))
