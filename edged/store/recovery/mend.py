"""After a salvage some rows are without their other half, or hold what nobody wrote there: they are put right, so that
every request still ends once and no step is done twice."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable
from typing import Any, cast

import apsw
import msgspec

from edged.host import clock
from edged.store import lifecycle, responses
from edged.store.conversations import Turn
from edged.store.journal import Intent, Result
from edged.store.learnt import Calls, Source
from edged.store.lifecycle import State
from edged.types import Fault, Finding, Format, MemoryNeed, Reply, Request, Spent, Status

DELIVERY_STATES = ("waiting", "ready", "delivered")  # see schema
LOST = "the reply was in a part of the store that was damaged"


def mend(c: apsw.Connection) -> None:
    """Put right what is without its other half, or cannot be read; of the newest schema."""
    for table in ("steps", "deliveries", "packets", "learnt"):
        c.execute(f"DELETE FROM {table} WHERE rid IS NOT NULL AND rid NOT IN (SELECT rid FROM requests)")
    c.execute("DELETE FROM replies WHERE seq NOT IN (SELECT seq FROM requests)")
    c.execute(
        f"DELETE FROM deliveries WHERE format NOT IN ({_marks(list(Format))})"
        f" OR state NOT IN ({_marks(DELIVERY_STATES)})",
        (*Format, *DELIVERY_STATES),
    )
    c.execute(f"DELETE FROM learnt WHERE source NOT IN ({_marks(list(Source))})", tuple(Source))
    for table, key, column, kind in (
        ("replies", "seq", "reply", Reply),
        ("turns", "client, agent, conversation, seq", "messages", Turn),
        ("learnt", "id", "calls", Calls),
        ("model_sizes", "model", "need", MemoryNeed),
    ):
        _drop_unreadable(c, table, key, column, kind)
    stored = c.execute("SELECT seq, input, body FROM responses").fetchall()
    bad = [(seq,) for seq, *packed in stored if not all(map(_is_packed, (list, dict), packed))]
    c.executemany("DELETE FROM responses WHERE seq = ?", bad)
    columns = "seq, agent, state, body, findings, spent, finished_wall"
    all_rows: Iterable[tuple[Any, ...]] = c.execute(f"SELECT {columns} FROM requests")
    for seq, agent in [(seq, agent) for seq, agent, *others in all_rows if not _can_be_read(*others)]:
        _end(c, seq, agent)
    _mend_steps(c)
    orphans = "finished_wall IS NOT NULL AND seq NOT IN (SELECT seq FROM replies)"
    for seq, rid, name in c.execute(f"SELECT seq, rid, id FROM requests WHERE {orphans}").fetchall():
        lost = Reply(
            id=cast("str | None", name), rid=cast(str, rid), status=Status.FAILED, error=Fault("internal", LOST)
        )
        c.execute("INSERT INTO replies VALUES (?,?)", (seq, msgspec.json.encode(lost)))
        c.execute("UPDATE requests SET status = 'failed' WHERE seq = ?", (seq,))
        c.execute("UPDATE deliveries SET state = 'ready' WHERE rid = ? AND state = 'waiting'", (rid,))
    # a chain with a hole proves nothing in front of it: it begins behind the last hole
    hole = "SELECT max(a.seq) FROM audit a WHERE NOT EXISTS (SELECT 1 FROM audit b WHERE b.seq = a.seq - 1)"
    if (first := c.execute(hole).get) is not None:
        anchor = c.execute("SELECT seq FROM audit_anchor").get or 0
        if first != cast(int, anchor) + 1:
            c.execute("INSERT OR REPLACE INTO audit_anchor SELECT 0, seq, hash FROM audit WHERE seq = ?", (first,))
            c.execute("DELETE FROM audit WHERE seq <= ?", (first,))


def _drop_unreadable(c: apsw.Connection, table: str, key: str, column: str, kind: Any) -> None:
    bad = [names for *names, body in c.execute(f"SELECT {key}, {column} FROM {table}") if not _is_a(kind, body)]
    which = " AND ".join(f"{name} = ?" for name in key.split(", "))
    for names in bad:
        c.execute(f"DELETE FROM {table} WHERE {which}", tuple(names))


def _mend_steps(c: apsw.Connection) -> None:
    """Without one of its steps nobody knows what a request has done: one that is not finished ends."""
    all_steps = c.execute("SELECT rid, step, intent, result FROM steps")
    bad = [
        (cast(str, rid), step)
        for rid, step, intent, result in all_steps
        if not (_is_a(Intent, intent) and (result is None or _is_a(Result, result)))
    ]
    for rid, step in bad:
        c.execute("DELETE FROM steps WHERE rid = ? AND step = ?", (rid, step))
        query = "SELECT seq, agent FROM requests WHERE rid = ? AND finished_wall IS NULL"
        for seq, agent in c.execute(query, (rid,)).fetchall():
            _end(c, cast(int, seq), cast(str, agent))


def _marks(values: Collection[str]) -> str:
    return ",".join("?" * len(values))


def _is_a(kind: Any, body: Any) -> bool:
    """Whether a column holds JSON of that kind."""
    try:
        body.decode()  # a field that the kind does not have is left out unread
        msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError, AttributeError):  # AttributeError: no bytes
        return False
    return True


def _is_packed(kind: Any, stored: Any) -> bool:
    try:
        return _is_a(kind, responses.unpacked(stored))
    except (zlib.error, TypeError):  # TypeError: no bytes
        return False


def _can_be_read(state: str, body: Any, findings: Any, spent: Any, finished_wall: float | None) -> bool:
    try:
        unfinished = State(state) in lifecycle.UNFINISHED
        [Finding(word) for word in findings.split()]
    except ValueError:
        return False
    readable = _is_a(Request, body) and (spent is None or _is_a(Spent, spent))
    return readable and unfinished == (finished_wall is None)


def _end(c: apsw.Connection, seq: int, agent: str) -> None:
    """What was asked is not known any more; that it was is."""
    body = msgspec.json.encode(Request(agent=agent, messages=()))
    c.execute(
        "UPDATE requests SET body = ?, state = ?, findings = '', spent = NULL,"
        " finished_wall = coalesce(finished_wall, ?) WHERE seq = ?",
        (body, State.FAILED, clock.wall(), seq),
    )
