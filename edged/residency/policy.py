"""What to do so that a model can be loaded. Pure: values in, a plan out. All sizes in bytes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

EXACT = 12  # up to so many models every set is looked at (4,096, some ms); boards that hold more are not known
LEAST_COST_S = 0.05  # what comes back faster than that is as good as here: differences below it are chance
LEAST_USES = 0.01  # a model that nobody has used for long is not worth nothing: else its load would not count at all


class Resident(Struct, frozen=True, kw_only=True):
    """A model in memory.

    busy: a request uses it. kept: nobody does at the moment, but it is still its turn (see `turns`).
    worth: see `worth_s`. used_at: when the last request did, on any one clock.
    """

    name: str
    size_bytes: int
    busy: bool = False
    pinned: bool = False
    kept: bool = False
    worth: float = 0.0
    used_at: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether it may go now."""
        return not (self.busy or self.pinned or self.kept)


class Action(StrEnum):
    """What the governor does next for a model that is wanted."""

    READY = "ready"
    LOAD = "load"
    WAIT = "wait"
    REFUSE = "refuse"


class Plan(Struct, frozen=True):
    """An action. way: which of the ways to load it. out: the models to unload before it, in order. wait_for: those of
    them that are in use."""

    action: Action
    way: int = 0
    out: tuple[str, ...] = ()
    wait_for: tuple[str, ...] = ()


def plan(*, room_bytes: int, resident: Sequence[Resident], wanted: str, ways_bytes: Sequence[int]) -> Plan:
    """Decide for one model.

    Args:
        room_bytes: what may be taken beyond what is resident now; negative when there is too little already.
        ways_bytes: what it takes in each way it can be loaded, best first: every variant with the configured context,
            then with shorter ones.

    (1) it is resident: ready;
    for each way, best first:
    (2)   it fits: load;
    (3)   it fits once models nobody uses are out: evict the set of them that costs least and is enough, load;
    (4)   it would fit once models in use were out too: wait until those are not used;
    (5)   else try the next way: a smaller variant, then a shorter context;
    (6) no way is left: refuse. Pinned models are never evicted.
    """
    if any(model.name == wanted for model in resident):  # (1)
        return Plan(Action.READY)
    idle = [model for model in resident if model.idle]
    loose = [model for model in resident if not model.pinned]
    for way, needed in enumerate(ways_bytes):
        if room_bytes >= needed:  # (2)
            return Plan(Action.LOAD, way)
        if out := cheapest(idle, needed - room_bytes):  # (3)
            return Plan(Action.LOAD, way, _names(out))
        if out := cheapest(loose, needed - room_bytes):  # (4)
            return Plan(Action.WAIT, way, _names(out), _names([m for m in out if not m.idle]))
    return Plan(Action.REFUSE)  # (6)


def cheapest(models: Sequence[Resident], needed_bytes: int) -> tuple[Resident, ...]:
    """The set of models worth least that frees so much, in the order in which they are to go; empty where all together
    do not. No model of it is superfluous."""
    if sum(model.size_bytes for model in models) < needed_bytes:
        return ()
    if len(models) > EXACT:
        return _greedy(models, needed_bytes)
    sets = (chosen for n in range(1, len(models) + 1) for chosen in itertools.combinations(models, n))
    enough = (chosen for chosen in sets if sum(m.size_bytes for m in chosen) >= needed_bytes)
    best = min(enough, key=lambda chosen: (sum(m.worth for m in chosen), len(chosen), _used(chosen)))
    return tuple(sorted(best, key=_dispensable))


def worth_s(load_s: float, lost_s: float, uses: float) -> float:
    """What taking a model out costs, as far as can be told: seconds to bring it back, times how much it was used.

    Args:
        load_s: its last load took.
        lost_s: to compute again what it has computed and nobody keeps for it.
        uses: of late, the older the less (`turns.decayed`).
    """
    return max(load_s + lost_s, LEAST_COST_S) * max(uses, LEAST_USES)


def _greedy(models: Sequence[Resident], needed_bytes: int) -> tuple[Resident, ...]:
    """The least worth per byte first, then without those that were not needed after all."""
    out: list[Resident] = []
    for model in sorted(models, key=lambda m: (m.worth / max(1, m.size_bytes), m.used_at)):
        if sum(m.size_bytes for m in out) >= needed_bytes:
            break
        out.append(model)
    for model in sorted(out, key=_dispensable, reverse=True):
        if sum(m.size_bytes for m in out) - model.size_bytes >= needed_bytes:
            out.remove(model)
    return tuple(sorted(out, key=_dispensable))


def _dispensable(model: Resident) -> tuple[float, float]:
    return model.worth, model.used_at


def _used(models: Sequence[Resident]) -> tuple[float, ...]:
    return tuple(sorted((model.used_at for model in models), reverse=True))


def _names(models: Sequence[Resident]) -> tuple[str, ...]:
    return tuple(model.name for model in models)
