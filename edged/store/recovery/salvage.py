"""A damaged store: set aside, never deleted; what can be read of it goes on in a new file.

Rows are read one after the other by their number; where a page is damaged the next ones are looked for behind it. What
no way leads to any more, because the list of tables or the way to their rows is damaged, is read from the pages
themselves (`pages`). What is then without its other half is put right, so that nothing is done twice: a finished
request whose reply is lost stays known, and says so.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import apsw
import msgspec
from msgspec import Struct

from edged.store.recovery import pages
from edged.store.recovery.pages import Column, Shape

log = logging.getLogger("edged.store")

UNREADABLE = (apsw.Error, UnicodeDecodeError)  # a row: its page is damaged, or its text is
DAMAGE = (apsw.CorruptError, apsw.NotADBError)
MET = (*DAMAGE, msgspec.DecodeError, UnicodeDecodeError)  # at work: also rows that hold what was never written there
SUSPECT = ".suspect"  # beside the file: it was found damaged while it was in use
MAX_GAP = 1 << 20  # rows that a damaged stretch is thought to hold at most; no page has so many
ROWLESS = {"steps", "turns", "spending", "model_sizes"}  # WITHOUT ROWID: read from both ends
SHAPELESS = {"spending", "model_sizes", "audit_anchor"}  # their rows look like those of others, or are soon made anew
PAGE_SIZES = (512, 1024, 2048, 4096)  # that an edged has ever used; the first one where the file does not say
LAST = 1 << 16  # behind every column of a key
TOGETHER = 1000  # rows in a transaction


class Salvaged(Struct, frozen=True):
    """What became of a damaged store: where it lies now, and rows by table that could be read."""

    aside: str
    rows: dict[str, int]

    def __str__(self) -> str:
        read = ", ".join(f"{count} {table}" for table, count in self.rows.items() if count) or "nothing"
        return f"the store was damaged; it lies in {self.aside} now, and what could be read of it goes on: {read}"


def is_suspect(path: Path) -> bool:
    """Whether the file has to be looked at: it was not closed, or was found damaged. A clean stop leaves one file."""
    log_file = path.with_name(path.name + "-wal")
    return marker(path).exists() or (log_file.exists() and log_file.stat().st_size > 0)


def marker(path: Path) -> Path:
    """The file that says so."""
    return path.with_name(path.name + SUSPECT)


def is_whole(connection: apsw.Connection) -> bool:
    """Whether SQLite finds nothing wrong. Reads all of the file: a second for 40 MB of a slow card."""
    return bool(connection.execute("PRAGMA quick_check(1)").get == "ok")


def set_aside(path: Path) -> Path:
    """Rename the file and what belongs to it; nothing is ever deleted. Returns its new name, which the marker keeps
    until the new file is in its place."""
    if not path.exists() and (named := _named(path)):  # the power went while it was salvaged
        _move_rest(path, named)
        return named
    stamp, number = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), 0
    while (aside := path.with_name(f"{path.name}.damaged-{stamp}{f'-{number}' if number else ''}")).exists():
        number += 1
    with marker(path).open("w", encoding="utf-8") as file:
        file.write(aside.name)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path)
    path.rename(aside)  # from here on `is_under_way`: nobody opens its log without it
    _sync_folder(path)
    _move_rest(path, aside)
    return aside


def put_in_place(new: Path, path: Path) -> None:
    """The new file, wholly written, is the store from here on."""
    new.rename(path)
    _sync_folder(path)
    marker(path).unlink(missing_ok=True)


def _move_rest(path: Path, aside: Path) -> None:
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    _sync_folder(path)


def _sync_folder(path: Path) -> None:
    """Names that changed are on the medium."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_under_way(path: Path) -> bool:
    """Whether the file was set aside, and the new one is not in its place."""
    return not path.exists() and _named(path) is not None


def _named(path: Path) -> Path | None:
    with contextlib.suppress(OSError):
        if name := marker(path).read_text(encoding="utf-8"):
            aside = path.with_name(name)
            return aside if aside.exists() else None
    return None


def version(damaged: Path, newest: int) -> int:
    """The schema of a damaged file; the newest where it does not say."""
    try:
        with contextlib.closing(apsw.Connection(str(damaged), flags=apsw.SQLITE_OPEN_READWRITE)) as old:
            return min(newest, cast(int, old.pragma("user_version"))) or newest
    except apsw.Error:
        return newest


