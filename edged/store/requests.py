"""The inbox: requests come in once, are claimed, and end with one reply. Functions of a connection, run by the store's
writer thread (those that only read: by its reader). Identity rules: CONTRACT section 3."""

from __future__ import annotations

from typing import Any, cast

import apsw
import msgspec
from msgspec import Struct, structs

from edged import wire
from edged.errors import BadRequest, Busy, EdgedError, NoLink
from edged.host import clock
from edged.store import lifecycle, outbox
from edged.store.lifecycle import Happening, IllegalTransition, State
from edged.types import Ask, Finding, Message, PastTurn, Priority, Request, Spent, Status

FINISH_GUESS_S = 2.0  # retry_after_s of a full queue: about the time one tool call takes on a small board


FULL_RETRY_S = 60.0  # what fills a store is not gone sooner: replies that nobody takes, requests that wait for a link


class StoreFullError(Busy):
    """[store] max_bytes is reached."""


class Accepted(Struct, frozen=True):
    """What became of a request that was handed in. known: it had been asked before; reply: its stored reply."""

    rid: str
    known: bool = False
    reply: bytes | None = None


class Row(Struct, frozen=True, kw_only=True):
    """A request in the store. begun: an attempt (of a claimed row: an earlier one) may have done something for it."""

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


FIELDS = (
    "seq, rid, client, id, transport, agent, conversation, body, accepted_wall, accepted_boot, deadline_boot, state, "
    "attempts, status, findings, spent, role, reply"
)
REPLY = "(SELECT reply FROM replies WHERE replies.seq = requests.seq)"
WAITING = "finished_wall IS NULL AND state IN ('received', 'waiting_link')"  # as the index of the unfinished has it
PARKED = "finished_wall IS NULL AND state = 'waiting_link'"
COLUMNS = FIELDS.removesuffix("reply") + REPLY


def accept(
    c: apsw.Connection,
    ask: Ask,
    rid: str,
    boot: str,
    max_waiting: int,
    max_bytes: int,
    *,
    log_bytes: int = 0,
    refusal: EdgedError | None = None,
) -> Accepted:
    """Take a request in, unless it is known.

    (1) an MQTT packet that is delivered again and was committed: the request it made;
    (2) the same identity with the same content: joined, or answered from the store;
    (3) the same identity with other content: BadRequest;
    (4) nothing new is taken: `refusal`; the queue, or the store, is full: Busy;
    (5) else it is new.

    Args:
        max_bytes: what the store may take; log_bytes: what its log takes of that.
    """
    if ask.packet and ask.packet.duplicate:  # (1)
        known = c.execute("SELECT rid FROM packets WHERE mid = ? AND digest = ?", (ask.packet.mid, ask.packet.digest))
        if (rid_known := known.get) is not None:
            return Accepted(cast(str, rid_known), known=True)
    key, digest = identity(ask), wire.digest(ask.request)
    found = c.execute(
        f"SELECT rid, digest, {REPLY} FROM requests WHERE client = ? AND key = ?", (ask.caller.client, key)
    ).fetchone()
    if found:
        if found[1] != digest:  # (3)
            raise BadRequest(f"{_named(ask)} was used for another request; a new request needs a new one")
        accepted = Accepted(cast(str, found[0]), known=True, reply=cast("bytes | None", found[2]))  # (2)
        if ask.address:
            outbox.expect(c, accepted.rid, ask.caller.transport, ask.address, answered=accepted.reply is not None)
        _remember_packet(c, ask, accepted.rid)
        return accepted
    if refusal is not None:  # (4)
        raise refusal
    _check_room(c, max_waiting, max_bytes, log_bytes)
    _insert(c, ask, rid, key, digest, boot)  # (5)
    if ask.address:
        outbox.expect(c, rid, ask.caller.transport, ask.address, answered=False)
    _remember_packet(c, ask, rid)
    return Accepted(rid)


def identity(ask: Ask) -> str | None:
    """What names the request beside its client; None: every time it is sent it is asked."""
    return f"id:{ask.request.id}" if ask.request.id is not None else ask.key


def _named(ask: Ask) -> str:
    return f"id {ask.request.id!r}" if ask.request.id is not None else "this Correlation Data"


