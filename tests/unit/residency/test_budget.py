"""How much more may be taken: the smallest of three bounds, less what is promised."""

from __future__ import annotations

import pytest

from edged.host.memory import Group
from edged.residency.budget import Bounds, Taken, promised, room

FREE = Taken(private=0, mapped=0)


@pytest.mark.parametrize(
    ("bounds", "taken", "left"),
    [
        (Bounds(100), FREE, 100),
        (Bounds(100), Taken(30, 20), 50),
        (Bounds(100), Taken(90, 20), -10),
        (Bounds(100), Taken(30, 20, promised=15), 35),
        (Bounds(100, [Group(80, 10, 0)]), FREE, 70),
        (Bounds(100, [Group(80, 75, 70)]), FREE, 75),
        (Bounds(100, [Group(80, 75, 70)]), Taken(5, 40), 35),
        (Bounds(100, [Group(80, 10, 20)]), FREE, 80),
        (Bounds(100, [Group(90, 10, 0), Group(60, 50, 0)]), FREE, 10),
        (Bounds(100, [Group(40, 50, 0)]), FREE, -10),
        (Bounds(100, available=50, reserve=20), FREE, 30),
        (Bounds(100, available=50, reserve=20), Taken(30, 20), 10),
        (Bounds(100, available=10, reserve=20), FREE, -10),
        (Bounds(100, [Group(80, 20, 0)], 70, 20), Taken(20, 0), 50),
        (Bounds(100, [Group(80, 20, 0)], 700, 20), Taken(20, 0, promised=5), 55),
    ],
    ids=[
        "1-budget", "1-own-and-mapped", "1-too-much-already", "1-promised", "2-cgroup", "2-page-cache-is-nobodys",
        "2-mapped-weights-are-used", "2-more-cache-than-used", "2-nested-smallest", "2-above-its-limit", "3-available",
        "3-mapped-weights-are-used", "3-below-the-reserve", "smallest-is-3", "smallest-is-2",
    ],
)  # fmt: skip
def test_room_is_the_smallest_bound_less_what_is_promised(bounds: Bounds, taken: Taken, left: int) -> None:
    """The configured budget, every cgroup, the board."""
    assert room(bounds, taken) == left


@pytest.mark.parametrize(("needed", "took", "left"), [(100, 70, 30), (100, 100, 0), (100, 130, 0), (100, 0, 100)])
def test_promised_is_what_a_model_has_not_touched_yet(needed: int, took: int, left: int) -> None:
    """Never less than nothing."""
    assert promised(needed, took) == left
