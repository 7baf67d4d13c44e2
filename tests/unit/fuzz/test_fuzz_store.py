"""A store whose bytes are anybody's: rows are found or not, the log's chain holds or does not, and nothing else."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edged.errors import ConfigError
from edged.store import audit, conversations, journal, lookup, opening, requests
from edged.store.database import Database
from edged.store.journal import Intent, Result, Step
from edged.store.recovery import mend, pages, salvage
from edged.store.recovery.pages import Column, Pages, Shape
from edged.store.schema import MIGRATIONS
from edged.types import AuditEntry, Status, ToolCall
from tests.support.fuzz import MIB, anything, cpu_s, damaged, json_values, peak_bytes, written
from tests.support.store import ANY, answer, ask, claim, put, store

SHAPES = (
    Shape("numbered", (Column("id", "INTEGER", required=False, alias=True), Column("name", "TEXT", required=True),
                       Column("data", "BLOB", required=False, stored=False))),
    Shape("keyed", (Column("name", "TEXT", required=True), Column("n", "INTEGER", required=True)), numbered=False),
)  # fmt: skip
SIZE = 512


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is such a place: a property makes hundreds of files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """A file with two tables, and a log beside it."""
    path = folder / "small.db"
    with contextlib.closing(apsw.Connection(str(path))) as c:
        c.execute(f"PRAGMA page_size = {SIZE}; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL").fetchall()
        c.execute("CREATE TABLE numbered(id INTEGER PRIMARY KEY, name TEXT NOT NULL, data BLOB) STRICT")
        c.execute("CREATE TABLE keyed(name TEXT, n INTEGER, PRIMARY KEY(name, n)) STRICT, WITHOUT ROWID")
        for n in range(40):
            c.execute("INSERT INTO numbered VALUES (?,?,?)", (n, f"row {n}", bytes(n * 50)))
            c.execute("INSERT INTO keyed VALUES (?,?)", (f"row {n}", n))
        c.wal_checkpoint()
        c.execute("UPDATE numbered SET name = 'later' WHERE id < 20")
        (folder / "copy.db").write_bytes(path.read_bytes())
        (folder / "copy.db-wal").write_bytes(path.with_name("small.db-wal").read_bytes())
    return folder / "copy.db"


def rows(file: bytes, log: bytes) -> list[tuple[Shape, tuple[Any, ...]]]:
    found = list(pages.rows(Pages(file, log, SIZE), SHAPES))
    for shape, values in found:
        numbered = [v for c, v in zip(shape.columns, values, strict=False) if not c.alias]
        assert len(values) <= len(shape.columns)
        assert all(isinstance(value, str | int | float | bytes | None) for value in numbered)
    return found


def read(path: Path) -> tuple[bytes, bytes]:
    """The file, and its log."""
    return path.read_bytes(), path.with_name(f"{path.name}-wal").read_bytes()


def test_rows_of_the_whole_file_are_there(small: Path) -> None:
    """What is damaged elsewhere is right here."""
    assert len(rows(*read(small))) == 80


@given(
    st.data(),
    st.lists(st.tuples(st.integers(0, 63), st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=9)), max_size=12),
)
def test_rows_of_a_damaged_file_are_rows(small: Path, data: st.DataObject, harm: list[tuple[int, int, bytes]]) -> None:
    """Pages written over anywhere; the log, too."""
    whole, log = read(small)
    file = bytearray(whole)
    for page, at, filling in harm:
        place = page % (len(file) // SIZE) * SIZE + at
        file[place : place + len(filling)] = filling
    rows(bytes(file[: len(whole)]), data.draw(st.just(log) | damaged(log)))


def leaf(kind: int, count: int, rest: bytes) -> bytes:
    """A page that says how many rows it has."""
    return (bytes([kind]) + bytes(2) + count.to_bytes(2) + bytes(3) + rest).ljust(SIZE, b"\xff")[:SIZE]


leaves = st.builds(leaf, st.sampled_from([0x0D, 0x0A, 0x02]), st.integers(0, 300), st.binary(max_size=SIZE))
LOG = struct.pack(">8I", 0x377F0682, 3007000, SIZE, 0, 1, 2, 3, 4)


@given(st.lists(st.binary(min_size=SIZE, max_size=SIZE) | leaves, max_size=6), anything(LOG))
@example([bytes(SIZE)] * 2 + [(b"\x0d\0\0\0\x01\0\0\0\0\x0a" + b"\xff" * 40).ljust(SIZE, b"\0")], b"")
def test_rows_of_any_bytes_are_rows(made: list[bytes], log: bytes) -> None:
    """Nothing but rows comes out, and there is an end."""
    rows(b"".join(made), log)


def looping(count: int) -> bytes:
    """A file in which every row of every page says that it goes on over the whole file, round and round."""
    length = count * SIZE - 100
    least = (SIZE - 12) * 32 // 255 - 23
    here = least + (length - least) % (SIZE - 4)
    here = here if here <= SIZE - 35 else least
    varint = bytes([0x80 | length >> 21, 0x80 | length >> 14 & 0x7F, 0x80 | length >> 7 & 0x7F, length & 0x7F])
    page = bytearray(SIZE)
    page[0] = 0x0D
    page[3:5] = (20).to_bytes(2)
    at = 60
    page[8:48] = at.to_bytes(2) * 20
    page[at : at + 5] = varint + b"\1"
    page[at + 5 + here : at + 9 + here] = (5).to_bytes(4)
    follow = (5).to_bytes(4).ljust(SIZE, b"\0")
    return bytes(page) * 4 + follow + bytes(page) * (count - 5)


def test_rows_that_lead_in_circles_come_to_an_end() -> None:
    """A page belongs to one row."""
    file = looping(2000)
    assert file[4 * SIZE] == 0
    assert cpu_s(lambda: rows(file, b"")) < 4
    assert peak_bytes(lambda: rows(looping(200), b"")) < 4 * MIB


# -- the daemon's own store --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(folder: Path) -> Path:
    """A store with requests in all states."""
    path = folder / "good.db"
    c = opening.open_file(path, MIGRATIONS)
    for n in range(20):
        requests.accept(c, ask(f"text {n}", id=f"q{n}", conversation="k"), f"rid{n:04}", "boot", 10_000, 2**30)
        row = claim(c)
        journal.intend(c, row.rid, 0, Intent(ToolCall("note", {"text": "x"}), None))
        journal.finish(c, row.rid, Step(0, Intent(ToolCall("note", {}), None), Result({"changes": 1}, True)))
        requests.settle(c, row.rid, Status.DONE, answer(row.rid))
        conversations.add_turn(c, row, (), 2e9, private=False)
        audit.append(c, AuditEntry(what="request.ended", who="c", rid=row.rid))
    for n in range(4):
        requests.accept(c, ask(f"later {n}", id=f"w{n}"), f"wait{n:04}", "boot", 10_000, 2**30)
    c.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    c.close()
    return path


harm = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40)), min_size=1, max_size=6)


@settings(max_examples=max(10, settings().max_examples // 10))  # each opens a file, and may salvage it
@given(harm, st.floats(0.5, 1))
@example([(1.0, b"\x80")], 1.0)  # text that is none, on a page that SQLite finds whole
@example([(0.0, b"\0"), (0.921875, b"\x80")], 1.0)  # in the name of a reply's field
async def test_damaged_store_is_opened_and_worked_with(folder: Path, good: Path, wounds: Any, kept: float) -> None:
    """Bytes anywhere in the file: what is in the queue can be claimed, what is finished has a reply."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        path = Path(made) / "edged.db"
        file = bytearray(good.read_bytes())
        for place, filling in wounds:
            at = int(place * (len(file) - 1))
            file[at : at + len(filling)] = filling
        path.write_bytes(file[: int(len(file) * kept)] if kept > 0.9 else file)
        salvage.marker(path).touch()
        opened = Database(path, MIGRATIONS, mend=mend.mend)
        await opened.start()
        try:
            await opened.write(worked)
        finally:
            await opened.stop()