def _check_room(c: apsw.Connection, max_waiting: int, max_bytes: int, log_bytes: int) -> None:
    waiting = cast(
        int, c.execute("SELECT count(*) FROM requests WHERE finished_wall IS NULL AND state = 'received'").get
    )
    if waiting >= max_waiting:
        raise Busy(
            f"{waiting} requests wait already, and [queue] max_waiting is {max_waiting}", retry_after_s=FINISH_GUESS_S
        )
    if used_bytes(c) + log_bytes >= max_bytes:
        why = f", {log_bytes} of them a log that grows while another program reads edged.db" if log_bytes else ""
        raise StoreFullError(f"the store is full ([store] max_bytes is {max_bytes}{why})", retry_after_s=FULL_RETRY_S)


def is_crowded(c: apsw.Connection, max_bytes: int) -> bool:
    """Whether what is finished has to go, so that there is room before anybody has to be refused."""
    return used_bytes(c) > max_bytes * 9 // 10


def used_bytes(c: apsw.Connection) -> int:
    """Bytes of the file that hold something."""
    pages, free, size = (cast(int, c.pragma(p)) for p in ("page_count", "freelist_count", "page_size"))
    return (pages - free) * size


def _insert(c: apsw.Connection, ask: Ask, rid: str, key: str | None, digest: bytes, boot: str) -> None:
    priority = ask.request.priority or ask.caller.highest
    request, now = msgspec.structs.replace(ask.request, priority=priority), clock.boot()
    limits = [limit for limit in (request.deadline_s, ask.expiry_s) if limit is not None]
    c.execute(
        "INSERT INTO requests(rid, client, key, digest, id, transport, agent, conversation, priority, body, boot,"
        " accepted_wall, accepted_boot, deadline_boot, state, role) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            rid,
            ask.caller.client,
            key,
            digest,
            request.id,
            ask.caller.transport,
            request.agent,
            request.conversation,
            1 if priority is Priority.BATCH else 0,
            msgspec.json.encode(request),
            boot,
            clock.wall(),
            now,
            now + min(limits) if limits else None,
            State.RECEIVED,
            ask.caller.role,
        ),
    )


PACKETS_KEPT = 256  # several times the Receive Maximum: no broker redelivers what lies further back


def _remember_packet(c: apsw.Connection, ask: Ask, rid: str) -> None:
    if not ask.packet:
        return
    c.execute(
        "INSERT OR REPLACE INTO packets(mid, seq, digest, rid)"
        " VALUES (?, (SELECT coalesce(max(seq), 0) + 1 FROM packets), ?, ?)",
        (ask.packet.mid, ask.packet.digest, rid),
    )
    c.execute("DELETE FROM packets WHERE seq <= (SELECT max(seq) FROM packets) - ?", (PACKETS_KEPT,))


def forget_packets(c: apsw.Connection) -> None:
    """The broker began a new session: its packet ids mean nothing any more."""
    c.execute("DELETE FROM packets")


CLAIM = f"""
    UPDATE requests SET state = 'running', attempts = attempts + 1 WHERE seq = (
        SELECT seq FROM requests r
        WHERE finished_wall IS NULL AND state = 'received' AND priority <= ? AND (r.conversation IS NULL OR NOT EXISTS (
            SELECT 1 FROM requests o
            WHERE o.client = r.client AND o.agent = r.agent AND o.conversation = r.conversation
            AND o.state IN ('received', 'running', 'waiting_link') AND o.conversation IS NOT NULL AND o.seq < r.seq))
        ORDER BY attempts = 0, priority, deadline_boot IS NULL, deadline_boot, seq LIMIT 1)
    RETURNING {COLUMNS}
"""


class Places(Struct, frozen=True):
    """How many requests may be begun: of any kind, and of batch work among them."""

    all: int
    batch: int


def claim(c: apsw.Connection, places: Places) -> list[Row]:
    """The next requests to work on: what ran when the daemon died goes first, then interactive before batch, earliest
    deadline first, a conversation in its order."""
    rows: list[Row] = []
    batch = places.batch
    while len(rows) < places.all:
        found = c.execute(CLAIM, (1 if batch > 0 else 0,)).fetchone()
        if found is None:
            break
        row = _row(found)
        rows.append(structs.replace(row, begun=row.attempts > 1 or row.spent is not None))
        batch -= rows[-1].request.priority is Priority.BATCH
    return rows


