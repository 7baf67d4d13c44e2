"""What the governor keeps of each model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct, structs

from edged.residency import fairness
from edged.residency.policy import Resident, worth_s
from edged.types import JSON, Alias, MemoryNeed, ModelSpec, ModelState

IN_MEMORY = (ModelState.READY, ModelState.UNLOADING)


class Way(Struct, frozen=True):
    """A way to load a model: a file, a context, and what that takes."""

    spec: ModelSpec
    need: MemoryNeed


class Waiter(Struct, frozen=True):
    """Somebody who waits for a model, and since when."""

    granted: asyncio.Future[None]
    since: float


class Change(Struct, frozen=True):
    """What a name is to stand for from the next request on; None: nothing. done: told when it does."""

    alias: Alias | None
    done: asyncio.Future[None]


class ModelRecord:
    """What is known of one model.

    active: requests that use it. waiting: those that wait for it. closed: no request is let in: others need its memory.
    ways: in which it can be loaded, best first, as predicted for those who wait; None: not looked at yet.
    lesser: why not in the best one.
    spared: until then (monotonic clock) only this and later variants are loaded.
    keep_s: the last request wishes it to stay so long after it; None: it said nothing.
    """

    def __init__(self, alias: Alias, *, admitted: bool = False) -> None:
        self.alias = alias
        self.admitted = admitted
        self.spec = alias.variants[0]
        self.state = ModelState.UNLOADED
        self.active = 0
        self.waiting: list[Waiter] = []
        self.closed = False
        self.change: Change | None = None
        self.ways: list[Way] | None = None
        self.lesser = ""
        self.spared: tuple[int, float] = (0, 0.0)
        self.need = MemoryNeed()
        self.private_bytes = self.mapped_bytes = 0  # that the last load took
        self.loaded_at = self.used_at = self.looked_at = 0.0
        self.load_s = 0.0
        self.keep_s: float | None = None
        self._uses = 0.0

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def ready(self) -> bool:
        return self.state is ModelState.READY

    @property
    def measured_bytes(self) -> int:
        """What the last load took."""
        return self.private_bytes + self.mapped_bytes

    @property
    def open(self) -> bool:
        """Whether a request gets it without waiting."""
        return self.ready and not self.closed and self.change is None

    @property
    def turn_ends(self) -> float:
        """Until when it takes requests though others wait for theirs (monotonic clock)."""
        return fairness.turn_ends(self.loaded_at, self.load_s)

    @property
    def idle(self) -> bool:
        """Whether it is in memory and nobody uses it or waits for it."""
        return self.ready and not self.active and not self.waiting

    def used(self) -> None:
        """A request began or ended."""
        now = time.monotonic()
        self._uses = fairness.decayed(self._uses, now - self.used_at)
        self.used_at = now

    def asked(self) -> None:
        """A request came."""
        self.used()
        self._uses += 1
        self.keep_s = None

    def idle_until(self, idle_unload_s: float) -> float | None:
        """When it is taken out (monotonic clock) if nobody uses it any more; None: it is not. A wish counts where it is
        for less than the policy's time."""
        if self.spec.pin:
            return None
        return self.used_at + (idle_unload_s if self.keep_s is None else min(idle_unload_s, self.keep_s))

    def resident(self, lost_s: float) -> Resident:
        """For the policy. lost_s: see `policy.worth_s`."""
        now = time.monotonic()
        return Resident(
            name=self.name,
            # what it took, where that is more than was predicted: that much comes back
            size_bytes=max(self.need.returned, self.measured_bytes - self.need.libraries),
            busy=self.active > 0,
            pinned=self.spec.pin,
            kept=now < fairness.kept_until(self.loaded_at, self.used_at, self.load_s),
            worth=worth_s(self.load_s, lost_s, fairness.decayed(self._uses, now - self.used_at)),
            used_at=self.used_at,
        )

    def contexts(self) -> Iterator[int]:
        """Shorter ones to try, longest first: halves, down to the shortest that is enough."""
        least, context = self.alias.min_context, self.alias.variants[0].context
        while least is not None and context > least:
            context = max(context // 2, least)
            yield context

    def variants(self) -> tuple[ModelSpec, ...]:
        """Those that may be loaded now."""
        first, until = self.spared
        return self.alias.variants[first if time.monotonic() < until else 0 :]

    def become(self, alias: Alias) -> None:
        """Stand for something else; it must not be in memory."""
        self.alias, self.spec = alias, alias.variants[0]
        self.ways, self.spared, self.need, self.lesser = None, (0, 0.0), MemoryNeed(), ""

    def status(self) -> dict[str, JSON]:
        """For `status`; sizes in bytes, the context in tokens."""
        told: dict[str, JSON] = {
            "state": self.state,
            "predicted_bytes": self.need.loaded or None,
            "predicted": {part: size for part, size in structs.asdict(self.need).items() if size},
            "measured_bytes": self.measured_bytes if self.state in IN_MEMORY else None,
            "in_use": self.active + len(self.waiting),
            "context": self.spec.context,
        }
        if self.spec.adapter:
            told["adapter"] = self.spec.adapter
        if self.spec.variant:
            told["variant"] = self.spec.variant
        if self.lesser and self.ready:
            told["why"] = self.lesser
        return told


def due_times(
    records: Sequence[ModelRecord],
    now: float,
    idle_unload_s: float,
    improvable: Callable[[ModelRecord], float | None] | None,
) -> Iterator[float]:
    """When something is due though nothing happens (monotonic clock): a turn is over, an idle model goes, a better
    variant may come.

    Args:
        improvable: when a better variant may be tried; None: nothing is loaded now.
    """
    wanted = any(record.waiting and not record.ready for record in records)
    for record in records:
        if not record.ready:
            continue
        if wanted:
            kept = fairness.kept_until(record.loaded_at, record.used_at, record.load_s)
            yield from (at for at in (record.turn_ends, kept) if at > now)
        if record.idle and (until := record.idle_until(idle_unload_s)) is not None:
            yield until
        if improvable is not None and (due := improvable(record)) is not None:
            yield due


def shorter(spec: ModelSpec, context: int) -> ModelSpec:
    """The same with another context."""
    return structs.replace(spec, context=context)
