"""Stores of every earlier edged: they are brought up to date with all that is in them."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import apsw
import pytest

from edged.errors import ConfigError
from edged.store import journal, lookup, opening, requests
from edged.store.recovery import mend, salvage
from edged.store.schema import MIGRATIONS
from tests.support import old_stores
from tests.support.old_stores import REPLY, STATES
from tests.support.store import ANY

# A script that was in use is never changed: files that were made by it exist. What changes is a new one behind them.
RELEASED = (
    "1b01c9662c063bba",
    "d9e8ba5c7c5819b5",
    "1ac46257404e1abc",
    "23dc3b0eab90e652",
    "ea776e7a47907402",
    "ef17966d63bdfdcb",
    "2188874145910a4a",
    "a318878cef4e4009",
    "4fb4d37206c1d99d",
    "e78a92fb044d4db5",
    "6f76e82a8789cdfd",
)


@pytest.mark.parametrize("schema", range(1, len(MIGRATIONS) + 1))
def test_store_of_every_earlier_schema_goes_on_with_what_it_has(schema: int, tmp_path: Path) -> None:
    """What waits is worked on, what ran is resumed with its journal, what was answered keeps its reply."""
    path = tmp_path / "edged.db"
    old_stores.make(path, schema)
    c = opening.open_file(path, MIGRATIONS)
    assert c.pragma("user_version") == len(MIGRATIONS)
    assert c.pragma("page_size") == opening.PAGE_BYTES
    assert c.pragma("integrity_check") == "ok"
    assert list(c.execute("PRAGMA foreign_key_check")) == []
    found = {row.rid: row for row in lookup.latest(c, 100)}
    assert sorted(found) == sorted(f"{state}1" for state in STATES)
    assert {rid for rid, row in found.items() if row.reply == REPLY} == {
        "answered1",
        "done1",
        "failed1",
        "quarantined1",
    }
    assert [row.rid for row in requests.recover(c, "b").rows] == ["running1"]
    requests.put_back(c, "running1")
    assert sorted(row.rid for row in requests.claim(c, ANY)) == ["received1", "running1"]
    assert len(journal.steps(c, "running1")) == 1
    c.close()


def test_migration_that_fails_leaves_the_rows_as_they_were(tmp_path: Path) -> None:
    """And the next start with a right one finds them."""
    path = tmp_path / "edged.db"
    old_stores.make(path, 2)
    wrong = (*MIGRATIONS[:2], "ALTER TABLE requests ADD COLUMN new TEXT; INSERT INTO nowhere VALUES (1)")
    with pytest.raises(apsw.SQLError):
        opening.open_file(path, wrong)
    c = opening.open_file(path, MIGRATIONS)
    assert len(lookup.latest(c, 100)) == len(STATES)
    c.close()


def test_store_of_a_newer_edged_is_refused_and_not_touched(tmp_path: Path) -> None:
    """Nor is it taken for damaged."""
    path = tmp_path / "edged.db"
    old_stores.make(path, 1)
    with contextlib.closing(apsw.Connection(str(path))) as c:
        c.pragma("user_version", len(MIGRATIONS) + 1)
    salvage.marker(path).touch()
    with pytest.raises(ConfigError, match="made by a newer edged"):
        opening.open_or_salvage(path, MIGRATIONS, mend.mend)
    assert not list(tmp_path.glob("*damaged*"))
    with contextlib.closing(apsw.Connection(str(path))) as c:
        assert c.execute("SELECT count(*) FROM requests").get == len(STATES)
        assert c.pragma("page_size") == 4096


def test_scripts_that_were_in_use_are_as_they_were() -> None:
    """A new column is a new script."""
    assert tuple(hashlib.sha256(script.encode()).hexdigest()[:16] for script in MIGRATIONS) == RELEASED
