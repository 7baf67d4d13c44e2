"""Rows from pages: the same that SQLite finds in a file that is whole."""

from __future__ import annotations

import contextlib
import math
import random
from pathlib import Path
from typing import Any

import apsw
import pytest

from edged.store.recovery import pages, salvage
from edged.store.recovery.pages import Column, Pages, Shape

TABLES = """
    CREATE TABLE numbered(id INTEGER PRIMARY KEY, name TEXT NOT NULL, at REAL, data BLOB, n INTEGER) STRICT;
    CREATE TABLE keyed(data BLOB, n INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY(name, n)) STRICT, WITHOUT ROWID;
    CREATE INDEX by_name ON numbered(name);
"""
NAMES = ("numbered", "keyed")
ROWS: list[tuple[Any, ...]] = [
    (1, "", None, None, None),
    (2, "one", 1.0, b"", 0),
    (3, "two", 0.5, b"x" * 400, 1),
    (4, "\N{GREEK SMALL LETTER ALPHA}" * 300, -math.inf, bytes(range(256)) * 40, -1),
    (5, "a", 1e300, b"y" * 470, 127),
    (2**40, "b", -0.25, b"y" * 60, -(2**15)),
    (2**63 - 1, "c", 3.0, b"y" * 61, 2**23),
    (7, "d", None, b"", 2**31),
    (8, "e", None, b"", -(2**47)),
    (9, "f", None, b"", -(2**63)),
]


def made(path: Path, size: int) -> apsw.Connection:
    """A file with these rows and enough others that its trees are deep."""
    c = apsw.Connection(str(path))
    c.execute(f"PRAGMA page_size = {size}; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL").fetchall()
    c.wal_autocheckpoint(0)
    c.execute(TABLES)
    more = [(number, f"row {number}", number / 7, b"z" * (number % 700), number) for number in range(100, 600)]
    with c:
        for row in ROWS + more:
            c.execute("INSERT INTO numbered VALUES (?,?,?,?,?)", row)
            c.execute("INSERT INTO keyed VALUES (?,?,?)", (row[3], row[4] or 0, f"{row[0]} {row[1]}"))
    return c


def read(path: Path, c: apsw.Connection, size: int) -> dict[str, set[tuple[Any, ...]]]:
    """By table, what lies on the pages of the file and its log."""
    shapes = tuple(salvage.shape(c, name) for name in NAMES)
    log = path.with_name(path.name + "-wal")
    found: dict[str, set[tuple[Any, ...]]] = {name: set() for name in NAMES}
    for shape, values in pages.rows(Pages(path.read_bytes(), log.read_bytes() if log.exists() else b"", size), shapes):
        found[shape.table].add(values)
    return found


def wanted(c: apsw.Connection) -> dict[str, set[tuple[Any, ...]]]:
    """What SQLite finds; of the one without numbers the key comes first."""
    return {
        "numbered": set(c.execute("SELECT * FROM numbered")),
        "keyed": set(c.execute("SELECT name, n, data FROM keyed")),
    }


@pytest.mark.parametrize("size", [512, 1024, 4096])
@pytest.mark.parametrize("copied", [False, True], ids=["in the log", "in the file"])
def test_all_rows_are_found(size: int, copied: bool, tmp_path: Path) -> None:
    """Numbers of every length, long texts over several pages, both kinds of tables; each once."""
    path = tmp_path / "x.db"
    with contextlib.closing(made(path, size)) as c:
        if copied:
            c.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        assert read(path, c, size) == wanted(c)


def test_log_counts_as_far_as_it_is_committed(tmp_path: Path) -> None:
    """What a power cut tore, and what is left of an earlier turn, does not."""
    path = tmp_path / "x.db"
    with contextlib.closing(made(path, 512)) as c:
        before = wanted(c)
        size = path.with_name("x.db-wal").stat().st_size
        with c:
            c.execute("DELETE FROM numbered WHERE id > 100")
        log = path.with_name("x.db-wal").read_bytes()
        shapes = tuple(salvage.shape(c, name) for name in NAMES)
        for length in (size, size + 100, len(log) - 536, len(log) - 1):
            found = {v for s, v in pages.rows(Pages(path.read_bytes(), log[:length], 512), shapes) if s.numbered}
            assert found == before["numbered"]
        torn = bytearray(log)
        torn[-1] ^= 1
        found = {v for s, v in pages.rows(Pages(path.read_bytes(), bytes(torn), 512), shapes) if s.numbered}
        assert found == before["numbered"]
        assert read(path, c, 512)["numbered"] == wanted(c)["numbered"]


def test_free_pages_are_left_out(tmp_path: Path) -> None:
    """Deleted rows lie on them until they are used again."""
    path = tmp_path / "x.db"
    with contextlib.closing(made(path, 512)) as c:
        with c:
            c.execute("DELETE FROM numbered WHERE id > 300")
        c.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        assert c.pragma("freelist_count") > 50
        assert read(path, c, 512)["numbered"] == wanted(c)["numbered"]


def test_random_pages_are_no_rows_and_no_error(tmp_path: Path) -> None:
    """Whatever stands there."""
    path = tmp_path / "x.db"
    with contextlib.closing(made(path, 512)) as c:
        c.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        whole, good = path.read_bytes(), wanted(c)["numbered"]
        shapes = tuple(salvage.shape(c, name) for name in NAMES)
    chance = random.Random(1)  # reproducible
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(200):
            content[chance.randrange(1024, len(content))] = chance.randrange(256)
        found = {v for s, v in pages.rows(Pages(bytes(content), b"", 512), shapes) if s.numbered}
        assert len(found & good) > len(good) / 4


NUMBERED = Shape(
    "t",
    (Column("id", "INTEGER", True, alias=True), Column("a", "TEXT", True), Column("b", "REAL", False, stored=False)),
)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ((None, "x", 1.0), True),
        ((None, "x", 1), True),  # whole numbers are stored so
        ((None, "x", None), True),
        ((None, "x"), True),  # the column was added later
        ((None,), False),
        ((None, None, 1.0), False),
        ((None, b"x", 1.0), False),
        ((None, "x", "1.0"), False),
        ((1, "x", 1.0), False),
        ((None, "x", 1.0, 2), False),
        ((), False),
    ],
)
def test_shape_tells_whose_row_it_is(values: tuple[Any, ...], fits: bool) -> None:
    """Types, what is required, and how many."""
    assert pages.fits(NUMBERED, values) is fits
