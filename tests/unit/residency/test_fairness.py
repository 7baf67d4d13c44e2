"""How long a turn lasts, and how use fades."""

from __future__ import annotations

import pytest

from edged.residency import fairness


@pytest.mark.parametrize(("load_s", "ends"), [(0.0, 102.0), (0.4, 102.0), (1.0, 104.0), (10.0, 140.0), (100.0, 160.0)])
def test_turn_is_some_loads_long_within_bounds(load_s: float, ends: float) -> None:
    """So that loads take a bounded share of the time, and a waiter waits a bounded time."""
    assert fairness.turn_ends(100.0, load_s) == ends


@pytest.mark.parametrize(
    ("used_at", "load_s", "until"),
    [(100.0, 0.0, 100.0), (100.0, 0.2, 100.1), (101.0, 1.0, 101.25), (103.9, 1.0, 104.0), (500.0, 1.0, 104.0)],
    ids=["load-costs-nothing", "half-a-load", "a-moment", "turn-ends", "turn-is-over"],
)
def test_model_lingers_for_a_moment_within_its_turn(used_at: float, load_s: float, until: float) -> None:
    """An agent's next step finds it."""
    assert fairness.kept_until(100.0, used_at, load_s) == pytest.approx(until)


def test_uses_halve() -> None:
    """In ten minutes; a clock that stands still changes nothing."""
    assert fairness.decayed(8.0, fairness.USES_HALVE_S) == pytest.approx(4.0)
    assert fairness.decayed(8.0, 0.0) == fairness.decayed(8.0, -1.0) == 8.0