def release(c: apsw.Connection, rid: str, spent: Spent) -> None:
    """Back in the queue, not counted as an attempt: the daemon stops and did not finish it.

    Args:
        spent: what the request has taken so far.
    """
    _move(c, rid, Happening.RELEASE, "attempts = attempts - 1, spent = ?", (msgspec.json.encode(spent),))


def note(c: apsw.Connection, rid: str, findings: tuple[Finding, ...]) -> None:
    """What attempts on the board have shown so far: after a restart they are not made again."""
    c.execute("UPDATE requests SET findings = ? WHERE rid = ?", (" ".join(findings), rid))


def park(c: apsw.Connection, rid: str, max_parked: int, spent: Spent) -> None:
    """It waits for an upstream from now on; not counted as an attempt.

    Args:
        spent: what the request has taken so far.

    Raises:
        NoLink: so many wait already that one more is not kept.
    """
    parked = cast(int, c.execute(f"SELECT count(*) FROM requests WHERE {PARKED}").get)
    if parked >= max_parked:
        raise NoLink(f"{parked} requests wait for a link already ([queue] max_waiting)", retry_after_s=60.0)
    _move(c, rid, Happening.PARK, "attempts = attempts - 1, spent = ?", (msgspec.json.encode(spent),))


def parked(c: apsw.Connection, agents: tuple[str, ...]) -> int:
    """How many requests of these agents wait for a link."""
    query = f"SELECT count(*) FROM requests WHERE {PARKED} AND agent IN ({_marks(agents)})"
    return cast(int, c.execute(query, agents).get)


def resume(c: apsw.Connection, agents: tuple[str, ...], limit: int) -> list[str]:
    """Queue up to `limit` requests of these agents that wait for a link: interactive before batch, earliest deadline
    first. Returns their rids."""
    query = (
        f"SELECT rid FROM requests WHERE {PARKED} AND agent IN ({_marks(agents)})"
        " ORDER BY priority, deadline_boot IS NULL, deadline_boot, seq LIMIT ?"
    )
    rids = [cast(str, rid) for (rid,) in c.execute(query, (*agents, limit)).fetchall()]
    for rid in rids:
        _move(c, rid, Happening.RESUME)
    return rids


def resume_others(c: apsw.Connection, agents: tuple[str, ...]) -> None:
    """Queue what waits for a link and is of none of these agents."""
    query = f"SELECT rid FROM requests WHERE {PARKED} AND agent NOT IN ({_marks(agents)})"
    for (rid,) in c.execute(query, agents).fetchall():
        _move(c, cast(str, rid), Happening.RESUME)


def try_again(c: apsw.Connection, rid: str) -> None:
    """Queue a request that failed, expired or was quarantined as if it had just come in, without a deadline; its
    finished steps are not repeated. Whoever got the old reply gets the new one too.

    Raises:
        BadRequest: it is not in a state in which that can be, or nobody knows any more what was asked.
    """
    if not get(c, rid).request.messages:  # see recovery.mend
        raise BadRequest(f"request {rid}: what was asked was in a part of the store that was damaged; ask anew")
    columns = (
        "attempts = 0, status = NULL, finished_wall = NULL, deadline_boot = NULL, findings = '',"
        " spent = ?, accepted_boot = ?, accepted_wall = ?"
    )
    try:
        _move(c, rid, Happening.REQUEUE, columns, (msgspec.json.encode(Spent()), clock.boot(), clock.wall()))
    except IllegalTransition as error:
        allowed = ", ".join(lifecycle.sources(Happening.REQUEUE))
        raise BadRequest(f"request {rid}: {error}; only what is {allowed} can be queued again") from None
    c.execute("DELETE FROM replies WHERE seq = (SELECT seq FROM requests WHERE rid = ?)", (rid,))
    outbox.retract(c, rid)


def settle(
    c: apsw.Connection,
    rid: str,
    status: Status,
    reply: bytes,
    *,
    only: tuple[State, ...] = (),
    quarantine: bool = False,
) -> bool:
    """The one outcome: state, reply and outbox change together. False where it already had one, or is in none of the
    states `only` (a worker claimed it meanwhile)."""
    if only and get(c, rid).state not in only:
        return False
    happening = Happening.QUARANTINE if quarantine else lifecycle.ENDING[status]
    # a refusal may be asked again under the same id, so it gives the id free
    also = "status = ?, finished_wall = ?" + (", key = NULL" if status is Status.REFUSED else "")
    try:
        _move(c, rid, happening, also, (status, clock.wall()))
    except IllegalTransition:
        return False
    c.execute("INSERT INTO replies VALUES ((SELECT seq FROM requests WHERE rid = ?), ?)", (rid, reply))
    if not outbox.release(c, rid) and happening is Happening.ANSWER:
        _move(c, rid, Happening.DELIVERED)
    return True


