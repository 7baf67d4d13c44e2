"""A damaged store: set aside, never deleted; what can be read of it goes on in a new file.

Rows are read one after the other by their number; where a page is damaged the next ones are looked for behind it. Where
the list of tables, or the first page of one, is damaged nothing of it can be read so: the old file has it still, and
`sqlite3 FILE .recover` may find more. What is then without its other half is put right, so that nothing is done twice:
a finished request whose reply is lost stays known, and says so.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import apsw
import msgspec
from msgspec import Struct

from edged.types import Fault, Reply, Status

log = logging.getLogger("edged.store")

DAMAGE = (apsw.CorruptError, apsw.NotADBError)
SUSPECT = ".suspect"  # beside the file: it was found damaged while it was in use
MAX_GAP = 1 << 20  # rows that a damaged stretch is thought to hold at most; no page has so many
ROWLESS = {"steps", "turns", "spending", "model_sizes"}  # WITHOUT ROWID: read from both ends
LOST = "the reply was in a part of the store that was damaged"


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
    if named := _named(path):
        return named  # the power went while it was salvaged
    stamp, number = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), 0
    while (aside := path.with_name(f"{path.name}.damaged-{stamp}{f'-{number}' if number else ''}")).exists():
        number += 1
    marker(path).write_text(aside.name)
    for suffix in ("-wal", "-shm", ""):  # the file itself last: while it is here the marker names nothing yet
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def is_under_way(path: Path) -> bool:
    """Whether the file was set aside, and the new one is not in its place."""
    return not path.exists() and _named(path) is not None


def _named(path: Path) -> Path | None:
    with contextlib.suppress(OSError):
        if name := marker(path).read_text():
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
    found: dict[str, int] = {}
    try:
        old = apsw.Connection(str(damaged), flags=apsw.SQLITE_OPEN_READWRITE)  # its log may have to be replayed
    except apsw.Error:
        return found
    into.execute("PRAGMA foreign_keys = OFF")
    into.execute("BEGIN IMMEDIATE")
    with contextlib.closing(old):
        names = into.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for (name,) in names.fetchall():
            columns = [str(column) for _, column, *_ in into.execute(f"PRAGMA table_info({name})")]
            marks = ",".join("?" * len(columns))
            count = 0
            for row in _rows(old, cast(str, name), columns):
                into.execute(f"INSERT OR IGNORE INTO {name}({','.join(columns)}) VALUES ({marks})", row)
                count += into.changes()
            found[cast(str, name)] = count
    into.execute("COMMIT")
    into.execute("PRAGMA foreign_keys = ON")
    return found


def mend(c: apsw.Connection) -> None:
    """Put right what is without its other half; of the newest schema."""
    for table in ("steps", "deliveries", "packets"):
        c.execute(f"DELETE FROM {table} WHERE rid NOT IN (SELECT rid FROM requests)")
    c.execute("DELETE FROM replies WHERE seq NOT IN (SELECT seq FROM requests)")
    orphans = "finished_wall IS NOT NULL AND seq NOT IN (SELECT seq FROM replies)"
    for seq, rid, name in c.execute(f"SELECT seq, rid, id FROM requests WHERE {orphans}").fetchall():
        lost = Reply(
            id=cast("str | None", name), rid=cast(str, rid), status=Status.FAILED, error=Fault("internal", LOST)
        )
        c.execute("INSERT INTO replies VALUES (?,?)", (seq, msgspec.json.encode(lost)))
        c.execute("UPDATE requests SET status = 'failed' WHERE seq = ?", (seq,))
    # a chain with a hole proves nothing in front of it: it begins behind the last hole
    hole = "SELECT max(a.seq) FROM audit a WHERE NOT EXISTS (SELECT 1 FROM audit b WHERE b.seq = a.seq - 1)"
    if (first := c.execute(hole).get) is not None:
        anchor = c.execute("SELECT seq FROM audit_anchor").get or 0
        if first != cast(int, anchor) + 1:
            c.execute("INSERT OR REPLACE INTO audit_anchor SELECT 0, seq, hash FROM audit WHERE seq = ?", (first,))
            c.execute("DELETE FROM audit WHERE seq <= ?", (first,))


def _rows(old: apsw.Connection, table: str, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    listed = ",".join(columns)
    if table in ROWLESS:
        for order in ("", f" ORDER BY {','.join(_key(old, table))} DESC"):
            with contextlib.suppress(apsw.Error):
                yield from old.execute(f"SELECT {listed} FROM {table}{order}")
                return
        return
    last, gap = -1, 1
    while gap < MAX_GAP:
        try:
            for row in old.execute(f"SELECT rowid, {listed} FROM {table} WHERE rowid > ? ORDER BY rowid", (last,)):
                last, gap = cast(int, row[0]), 1
                yield row[1:]
        except apsw.Error:
            last, gap = last + gap, gap * 2
            continue
        return


def _key(old: apsw.Connection, table: str) -> list[str]:
    try:
        found = old.execute(f"PRAGMA table_info({table})").fetchall()
    except apsw.Error:
        return ["1"]
    return [str(row[1]) for row in sorted(found, key=lambda row: cast(int, row[5])) if row[5]] or ["1"]
