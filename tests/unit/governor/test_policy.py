"""The plan for a model, as a table over its numbered cases."""

from __future__ import annotations

import random

import pytest

from edged.governor.policy import Action, Plan, Resident, plan

LOAD, WAIT, REFUSE = Action.LOAD, Action.WAIT, Action.REFUSE


def idle(name: str, size: int, used_at: float = 0.0) -> Resident:
    return Resident(name, size, False, False, used_at)


def busy(name: str, size: int) -> Resident:
    return Resident(name, size, True, False, 0.0)


def pinned(name: str, size: int, *, in_use: bool = False) -> Resident:
    return Resident(name, size, in_use, True, 0.0)


@pytest.mark.parametrize(
    ("room", "resident", "wanted", "decided"),
    [
        (0, [idle("w", 5)], 5, Plan(Action.READY)),
        (-9, [busy("w", 5)], 5, Plan(Action.READY)),
        (5, [], 5, Plan(LOAD)),
        (5, [idle("a", 5)], 5, Plan(LOAD)),
        (4, [], 5, Plan(REFUSE)),
        (0, [idle("a", 5)], 5, Plan(LOAD, ("a",))),
        (3, [idle("a", 2, 9.0), idle("b", 2, 1.0)], 5, Plan(LOAD, ("b",))),
        (0, [idle("a", 3, 9.0), idle("b", 3, 1.0)], 5, Plan(LOAD, ("b", "a"))),
        (-2, [idle("a", 7)], 5, Plan(LOAD, ("a",))),
        (-3, [idle("a", 7)], 5, Plan(REFUSE)),
        (0, [busy("a", 5)], 5, Plan(WAIT)),
        (0, [idle("a", 2), busy("b", 3)], 5, Plan(WAIT)),
        (0, [idle("a", 5), busy("b", 5)], 5, Plan(LOAD, ("a",))),
        (0, [pinned("a", 9)], 5, Plan(REFUSE)),
        (0, [pinned("a", 9, in_use=True)], 5, Plan(REFUSE)),
        (0, [pinned("a", 9), busy("b", 4)], 5, Plan(REFUSE)),
        (0, [pinned("a", 9), busy("b", 5)], 5, Plan(WAIT)),
    ],
    ids=[
        "1-resident", "1-resident-and-no-room", "2-fits-exactly", "2-fits-beside", "5-empty-board-too-small",
        "3-evict", "3-evict-least-recent-only", "3-evict-two-in-order", "3-evict-from-overcommitted",
        "5-overcommitted-too-far", "4-wait-for-busy", "4-wait-for-busy-beside-idle", "3-idle-before-busy",
        "5-pinned-stays", "5-pinned-and-busy-stays", "5-pinned-and-small-busy", "4-wait-beside-pinned",
    ],
)  # fmt: skip
def test_policy_decides_by_its_numbered_cases(room: int, resident: list[Resident], wanted: int, decided: Plan) -> None:
    """Ready, load, evict just enough, wait, refuse: in this order."""
    assert plan(room_bytes=room, resident=resident, wanted="w", wanted_bytes=wanted) == decided


def test_policy_never_evicts_busy_or_pinned_and_never_overfills() -> None:
    """Whatever is resident: what is evicted is idle, and then there is room."""
    chance = random.Random(1)
    for _ in range(2000):
        resident = [
            Resident(f"m{i}", chance.randint(1, 9), chance.random() < 0.5, chance.random() < 0.3, chance.random())
            for i in range(chance.randint(0, 5))
        ]
        room, wanted = chance.randint(-5, 10), chance.randint(1, 20)
        decided = plan(room_bytes=room, resident=resident, wanted="w", wanted_bytes=wanted)
        out = [m for m in resident if m.name in decided.evict]
        assert not any(m.busy or m.pinned for m in out)
        if decided.action is LOAD:
            assert room + sum(m.size_bytes for m in out) >= wanted
        else:
            assert decided.evict == ()
