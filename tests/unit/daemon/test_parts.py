"""What a daemon cannot live on with."""

from __future__ import annotations

import pytest

from edged.daemon.parts import Failure


async def test_the_first_failure_counts_and_each_is_logged_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    """What follows from it says less."""
    failure = Failure()
    assert failure.error is None
    failure.engine_died(MemoryError("no more"))
    failure.store_damaged(ValueError("no database"))
    assert failure.happened.is_set()
    assert "an engine's thread died: MemoryError('no more')" in str(failure.error)
    assert [record.event for record in caplog.records] == ["engine_died", "store_damage_met"]  # type: ignore[attr-defined]