def copy(damaged: Path, into: apsw.Connection) -> dict[str, int]:
    """Bring over what can be read, table by table. `into` has the same schema, and no rows."""
    into.execute("PRAGMA foreign_keys = OFF")
    names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    tables = {cast(str, name): 0 for (name,) in into.execute(names)}
    broken = set()
    # it is written to as well: its log may have to be replayed
    with contextlib.closing(apsw.Connection(str(damaged), flags=apsw.SQLITE_OPEN_READWRITE)) as old:
        for name in tables:
            columns = [str(column) for _, column, *_ in into.execute(f"PRAGMA table_info({name})")]
            reading = _Reading(old, name, columns)
            tables[name] = _insert(into, ((name, columns, row) for row in reading))
            if not reading.whole:
                broken.add(name)
    if broken:
        shapes = tuple(shape(into, name) for name in tables if name in broken - SHAPELESS)
        for name, row_count in _carve(damaged, into, shapes).items():
            tables[name] += row_count
    into.execute("PRAGMA foreign_keys = ON")
    return tables


def shape(c: apsw.Connection, table: str) -> Shape:
    """How the rows of a table are stored: without a number of their own the key comes first."""
    rowless = bool(c.execute("SELECT wr FROM pragma_table_list(?)", (table,)).get)
    query = 'SELECT name, type, "notnull" OR pk, dflt_value IS NULL, pk FROM pragma_table_info(?)'
    found = c.execute(query, (table,))
    columns = [
        (
            cast(int, pk),
            Column(
                cast(str, name),
                cast(str, kind),
                required=bool(required),
                stored=bool(undefaulted and (required or rowless)),
                alias=bool(pk) and not rowless,
            ),
        )
        for name, kind, required, undefaulted, pk in found
    ]
    if rowless:
        columns.sort(key=lambda each: each[0] or LAST)
    return Shape(table, tuple(column for _, column in columns), not rowless)


def _carve(damaged: Path, into: apsw.Connection, shapes: tuple[Shape, ...]) -> dict[str, int]:
    """Rows that no tree leads to any more, from the pages themselves; those that are there already stay as they are."""
    counts = {each.table: 0 for each in shapes}
    with contextlib.ExitStack() as stack:
        file, log_file = (
            stack.enter_context(_mapped(path)) for path in (damaged, damaged.with_name(damaged.name + "-wal"))
        )
        size = int.from_bytes(file[16:18])
        found = pages.rows(pages.Pages(file, log_file, size if size in PAGE_SIZES else PAGE_SIZES[0]), shapes)
        for each, values in found:
            columns = [column.name for column in each.columns[: len(values)]]
            counts[each.table] += _insert(into, [(each.table, columns, values)])
    return counts


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    if not path.exists() or not path.stat().st_size:
        yield b""
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def _insert(into: apsw.Connection, rows: Iterable[tuple[str, list[str], tuple[Any, ...]]]) -> int:
    """Returns how many are new. In small transactions: a log of all of it would need its room once more."""
    count = 0
    into.execute("BEGIN IMMEDIATE")
    for number, (table, columns, row) in enumerate(rows, start=1):
        marks = ",".join("?" * len(row))
        with contextlib.suppress(apsw.ConstraintError):  # of another type than its column: damaged
            into.execute(f"INSERT OR IGNORE INTO {table}({','.join(columns)}) VALUES ({marks})", row)
            count += into.changes()
        if number % TOGETHER == 0:
            into.execute("COMMIT")
            into.execute("BEGIN IMMEDIATE")
    into.execute("COMMIT")
    return count


class _Reading:
    """The rows of a table, by the way that SQLite has to them. whole: nothing was in the way."""

    def __init__(self, old: apsw.Connection, table: str, columns: list[str]) -> None:
        self._old, self._table, self._listed = old, table, ",".join(columns)
        self.whole = True

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._from_both_ends() if self._table in ROWLESS else self._by_number()

    def _from_both_ends(self) -> Iterator[tuple[Any, ...]]:
        for order in ("", f" ORDER BY {','.join(_key(self._old, self._table))} DESC"):
            try:
                yield from self._old.execute(f"SELECT {self._listed} FROM {self._table}{order}")
                return
            except UNREADABLE:
                self.whole = False

    def _by_number(self) -> Iterator[tuple[Any, ...]]:
        query = f"SELECT rowid, {self._listed} FROM {self._table} WHERE rowid > ? ORDER BY rowid"
        last, gap = -1, 1
        while gap < MAX_GAP:
            try:
                for row in self._old.execute(query, (last,)):
                    last, gap = cast(int, row[0]), 1
                    yield row[1:]
            except UNREADABLE:
                self.whole = False
                last, gap = last + gap, gap * 2
                continue
            return


def _key(old: apsw.Connection, table: str) -> list[str]:
    try:
        found = old.execute(f"PRAGMA table_info({table})").fetchall()
    except apsw.Error:
        return ["1"]
    return [str(row[1]) for row in sorted(found, key=lambda row: cast(int, row[5])) if row[5]] or ["1"]
