"""What to do so that a model can be loaded. Pure: values in, a plan out. All sizes in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct


class Resident(Struct, frozen=True):
    """A model in memory. busy: a request uses it; used_at: when the last one did, on any one clock."""

    name: str
    size_bytes: int
    busy: bool
    pinned: bool
    used_at: float


class Action(StrEnum):
    """What the governor does next for a model that is wanted."""

    READY = "ready"
    LOAD = "load"
    WAIT = "wait"
    REFUSE = "refuse"


class Plan(Struct, frozen=True):
    """An action, and the models to unload before it, in order."""

    action: Action
    evict: tuple[str, ...] = ()


def plan(*, room_bytes: int, resident: Sequence[Resident], wanted: str, wanted_bytes: int) -> Plan:
    """Decide for one model.

    Args:
        room_bytes: what may be taken beyond what is resident now; negative when there is too little already.

    (1) it is resident: ready;
    (2) it fits: load;
    (3) it fits once models nobody uses are out, least recently used first: evict just those, load;
    (4) it would fit once busy models were out too: wait until one is not busy;
    (5) else: refuse. Pinned models are never evicted.
    """
    if any(model.name == wanted for model in resident):  # (1)
        return Plan(Action.READY)
    room = room_bytes
    evict: list[str] = []
    for model in sorted((m for m in resident if not m.busy and not m.pinned), key=lambda m: m.used_at):
        if room >= wanted_bytes:
            break
        room += model.size_bytes
        evict.append(model.name)
    if room >= wanted_bytes:  # (2), (3)
        return Plan(Action.LOAD, tuple(evict))
    if room + sum(m.size_bytes for m in resident if m.busy and not m.pinned) >= wanted_bytes:  # (4)
        return Plan(Action.WAIT)
    return Plan(Action.REFUSE)  # (5)