def worked(c: apsw.Connection) -> None:
    """What a daemon does at its start, and when it is asked."""
    for row in lookup.latest(c, 1000):
        journal.steps(c, row.rid)
        conversations.history(c, row)
        if row.reply is not None:
            msgspec.json.decode(row.reply)
    requests.claim(c, ANY)
    audit.verify(c)
    audit.entries(c, 1000)


column = (
    json_values.map(written) | st.binary(max_size=20) | st.sampled_from([b"null", b"[]", b"{}", b'"\xff"', b"[" * 3000])
)
JSON_COLUMNS = (
    *(("requests", "body"), ("requests", "spent"), ("replies", "reply"), ("steps", "intent"), ("steps", "result")),
    *(("turns", "messages"), ("audit", "body"), ("model_sizes", "need")),
)


@given(st.sampled_from(JSON_COLUMNS), column | damaged(column), st.sampled_from(["", "wrong", "local_ok"]))
@example(("requests", "body"), b"[" * 5000, "")
@example(("requests", "spent"), b"[" * 5000, "")
@example(("requests", "body"), b'{"agent":"\xff","messages":[]}', "")
@example(("replies", "reply"), b"\xff", "")
@example(("replies", "reply"), b"{}", "")
@example(("steps", "intent"), b"\xff", "")
@example(("steps", "result"), b"[" * 5000, "")
@example(("turns", "messages"), b"x", "")
@example(("audit", "body"), b"x", "")
def test_columns_that_are_no_json_are_mended(where: tuple[str, str], value: bytes, findings: str) -> None:
    """Pages that are whole may hold anything all the same: a card that lies has no checksums."""
    c = store()
    for n in range(3):
        accepted = put(c, ask(f"t{n}", id=f"q{n}", conversation="k"))
        row = claim(c)
        journal.intend(c, accepted.rid, 0, Intent(ToolCall("note", {}), None))
        journal.finish(c, accepted.rid, Step(0, Intent(ToolCall("note", {}), None), Result({}, True)))
        if n < 2:
            requests.settle(c, accepted.rid, Status.DONE, answer(accepted.rid))
            conversations.add_turn(c, row, (), 2e9, private=False)
        audit.append(c, AuditEntry(what="x", who="c", rid=accepted.rid))
    c.execute("INSERT INTO model_sizes VALUES ('m', x'00', NULL, 0)")
    table, name = where
    c.execute(f"UPDATE {table} SET {name} = ?", (value,))
    c.execute("UPDATE requests SET findings = ? WHERE seq = 1", (findings,))
    mend.mend(c)
    worked(c)
    c.close()


