"""Who is served next of those who wait for models, by the plan for each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from edged.residency.policy import Action, Plan, Resident, plan
from edged.residency.record import ModelRecord


class Decision(NamedTuple):
    """turn: the model to load and how. closed: names of those that let nobody in from now on. refused: models that
    cannot be loaded in any way."""

    turn: tuple[ModelRecord, Plan] | None
    closed: set[str]
    refused: list[ModelRecord]


def decide(
    waiting: Sequence[ModelRecord], resident: Sequence[Resident], room_bytes: int, is_over: Callable[[str], bool]
) -> Decision:
    """What to do for those who wait, who has waited longest first.

    Args:
        waiting: models that are wanted and not in memory, with the ways in which they can be loaded.
        room_bytes: see `policy.plan`.
        is_over: whether the turn of a model in memory is over, by its name.

    Who has waited longest is served first; somebody else is before only where that takes nothing from him.
    """
    after: int | None = None
    closed: set[str] = set()
    refused: list[ModelRecord] = []
    sizes = {model.name: model.size_bytes for model in resident}
    for record in waiting:
        ways = [way.need.total for way in record.ways or ()]
        decided = plan(room_bytes=room_bytes, resident=resident, wanted=record.name, ways_bytes=ways)
        if decided.action is Action.REFUSE:
            refused.append(record)
        elif decided.action is Action.WAIT:
            closed |= {name for name in decided.wait_for if is_over(name)}
            left = room_bytes + sum(sizes[name] for name in decided.out) - ways[decided.way]
            after = left if after is None else min(after, left)
        elif after is None or (not decided.out and ways[decided.way] <= after):
            closed |= {name for name in decided.out if is_over(name)}
            return Decision((record, decided), closed, refused)
    return Decision(None, closed, refused)
