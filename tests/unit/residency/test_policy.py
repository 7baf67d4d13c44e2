"""The plan for a model, as a table over its numbered cases."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from edged.residency import policy
from edged.residency.policy import Action, Plan, Resident, cheapest, plan, worth_s

LOAD, WAIT, REFUSE = Action.LOAD, Action.WAIT, Action.REFUSE


def idle(name: str, size: int, used_at: float = 0.0, **more: Any) -> Resident:
    return Resident(name=name, size_bytes=size, used_at=used_at, **more)


def busy(name: str, size: int, **more: Any) -> Resident:
    return Resident(name=name, size_bytes=size, busy=True, **more)


def pinned(name: str, size: int, *, in_use: bool = False) -> Resident:
    return Resident(name=name, size_bytes=size, busy=in_use, pinned=True)


def kept(name: str, size: int) -> Resident:
    return Resident(name=name, size_bytes=size, kept=True)


@pytest.mark.parametrize(
    ("room", "resident", "ways", "decided"),
    [
        (0, [idle("w", 5)], [5], Plan(Action.READY)),
        (-9, [busy("w", 5)], [5], Plan(Action.READY)),
        (5, [], [5], Plan(LOAD)),
        (5, [idle("a", 5)], [5], Plan(LOAD)),
        (4, [], [5], Plan(REFUSE)),
        (0, [idle("a", 5)], [5], Plan(LOAD, 0, ("a",))),
        (3, [idle("a", 2, 9.0), idle("b", 2, 1.0)], [5], Plan(LOAD, 0, ("b",))),
        (3, [idle("a", 2, 1.0, worth=9), idle("b", 2, 9.0, worth=1)], [5], Plan(LOAD, 0, ("b",))),
        (0, [idle("a", 3, 9.0), idle("b", 3, 1.0)], [5], Plan(LOAD, 0, ("b", "a"))),
        (0, [idle("a", 2, worth=1), idle("b", 5, worth=2)], [5], Plan(LOAD, 0, ("b",))),
        (0, [idle("a", 3, worth=1), idle("b", 3, worth=1), idle("c", 6, worth=3)], [5], Plan(LOAD, 0, ("a", "b"))),
        (0, [idle("a", 3, worth=2), idle("b", 3, worth=2), idle("c", 6, worth=3)], [5], Plan(LOAD, 0, ("c",))),
        (-2, [idle("a", 7)], [5], Plan(LOAD, 0, ("a",))),
        (-3, [idle("a", 7)], [5], Plan(REFUSE)),
        (0, [busy("a", 5)], [5], Plan(WAIT, 0, ("a",), ("a",))),
        (0, [kept("a", 5)], [5], Plan(WAIT, 0, ("a",), ("a",))),
        (0, [idle("a", 2), busy("b", 3)], [5], Plan(WAIT, 0, ("a", "b"), ("b",))),
        (0, [idle("a", 5), busy("b", 5)], [5], Plan(LOAD, 0, ("a",))),
        (0, [pinned("a", 9)], [5], Plan(REFUSE)),
        (0, [pinned("a", 9, in_use=True)], [5], Plan(REFUSE)),
        (0, [pinned("a", 9), busy("b", 4)], [5], Plan(REFUSE)),
        (0, [pinned("a", 9), busy("b", 5)], [5], Plan(WAIT, 0, ("b",), ("b",))),
        (5, [], [9, 5, 3], Plan(LOAD, 1)),
        (5, [idle("a", 4)], [9, 5], Plan(LOAD, 0, ("a",))),
        (5, [busy("a", 4)], [9, 5], Plan(WAIT, 0, ("a",), ("a",))),
        (5, [pinned("a", 4)], [9, 5], Plan(LOAD, 1)),
        (2, [idle("a", 1)], [9, 5, 3], Plan(LOAD, 2, ("a",))),
        (1, [], [9, 5, 3], Plan(REFUSE)),
    ],
    ids=[
        "1-resident", "1-resident-and-no-room", "2-fits-exactly", "2-fits-beside", "6-empty-board-too-small",
        "3-evict", "3-evict-least-recent-only", "3-evict-least-worth", "3-evict-two-in-order",
        "3-one-that-is-enough", "3-two-cheap-ones", "3-one-rather-than-two-dear-ones",
        "3-evict-from-overcommitted", "6-overcommitted-too-far", "4-wait-for-busy", "4-wait-for-a-turn",
        "4-wait-for-busy-beside-idle", "3-idle-before-busy", "6-pinned-stays", "6-pinned-and-busy-stays",
        "6-pinned-and-small-busy", "4-wait-beside-pinned", "5-smaller", "3-best-before-smaller",
        "4-wait-before-smaller", "5-smaller-beside-pinned", "5-smallest-and-evict", "6-no-way",
    ],
)  # fmt: skip
def test_policy_decides_by_its_numbered_cases(
    room: int, resident: list[Resident], ways: list[int], decided: Plan
) -> None:
    """Ready, load, evict just enough, wait, smaller, refuse: in this order."""
    assert plan(room_bytes=room, resident=resident, wanted="w", ways_bytes=ways) == decided


def some(chance: random.Random, most: int) -> list[Resident]:
    return [
        Resident(
            name=f"m{i}",
            size_bytes=chance.randint(1, 9),
            busy=chance.random() < 0.5,
            pinned=chance.random() < 0.3,
            kept=chance.random() < 0.2,
            worth=chance.random(),
            used_at=chance.random(),
        )
        for i in range(chance.randint(0, most))
    ]


def test_policy_never_evicts_busy_or_pinned_never_overfills_and_evicts_none_in_vain() -> None:
    """Whatever is resident: what is evicted is idle, then there is room, and without any of it there is not."""
    chance = random.Random(1)
    for _ in range(2000):
        resident = some(chance, 5)
        room, ways = chance.randint(-5, 10), sorted((chance.randint(1, 20) for _ in range(3)), reverse=True)
        decided = plan(room_bytes=room, resident=resident, wanted="w", ways_bytes=ways)
        out = [m for m in resident if m.name in decided.out]
        freed = sum(m.size_bytes for m in out)
        assert not any(m.pinned for m in out)
        if decided.action is LOAD:
            assert not any(m.busy or m.kept for m in out)
            assert room + freed >= ways[decided.way]
            assert all(room + freed - m.size_bytes < ways[decided.way] for m in out)
        elif decided.action is WAIT:
            assert decided.wait_for
            assert room + freed >= ways[decided.way]
        else:
            assert decided.out == ()


def test_cheapest_set_is_the_cheapest_of_all_sets() -> None:
    """Against looking at every set."""
    chance = random.Random(2)
    for _ in range(300):
        models, needed = some(chance, 6), chance.randint(1, 30)
        sets = [s for n in range(1, 7) for s in itertools.combinations(models, n)]
        costs = [sum(m.worth for m in s) for s in sets if sum(m.size_bytes for m in s) >= needed]
        found = cheapest(models, needed)
        assert (sum(m.worth for m in found) if found else None) == (pytest.approx(min(costs)) if costs else None)


def test_cheapest_of_very_many_is_enough_and_has_none_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not every set can be looked at."""
    monkeypatch.setattr(policy, "EXACT", 0)
    chance = random.Random(3)
    for _ in range(300):
        models, needed = some(chance, 20), chance.randint(1, 60)
        found = cheapest(models, needed)
        freed = sum(m.size_bytes for m in found)
        assert bool(found) == (sum(m.size_bytes for m in models) >= needed)
        assert not found or (freed >= needed and all(freed - m.size_bytes < needed for m in found))


def test_worth_grows_with_what_it_takes_to_come_back_and_with_use() -> None:
    """A long load, states that nobody keeps, many uses."""
    assert worth_s(2, 0, 3) > worth_s(1, 0, 3)
    assert worth_s(1, 1, 3) > worth_s(1, 0, 3)
    assert worth_s(1, 0, 4) > worth_s(1, 0, 3)
    assert worth_s(0.001, 0, 1) == worth_s(0.002, 0, 1) > 0
    assert worth_s(9, 0, 0) > worth_s(1, 0, 0)