entries = st.tuples(st.integers(-3, 6) | st.just(2**63 - 1), st.floats(allow_nan=False), column, st.binary(max_size=40))
anchors = st.none() | st.tuples(st.integers(-1, 5), st.binary(max_size=3))


@given(st.lists(entries, max_size=5), st.none() | st.text(max_size=5), anchors)
def test_any_audit_log_is_verified_and_shown(
    made: list[tuple[int, float, bytes, bytes]], who: str | None, anchor: tuple[int, bytes] | None
) -> None:
    """The chain holds, or the first row that is wrong is named; what cannot be read is shown as such."""
    c = store()
    for entry in made:
        c.execute("INSERT OR REPLACE INTO audit VALUES (?,?,?,?)", entry)
    if anchor:
        c.execute("INSERT INTO audit_anchor VALUES (0,?,?)", anchor)
    found = audit.verify(c, "00")
    assert (found.problem is None) is not bool(made)  # no hash of these is right
    for shown in audit.entries(c, 10, who=who):
        assert {"seq", "at", "what", "who", "about"} <= shown.keys()
    c.close()


@given(anything(b"SQLite format 3\0" + bytes(100)))
def test_any_file_is_a_store_or_refused(folder: Path, data: bytes) -> None:
    """By the command that reads the audit log."""
    path = folder / "other.db"
    path.write_bytes(data)
    with contextlib.suppress(ConfigError), audit.reading(path) as c:
        audit.verify(c)
        audit.entries(c, 10)
