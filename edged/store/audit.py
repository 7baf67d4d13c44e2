"""The audit log: who did what, when, and what came of it. A table of edged's own database, chained by hashes.

Each row's hash is made of the hash before it, its number, its time and its text, so a row that was changed, or taken
out of the middle, breaks the chain, and rows that were cut off at the end are missed by whoever knows a newer head
(status and base/state show it). What a chain cannot do: whoever may write to the file can write all of it anew. Keep
heads elsewhere, and compare (`edged requests audit --verify --head HASH`).

No texts of people or models are in it: of a tool's arguments numbers and words of an enumeration, of others the length.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import apsw
import msgspec
from msgspec import Struct

from edged.errors import ConfigError
from edged.host import clock
from edged.store.database import Database
from edged.store.opening import BUSY_MS
from edged.types import JSON, AuditEntry
from edged.types.json import spelled

log = logging.getLogger("edged.audit")

KEPT_ROWS = 10_000  # never forgotten for their age: a clock that jumps by years must not empty the log (3 MB)
FORGET = 256  # rows at once: keeps the writer's transactions short
MAX_WAITING = 1000  # entries on their way to the store; a flood of refusals is then counted instead
NO_HASH = bytes(32)  # before the first row

_NUMBERS = struct.Struct(">qd")


class Head(Struct, frozen=True):
    """The newest row: its number and hash, in hex. 0: there is none."""

    seq: int
    hash: str


class Found(Struct, frozen=True):
    """What a check found. first, last: numbers of rows; problem: what is wrong with the first bad one, None: nothing.
    knows: whether a head that was asked for is in the chain."""

    first: int
    last: int
    head: str
    problem: str | None = None
    knows: bool = False


@contextlib.contextmanager
def reading(path: Path) -> Iterator[apsw.Connection]:
    """A connection of another program than the daemon to the store at `path`.

    Raises:
        ConfigError: there is none, or one that cannot be read or has no log.
    """
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        raise ConfigError(str(path), "", f"the store cannot be read: {error}") from None
    try:
        connection.set_busy_timeout(BUSY_MS)
        connection.execute("SELECT 1 FROM audit LIMIT 1").fetchall()
        yield connection
    except apsw.Error as error:
        raise ConfigError(str(path), "", f"the audit log cannot be read: {error}") from None
    finally:
        connection.close()


def append(c: apsw.Connection, entry: AuditEntry) -> None:
    """Add a row, in whatever transaction this is."""
    last, before = c.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone() or _anchor(c)
    seq, at, body = cast(int, last) + 1, clock.wall(), _body(entry)
    c.execute("INSERT INTO audit VALUES (?,?,?,?)", (seq, at, body, chained(cast(bytes, before), seq, at, body)))


def _body(entry: AuditEntry) -> bytes:
    """An entry's text. Half a surrogate pair is spelled: what must not be missing here is the entry."""
    try:
        return msgspec.json.encode(entry)
    except UnicodeEncodeError:
        return msgspec.json.encode(spelled(msgspec.to_builtins(entry)))


def chained(before: bytes, seq: int, at: float, body: bytes) -> bytes:
    """The hash of a row behind another."""
    return hashlib.sha256(before + _NUMBERS.pack(seq, at) + body).digest()


def head(c: apsw.Connection) -> Head:
    """Of the chain as it is."""
    seq, made = c.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone() or _anchor(c)
    return Head(cast(int, seq), cast(bytes, made).hex())


def verify(c: apsw.Connection, known: str | None = None) -> Found:
    """Go through the whole chain. known: a hash, in hex, that has to be in it."""
    seq, before = _anchor(c)
    first, knows = seq + 1, known == before.hex()
    for number, at, body, made in c.execute("SELECT seq, at, body, hash FROM audit ORDER BY seq"):
        if number != seq + 1:
            return Found(first, seq, before.hex(), f"rows {seq + 1} to {number - 1} are missing", knows)
        if made != chained(before, number, at, body):
            return Found(first, seq, before.hex(), f"row {number} is not as it was written", knows)
        seq, before = number, made
        knows = knows or known == made.hex()
    return Found(first, seq, before.hex(), None, knows)