def _move(c: apsw.Connection, rid: str, happening: Happening, also: str = "", values: tuple[Any, ...] = ()) -> None:
    """Apply the table of `lifecycle` to one row."""
    state = State(cast(str, c.execute("SELECT state FROM requests WHERE rid = ?", (rid,)).get))
    target = lifecycle.after(state, happening)
    setting = f"state = ?, {also}" if also else "state = ?"
    c.execute(f"UPDATE requests SET {setting} WHERE rid = ? AND state = ?", (target, *values, rid, state))
    if c.changes() != 1:
        raise IllegalTransition(state, happening)


def recover(c: apsw.Connection, boot: str) -> list[Row]:
    """After a start: brings deadlines into this boot's time, of what is to be worked on or delivered. Returns what ran
    when the daemon died; the pipeline queues it again or puts it into quarantine."""
    now, wall = clock.boot(), clock.wall()
    length = "(deadline_boot - accepted_boot)"
    # what was left when it came in, less what the wall clock says has passed; a clock that went back takes nothing
    left = f"min({length}, max(0, {length} - (:wall - accepted_wall)))"
    c.execute(
        f"UPDATE requests SET boot = :boot, deadline_boot = :now + {left},"
        f" accepted_boot = coalesce(:now + {left} - {length}, :now)"  # keeps the length for the boot after this one
        " WHERE boot <> :boot AND (state IN ('received', 'running', 'waiting_link')"
        " OR rid IN (SELECT rid FROM deliveries WHERE state = 'ready'))",
        {"boot": boot, "now": now, "wall": wall},
    )
    return [
        _row(row)
        for row in c.execute(f"SELECT {COLUMNS} FROM requests WHERE finished_wall IS NULL AND state = 'running'")
    ]


def requeue(c: apsw.Connection, rid: str) -> None:
    """Back in the queue after a crash; the attempt stays counted."""
    _move(c, rid, Happening.RELEASE)


def overdue(c: apsw.Connection) -> list[Row]:
    """Waiting requests whose deadline has passed."""
    query = f"SELECT {COLUMNS} FROM requests WHERE {WAITING} AND deadline_boot <= ?"
    return [_row(row) for row in c.execute(query, (clock.boot(),))]


def next_deadline(c: apsw.Connection) -> float | None:
    """The earliest deadline among those that wait, on the boot clock."""
    query = f"SELECT min(deadline_boot) FROM requests WHERE {WAITING}"
    return cast("float | None", c.execute(query).get)


def get(c: apsw.Connection, rid: str) -> Row:
    """A request by its rid; KeyError."""
    row = c.execute(f"SELECT {COLUMNS} FROM requests WHERE rid = ?", (rid,)).fetchone()
    if not row:
        raise KeyError(rid)
    return _row(row)


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
    return _row(row) if row else None


def latest(c: apsw.Connection, limit: int, states: tuple[State, ...] = (), client: str | None = None) -> list[Row]:
    """The newest requests first; of one client, where it is named."""
    wanted = [f"state IN ({_marks(states)})"] if states else []
    wanted += ["client = ?"] if client is not None else []
    where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
    query = f"SELECT {COLUMNS} FROM requests {where} ORDER BY seq DESC LIMIT ?"
    return [_row(row) for row in c.execute(query, (*states, *([] if client is None else [client]), limit))]


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
    order = "attempts = 0, priority, coalesce(deadline_boot, 9e999), seq"
    priority = 1 if row.request.priority is Priority.BATCH else 0
    where = f"finished_wall IS NULL AND state = ? AND ({order}) < (?, ?, ?, ?)"
    query = f"SELECT agent FROM requests WHERE {where} ORDER BY {order}"
    place = (row.attempts == 0, priority, later, row.seq)
    return [cast(str, agent) for (agent,) in c.execute(query, (row.state, *place))]


TRIM = 64  # rows a trim deletes at once: keeps the writer's transactions short
TRIM_FOR_ROOM = 8  # and where it is for room: rows may be large, and no more of them are to go than have to


