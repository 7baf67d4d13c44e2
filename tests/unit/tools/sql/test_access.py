"""Databases whose files or folder this process may not write: what SQLite only calls read-only."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edged.config import Database, SqlTool
from edged.errors import ToolFailed
from edged.tools.sql.database import SqlDatabase
from tests.support.sealed import sealed

READ = SqlTool(description="d", database="plant", sql="SELECT a FROM t")
WRITE = SqlTool(description="d", database="plant", sql="INSERT INTO t VALUES (1)", effect="write", timeout_s=5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database in a folder of its own, whose journal is deleted after each write."""
    (tmp_path / "data").mkdir()
    found = tmp_path / "data" / "plant.db"
    run(found, "CREATE TABLE t(a); INSERT INTO t VALUES (7)")
    return found


@pytest.fixture
async def database(path: Path) -> AsyncIterator[SqlDatabase]:
    opened = SqlDatabase("plant", Database(path=str(path), mode="rw"))
    yield opened
    await opened.stop()


def run(path: Path, script: str) -> None:
    """By another SQLite library."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


async def test_file_that_cannot_be_written_fails_the_writes_and_no_read(database: SqlDatabase, path: Path) -> None:
    """Before anybody calls, and in the same words when somebody does."""
    with sealed(path):
        with pytest.raises(ToolFailed, match=f"database 'plant': {path} cannot be written by ") as found:
            await database.check(WRITE)
        with pytest.raises(ToolFailed) as called:
            await database.write(WRITE, {}, "r", 0)
        assert called.value.message == found.value.message
        await database.check(READ)
        assert (await database.read(READ, {}))["rows"] == [{"a": 7}]
    await database.check(WRITE)
    assert (await database.write(WRITE, {}, "r", 0))["changes"] == 1


async def test_folder_that_takes_no_journal_fails_the_writes_and_no_read(database: SqlDatabase, path: Path) -> None:
    """The file itself may be written, and SQLite needs its folder all the same."""
    with sealed(path.parent):
        with pytest.raises(ToolFailed, match=f"{path.parent} cannot be written by .* makes a journal there"):
            await database.check(WRITE)
        await database.check(READ)
        assert (await database.read(READ, {}))["rows"] == [{"a": 7}]


async def test_read_of_a_wal_database_in_such_a_folder_is_told_what_it_needs(database: SqlDatabase, path: Path) -> None:
    """SQLite's own words are about a write that nobody wants."""
    run(path, "PRAGMA journal_mode = WAL")
    with sealed(path.parent):
        for attempt in (database.check(READ), database.read(READ, {}), database.check(WRITE)):
            with pytest.raises(ToolFailed) as failed:
                await attempt
            told = failed.value.message
            assert f"{path.parent} cannot be written by " in told
            assert "in WAL mode, in which SQLite makes files there even for a read" in told
            assert "PRAGMA journal_mode = DELETE" in told
            assert "attempt to write" not in told


async def test_file_beside_it_that_another_user_left_is_named(database: SqlDatabase, path: Path) -> None:
    """A program that was run once as root leaves its WAL index to root."""
    run(path, "PRAGMA journal_mode = WAL")
    index = Path(f"{path}-shm")
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("SELECT a FROM t").fetchall()
        with sealed(index), pytest.raises(ToolFailed, match=f"{index} cannot be written by "):
            await database.check(WRITE)
    await database.check(WRITE)


async def test_lock_of_another_program_says_nothing_against_a_write(database: SqlDatabase, path: Path) -> None:
    """Who holds it writes, so it can be written."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await database.check(WRITE)


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
async def test_look_at_a_database_leaves_it_as_it_is(database: SqlDatabase, path: Path, mode: str) -> None:
    """Every byte of it, and no row for edged's own book of effects."""
    run(path, f"PRAGMA journal_mode = {mode}")
    before = path.read_bytes()
    await database.check(WRITE)
    await database.stop()
    assert path.read_bytes() == before
    assert (
        sum(Path(f"{path}{end}").stat().st_size for end in ("-wal", "-journal") if Path(f"{path}{end}").exists()) == 0
    )


async def test_wal_that_a_program_left_is_not_moved_by_a_look(database: SqlDatabase, path: Path) -> None:
    """What is in it is the user's; SQLite would do so at a close."""
    run(path, "PRAGMA journal_mode = WAL")
    wal = Path(f"{path}-wal")
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.executescript("INSERT INTO t VALUES (8)")
        left = wal.read_bytes()
    wal.write_bytes(left)
    before = path.read_bytes()
    await database.check(WRITE)
    await database.stop()
    assert (path.read_bytes(), wal.read_bytes()) == (before, left)
