"""Years in an hour: what a daemon holds returns to its level."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.soak import live

pytestmark = [pytest.mark.broker, pytest.mark.slow]

MINUTES = float(os.environ.get("EDGED_TEST_SOAK_MINUTES", "60"))


async def test_memory_descriptors_threads_and_tasks_return_to_their_level(tmp_path: Path) -> None:
    """Under load over every transport, reloads, broken links, clients that leave and strangers; nothing is lost."""
    life = await live(tmp_path, 60 * MINUTES, seed=1)
    grown = life.grown()
    assert life.verdict.kept, life.verdict
    assert life.mishaps > 5 * MINUTES
    assert grown["private"] < 4, life  # the interpreter's arenas are 1 MiB, and a few come and go
    assert grown["descriptors"] <= 3, life  # those of the kernel's pressure files come a moment after a reload
    assert grown["threads"] <= 4, life  # asyncio's pool
    assert grown["tasks"] <= 3, life
    assert grown["waiting"] <= 0, life
