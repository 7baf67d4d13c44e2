"""Requests as rows of the store, and what is asked of them. Functions of a connection that only read, run by the
store's reader thread, or by its writer within a transaction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import apsw
import msgspec
from msgspec import Struct

from edged.host import clock
from edged.store.lifecycle import State
from edged.types import Finding, Priority, Request, Spent


class Row(Struct, frozen=True, kw_only=True):
    """A request in the store.

    attempts: that count against it, the running one included. ends: of the daemon, of any cause, while it ran; alone:
    of these, the last so many in a row, in which nothing else ran. begun: an attempt (of a claimed row: an earlier one)
    may have done something for it. remote: the work is done by an upstream or a server on this board, as far as is
    known. decision: of the router, see `router.in_words`; empty where none holds. clock_set: `accepted_wall` can
    be right.
    """

    seq: int
    rid: str
    client: str
    id: str | None
    transport: str
    agent: str
    conversation: str | None
    request: Request
    accepted_wall: float
    accepted_boot: float
    deadline_boot: float | None
    state: State
    attempts: int
    reply: bytes | None
    status: str | None
    findings: tuple[Finding, ...]
    spent: Spent | None = None
    begun: bool = True
    role: str = ""
    ends: int = 0
    alone: int = 0
    remote: bool = False
    decision: str = ""
    clock_set: bool = True


FIELDS = (
    "seq, rid, client, id, transport, agent, conversation, body, accepted_wall, accepted_boot, deadline_boot, state, "
    "attempts, status, findings, spent, role, ends, alone, remote, decision, clock_set, "
    "reply"
)
REPLY = "(SELECT reply FROM replies WHERE replies.seq = requests.seq)"
WAITING = "finished_wall IS NULL AND state IN ('received', 'waiting_link')"  # as the index of the unfinished has it
PARKED = "finished_wall IS NULL AND state = 'waiting_link'"
COLUMNS = FIELDS.removesuffix("reply") + REPLY


def get(c: apsw.Connection, rid: str) -> Row:
    """A request by its rid; KeyError."""
    row = c.execute(f"SELECT {COLUMNS} FROM requests WHERE rid = ?", (rid,)).fetchone()
    if not row:
        raise KeyError(rid)
    return as_row(row)


def find(
    c: apsw.Connection, name: str, client: str | None = None, *, role: str | None = None, transport: str | None = None
) -> Row | None:
    """A request by rid, or by the client's id (of one client, or the latest of any).

    Args:
        role, transport: only what was let in by this role, came in this way.
    """
    query = f"SELECT {COLUMNS} FROM requests WHERE (rid = :name OR id = :name)"
    if client is not None:
        query += " AND client = :client"
    if role is not None:
        query += " AND role = :role"
    if transport is not None:
        query += " AND transport = :transport"
    values = {"name": name, "client": client, "role": role, "transport": transport}
    row = c.execute(query + " ORDER BY rid = :name DESC, seq DESC LIMIT 1", values).fetchone()
    return as_row(row) if row else None


def latest(c: apsw.Connection, limit: int, states: tuple[State, ...] = (), client: str | None = None) -> list[Row]:
    """The newest requests first; of one client, where it is named."""
    wanted = [f"state IN ({marks(states)})"] if states else []
    wanted += ["client = ?"] if client is not None else []
    where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
    query = f"SELECT {COLUMNS} FROM requests {where} ORDER BY seq DESC LIMIT ?"
    return [as_row(row) for row in c.execute(query, (*states, *([] if client is None else [client]), limit))]


def counts(c: apsw.Connection) -> dict[str, int]:
    """Requests by state. Looks at every row."""
    return {cast(str, s): cast(int, n) for s, n in c.execute("SELECT state, count(*) FROM requests GROUP BY state")}


def unfinished(c: apsw.Connection) -> dict[str, int]:
    """The same of those without an outcome, from their index."""
    query = "SELECT state, count(*) FROM requests WHERE finished_wall IS NULL GROUP BY state"
    return {cast(str, s): cast(int, n) for s, n in c.execute(query)}


def ahead(c: apsw.Connection, row: Row) -> list[str]:
    """The agents of the requests that wait like this one and are taken before it, in that order."""
    later = float("inf") if row.deadline_boot is None else row.deadline_boot
    order = "ends = 0, alone, priority, coalesce(deadline_boot, 9e999), seq"
    priority = 1 if row.request.priority is Priority.BATCH else 0
    where = f"finished_wall IS NULL AND state = ? AND ({order}) < (?, ?, ?, ?, ?)"
    query = f"SELECT agent FROM requests WHERE {where} ORDER BY {order}"
    place = (row.ends == 0, row.alone, priority, later, row.seq)
    return [cast(str, agent) for (agent,) in c.execute(query, (row.state, *place))]


def is_parked(c: apsw.Connection, agents: tuple[str, ...]) -> bool:
    """Whether a request of these agents waits for a link."""
    query = f"SELECT 1 FROM requests WHERE {PARKED} AND agent IN ({marks(agents)}) LIMIT 1"
    return c.execute(query, agents).fetchone() is not None


def suspects(c: apsw.Connection) -> list[str]:
    """What waits in the queue and ran when the daemon ended."""
    query = "SELECT rid FROM requests WHERE finished_wall IS NULL AND state = 'received' AND ends > 0"
    return [cast(str, rid) for (rid,) in c.execute(query)]


def deadlines(c: apsw.Connection) -> tuple[list[Row], float | None]:
    """(waiting requests whose deadline has passed, the earliest deadline of the rest, on the boot clock)."""
    now = clock.boot()
    query = f"SELECT {COLUMNS} FROM requests WHERE {WAITING} AND deadline_boot <= ?"
    overdue = [as_row(row) for row in c.execute(query, (now,))]
    query = f"SELECT min(deadline_boot) FROM requests WHERE {WAITING} AND deadline_boot > ?"
    return overdue, cast("float | None", c.execute(query, (now,)).get)


def marks(values: Collection[object]) -> str:
    """Placeholders for so many values."""
    return ",".join("?" * len(values))


def as_row(values: tuple[Any, ...]) -> Row:
    """A row as it was read: `values` of COLUMNS."""
    row = dict(zip(FIELDS.split(", "), values, strict=True))
    request = msgspec.json.decode(row.pop("body"), type=Request)
    findings = tuple(Finding(word) for word in row.pop("findings").split())
    spent = row.pop("spent")
    return Row(
        **{**row, "state": State(row["state"]), "remote": bool(row["remote"]), "clock_set": bool(row["clock_set"])},
        request=request,
        findings=findings,
        spent=None if spent is None else msgspec.json.decode(spent, type=Spent),
        begun=row["attempts"] > 0 or row["ends"] > 0 or spent is not None,
    )
