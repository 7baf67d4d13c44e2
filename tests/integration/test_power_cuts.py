"""The power goes at any moment of a request's life, in either database."""

from __future__ import annotations

import pytest

from tests.powercut import power_cuts


def test_power_cuts_lose_nothing_that_was_acknowledged() -> None:
    """Files whole, effects once, replies as they were told."""
    counts = power_cuts(150, seed=1)
    assert counts.cuts == 150
    assert counts.kept, counts


def test_judge_of_power_cuts_finds_what_is_not_synced() -> None:
    """Else it would prove nothing."""
    counts = power_cuts(40, seed=2, careless=True)
    assert counts.lost > 0
    assert counts.unjournalled > 0
    assert counts.wrong > 0


@pytest.mark.slow
def test_two_thousand_power_cuts_lose_nothing() -> None:
    """The same, other moments."""
    counts = power_cuts(2000, seed=3)
    assert counts.kept, counts