def trim(c: apsw.Connection, keep_s: float, boot: str, max_bytes: int) -> int:
    """Forget finished requests: those older than the retention; the oldest, whatever their age, while it is crowded.
    Unfinished and undelivered ones stay. Returns how many.

    Requests of this boot are as old as the boot clock says: a board that learns the date a minute after its start must
    not take them for years old, and forget that they were done.
    """
    if is_crowded(c, max_bytes):  # without the look for old ones, which goes through all of them
        old = _delete_finished(c, "", (), TRIM_FOR_ROOM) or _delete_turns(c)
    else:
        limits = (boot, clock.boot() - keep_s, boot, clock.wall() - keep_s)
        old = _delete_finished(c, "AND (boot = ? AND accepted_boot < ? OR boot <> ? AND finished_wall < ?)", limits)
    c.execute("PRAGMA incremental_vacuum(64)").fetchall()
    c.execute("DELETE FROM turns WHERE expires_wall < ?", (clock.wall(),))
    return old


def _delete_finished(c: apsw.Connection, condition: str, values: tuple[Any, ...], limit: int = TRIM) -> int:
    c.execute(
        "DELETE FROM requests WHERE seq IN (SELECT seq FROM requests r WHERE finished_wall IS NOT NULL"
        f" {condition} AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.rid = r.rid AND d.state <> 'delivered')"
        f" ORDER BY finished_wall LIMIT {limit})",
        values,
    )
    return c.changes()


def _delete_turns(c: apsw.Connection) -> int:
    """The conversations that end first: memory of a dialogue is worth less than taking a request in."""
    c.execute(
        "DELETE FROM turns WHERE (client, agent, conversation, seq) IN"
        f" (SELECT client, agent, conversation, seq FROM turns ORDER BY expires_wall LIMIT {TRIM})"
    )
    return c.changes()


TURNS_KEPT = 64  # turns of one conversation that are read back; more never fit a board model's context
Turn = tuple[Message, ...]


def history(c: apsw.Connection, row: Row) -> list[PastTurn]:
    """The turns of the request's conversation, oldest first; expired ones are gone."""
    if row.conversation is None:
        return []
    query = (
        "SELECT messages, private FROM turns WHERE client = ? AND agent = ? AND conversation = ? AND expires_wall >= ?"
        " AND seq < ? ORDER BY seq DESC LIMIT ?"
    )
    values = (row.client, row.agent, row.conversation, clock.wall(), row.seq, TURNS_KEPT)
    turns = [PastTurn(msgspec.json.decode(cast(bytes, m), type=Turn), bool(p)) for m, p in c.execute(query, values)]
    return turns[::-1]


def add_turn(c: apsw.Connection, row: Row, messages: Turn, expires_wall: float, *, private: bool) -> None:
    """Append to a conversation; every turn of it lives as long as the newest."""
    if row.conversation is None:
        return
    name = (row.client, row.agent, row.conversation)
    c.execute(
        "INSERT OR REPLACE INTO turns(client, agent, conversation, seq, messages, expires_wall, private)"
        " VALUES (?,?,?,?,?,?,?)",
        (*name, row.seq, msgspec.json.encode(messages), expires_wall, private),
    )
    where = "client = ? AND agent = ? AND conversation = ?"
    c.execute(f"UPDATE turns SET expires_wall = ? WHERE {where}", (expires_wall, *name))
    c.execute(
        f"DELETE FROM turns WHERE {where} AND seq <= (SELECT seq FROM turns WHERE {where}"
        " ORDER BY seq DESC LIMIT 1 OFFSET ?)",
        (*name, *name, TURNS_KEPT),
    )


def _marks(values: tuple[object, ...]) -> str:
    return ",".join("?" * len(values))


def _row(values: tuple[Any, ...]) -> Row:
    row = dict(zip(FIELDS.split(", "), values, strict=True))
    request = msgspec.json.decode(row.pop("body"), type=Request)
    findings = tuple(Finding(word) for word in row.pop("findings").split())
    spent = row.pop("spent")
    return Row(
        **{**row, "state": State(row["state"])},
        request=request,
        findings=findings,
        spent=None if spent is None else msgspec.json.decode(spent, type=Spent),
        begun=row["attempts"] > 0 or spent is not None,
    )
