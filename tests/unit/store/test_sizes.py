"""Sizes of models in the store."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edged.store import sizes
from edged.store.database import Database
from edged.store.schema import MIGRATIONS
from edged.types import KnownSize, MemoryNeed
from tests.support.store import store

NEED = MemoryNeed(weights=1, kv=2)


async def test_sizes_outlive_the_daemon(tmp_path: Path) -> None:
    """With what was measured."""
    for size in (None, KnownSize(NEED), KnownSize(NEED, 7)):
        database = Database(tmp_path / "edged.db", MIGRATIONS)
        await database.start()
        book = sizes.Sizes(database)
        assert await book.known("m") == size
        await book.keep("m", KnownSize(NEED, 7 if size else None))
        await database.stop()


def test_models_that_were_not_used_for_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table does not grow with every update of a library."""
    c = store()
    for i in range(sizes.KEPT + 2):
        monkeypatch.setattr(time, "time", lambda i=i: float(i))
        sizes.keep(c, f"m{i}", KnownSize(NEED))
    assert c.execute("SELECT count(*) FROM model_sizes").get == sizes.KEPT
    assert sizes.known(c, "m1") is None
    assert sizes.known(c, "m2") == KnownSize(NEED)
