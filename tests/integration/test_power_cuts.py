"""The power goes at any moment of a request's life, in either database."""

from __future__ import annotations

import pytest

from edged.tools.sql import database
from tests.support.powercut import power_cuts, upgrade_cuts


def test_power_cuts_lose_nothing_that_was_acknowledged() -> None:
    """Files whole, effects once, replies as they were told."""
    counts = power_cuts(100, seed=1)
    assert counts.cuts == 100
    assert counts.kept, counts


def test_judge_of_power_cuts_finds_what_is_not_synced() -> None:
    """Else it would prove nothing."""
    counts = power_cuts(40, seed=2, careless=True)
    assert counts.lost > 0
    assert counts.unjournalled > 0
    assert counts.wrong > 0


def test_judge_of_power_cuts_finds_a_rollback_journal_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SQL write that is synced as SQLite does by itself is taken back."""
    monkeypatch.setattr(database, "SYNCHRONOUS", "FULL")
    counts = power_cuts(60, seed=4)
    assert counts.unjournalled > 0
    assert counts.wrong > 0


def test_power_cuts_during_an_upgrade_leave_the_old_file_or_the_new_one() -> None:
    """From every earlier schema, and from larger pages."""
    counts = upgrade_cuts(75, seed=5)
    assert counts.cuts == 75
    assert counts.kept, counts


@pytest.mark.slow
def test_two_thousand_power_cuts_lose_nothing() -> None:
    """The same, other moments."""
    counts = power_cuts(2000, seed=3)
    assert counts.kept, counts
    counts = upgrade_cuts(500, seed=6)
    assert counts.kept, counts