def entries(c: apsw.Connection, limit: int, *, who: str | None = None, rid: str | None = None) -> list[dict[str, JSON]]:
    """The newest, oldest first: `seq` and `at` (seconds since the epoch) beside the entry's own fields."""
    query = (
        "SELECT seq, at, body FROM (SELECT *, CASE WHEN json_valid(CAST(body AS TEXT)) THEN CAST(body AS TEXT) END said"
        " FROM audit) WHERE (:who IS NULL OR said ->> 'who' = :who)"
        " AND (:rid IS NULL OR said ->> 'rid' = :rid) ORDER BY seq DESC LIMIT :limit"
    )
    rows = c.execute(query, {"who": who, "rid": rid, "limit": limit}).fetchall()
    return [{"seq": seq, "at": at, **_said(cast(bytes, body))} for seq, at, body in reversed(rows)]


def _said(body: bytes) -> dict[str, JSON]:
    """What an entry says; one that was changed into nonsense, or lies on a page that was, is shown as such."""
    try:
        msgspec.json.decode(body, type=AuditEntry)
        return {"about": {}, **msgspec.json.decode(body)}
    except (ValueError, RecursionError):
        damaged = AuditEntry(what="audit.unreadable", who="", outcome="damaged", about={"bytes": len(body)})
        return cast("dict[str, JSON]", msgspec.to_builtins(damaged))


def forget(c: apsw.Connection, keep_s: float, *, crowded: bool = False) -> int:
    """Drop old rows from the beginning, and keep the hash behind which the rest goes on. Returns how many.

    Args:
        keep_s: of the newest rows' time; KEPT_ROWS stay whatever their age.
        crowded: the store is full: the oldest go, whatever their age.
    """
    last, newest = c.execute("SELECT coalesce(max(seq), 0), coalesce(max(at), 0) FROM audit").fetchone() or (0, 0)
    bound = f"SELECT seq, at, hash FROM audit WHERE seq <= ? ORDER BY seq LIMIT {FORGET}"
    gone = [
        (seq, made)
        for seq, at, made in c.execute(bound, (cast(int, last) - (FORGET if crowded else KEPT_ROWS),)).fetchall()
        if crowded or cast(float, at) < cast(float, newest) - keep_s
    ]
    if gone:
        seq, made = gone[-1]
        c.execute("INSERT OR REPLACE INTO audit_anchor VALUES (0, ?, ?)", (seq, made))
        c.execute("DELETE FROM audit WHERE seq <= ?", (seq,))
    return len(gone)


def masked(arguments: Mapping[str, JSON], told: Collection[str] = (), hidden: Collection[str] = ()) -> dict[str, JSON]:
    """A tool's arguments as the log may hold them: numbers and truth values, and texts of parameters in `told` (those
    with an enumeration). Of anything else, and of all in `hidden`, its length as JSON."""
    shown = {
        name
        for name, value in arguments.items()
        if name not in hidden and (value is None or isinstance(value, bool | int | float) or name in told)
    }
    return {
        name: value if name in shown else {"bytes": len(msgspec.json.encode(value))}
        for name, value in arguments.items()
    }


def _anchor(c: apsw.Connection) -> tuple[int, bytes]:
    found = c.execute("SELECT seq, hash FROM audit_anchor").fetchone()
    return cast("tuple[int, bytes]", found) if found else (0, NO_HASH)


class AuditLog:
    """Takes entries that belong to no commit of their own. They are written in the order in which they came, a moment
    later, with whatever else is written."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting = 0
        self._dropped = 0

    def note(self, entry: AuditEntry) -> None:
        """Never raises and never blocks: from the event loop. A refusal is in the daemon's log as well."""
        if entry.what.endswith(".refused"):
            log.info("%s: %s by %s: %s", entry.what, entry.outcome, entry.who, entry.about.get("reason"))
        if self._waiting >= MAX_WAITING:
            self._dropped += 1
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._post(AuditEntry(what="audit.dropped", who="edged", about={"entries": dropped}))
        self._post(entry)

    def _post(self, entry: AuditEntry) -> None:
        try:
            writing = self._database.post(lambda c: append(c, entry), durable=False, patient=True)
        except RuntimeError:  # before the store is opened, or after it was closed
            log.info("%s: %s by %s", entry.what, entry.outcome, entry.who)
            return
        self._waiting += 1
        writing.add_done_callback(self._written)

    def _written(self, done: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not done.cancelled() and (error := done.exception()) is not None:
            self._dropped += 1
            log.warning("an entry of the audit log was not written: %s", error)
