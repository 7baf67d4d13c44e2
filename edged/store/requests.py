"""What changes requests in the store: they come in once, are claimed, and end with one reply. Functions of a
connection, run by the store's writer thread. Identity rules: CONTRACT section 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import apsw
import msgspec
from msgspec import Struct, structs

from edged import wire
from edged.errors import BadRequest, Busy, EdgedError, NoLink
from edged.host import clock
from edged.store import lifecycle, lookup, outbox, retention
from edged.store.lifecycle import Happening, IllegalTransition, State
from edged.store.lookup import Row
from edged.types import Ask, Finding, Priority, Spent, Status

FINISH_GUESS_S = 2.0  # retry_after_s of a full queue: about the time one tool call takes on a small board
FULL_RETRY_S = 60.0  # what fills a store is not gone sooner: replies that nobody takes, requests that wait for a link


class Interrupted(Struct, frozen=True):
    """What ran when the daemon ended. another_boot: the board was switched on meanwhile."""

    rows: list[Row]
    another_boot: bool = False


class StoreFullError(Busy):
    """[store] max_bytes is reached."""


class Accepted(Struct, frozen=True):
    """What became of a request that was handed in. known: it had been asked before; reply: its stored reply, None
    where it has not ended."""

    rid: str
    known: bool = False
    reply: bytes | None = None


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
    decision: str = "",
    remote: bool = False,
    clock_set: bool = True,
) -> Accepted:
    """Take a request in, unless it is known.

    (1) an MQTT packet that is delivered again and was committed: the request it made;
    (2) the same identity with the same content: joined, or answered from the store;
    (3) the same identity with other content: BadRequest;
    (4) nothing new is taken: `refusal`; the queue, or the store, is full: Busy;
    (5) else it is new.

    Args:
        max_bytes: what the store may take; log_bytes: what its log takes of that.
        decision, remote, clock_set: see Row.
    """
    if ask.packet and ask.packet.duplicate:  # (1)
        packet = "SELECT rid FROM packets WHERE mid = ? AND digest = ?"
        query = f"SELECT rid, {lookup.REPLY} FROM requests WHERE rid = ({packet})"
        if (again := c.execute(query, (ask.packet.mid, ask.packet.digest)).fetchone()) is not None:
            return Accepted(cast(str, again[0]), known=True, reply=cast("bytes | None", again[1]))
    key, digest = identity(ask), wire.digest(ask.request)
    named = f"SELECT rid, digest, {lookup.REPLY} FROM requests WHERE client = ? AND key = ?"
    found = c.execute(named, (ask.caller.client, key)).fetchone()
    if found is None and ask.caller.former:  # by the same role, or when there were none: no other publisher's
        former = (ask.caller.former, key, ask.caller.role)
        found = c.execute(f"{named} AND role IN ('', ?)", former).fetchone()
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
    _insert(c, ask, rid, key, digest, boot, decision, remote, clock_set)  # (5)
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
    if retention.used_bytes(c) + log_bytes >= max_bytes:
        why = f", {log_bytes} of them a log that grows while another program reads edged.db" if log_bytes else ""
        raise StoreFullError(f"the store is full ([store] max_bytes is {max_bytes}{why})", retry_after_s=FULL_RETRY_S)


def _insert(
    c: apsw.Connection,
    ask: Ask,
    rid: str,
    key: str | None,
    digest: bytes,
    boot: str,
    decision: str,
    remote: bool,
    clock_set: bool,
) -> None:
    priority = ask.request.priority or ask.caller.highest
    request, now = msgspec.structs.replace(ask.request, priority=priority), clock.boot()
    limits = [limit for limit in (request.deadline_s, ask.expiry_s) if limit is not None]
    c.execute(
        "INSERT INTO requests(rid, client, key, digest, id, transport, agent, conversation, priority, body, boot,"
        " accepted_wall, accepted_boot, deadline_boot, state, role, decision, remote, clock_set)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
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
            decision,
            remote,
            clock_set,
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
        WHERE finished_wall IS NULL AND state = 'received' AND priority <= ? AND remote <= ?
        AND (r.conversation IS NULL OR NOT EXISTS (
            SELECT 1 FROM requests o
            WHERE o.client = r.client AND o.agent = r.agent AND o.conversation = r.conversation
            AND o.state IN ('received', 'running', 'waiting_link') AND o.conversation IS NOT NULL AND o.seq < r.seq))
        ORDER BY ends = 0, alone, priority, deadline_boot IS NULL, deadline_boot, seq LIMIT 1)
    RETURNING {lookup.COLUMNS}
"""


class FreeSlots(Struct, frozen=True):
    """How many requests may be begun: of any kind; of batch work among them; of work done elsewhere among them."""

    all: int
    batch: int
    remote: int


def claim(c: apsw.Connection, slots: FreeSlots) -> list[Row]:
    """The next requests to work on: what ran when the daemon ended goes first, then interactive before batch, earliest
    deadline first, a conversation in its order. Of what ran, that which was alone at the last ends goes last: innocent
    requests end before it, and do not share its blame."""
    claimed: list[Row] = []
    batch, remote = slots.batch, slots.remote
    while len(claimed) < slots.all:
        found = c.execute(CLAIM, (batch > 0, remote > 0)).fetchone()
        if found is None:
            break
        row = lookup.as_row(found)
        claimed.append(structs.replace(row, begun=row.ends > 0 or row.spent is not None))
        batch -= row.request.priority is Priority.BATCH
        remote -= row.remote
    return claimed


def release(c: apsw.Connection, rid: str, spent: Spent, *, remote: bool = False) -> None:
    """Back in the queue, not counted as an attempt: the daemon stops and did not finish it, or there is no slot for
    work that is done elsewhere.

    Args:
        spent: what the request has taken so far.
        remote: it waits for such a slot from now on.
    """
    columns = "attempts = attempts - 1, spent = ?, remote = max(remote, ?), decision = ''"
    _move(c, rid, Happening.RELEASE, columns, (msgspec.json.encode(spent), remote))


def note(c: apsw.Connection, rid: str, findings: tuple[Finding, ...]) -> None:
    """What attempts on the board have shown so far: after a restart they are not made again."""
    c.execute("UPDATE requests SET findings = ? WHERE rid = ?", (" ".join(findings), rid))


def park(c: apsw.Connection, rid: str, max_parked: int, spent: Spent, decision: str = "") -> None:
    """It waits for an upstream from now on; not counted as an attempt. That the daemon lived clears it of suspicion.

    Args:
        spent: what the request has taken so far.
        decision: why it waits, in words.

    Raises:
        NoLink: so many wait already that one more is not kept.
    """
    parked = cast(int, c.execute(f"SELECT count(*) FROM requests WHERE {lookup.PARKED}").get)
    if parked >= max_parked:
        raise NoLink(f"{parked} requests wait for a link already ([queue] max_waiting)", retry_after_s=60.0)
    columns = "attempts = attempts - 1, ends = 0, alone = 0, spent = ?, remote = 1, decision = ?"
    _move(c, rid, Happening.PARK, columns, (msgspec.json.encode(spent), decision))


def resume(c: apsw.Connection, agents: tuple[str, ...], room: int) -> list[str]:
    """Queue requests of these agents that wait for a link: interactive before batch, earliest deadline first, no more
    than their upstreams have room for beside those that are queued for them already. Returns their rids."""
    queued = f"finished_wall IS NULL AND state = 'received' AND remote = 1 AND agent IN ({lookup.marks(agents)})"
    limit = room - cast(int, c.execute(f"SELECT count(*) FROM requests WHERE {queued}", agents).get)
    query = (
        f"SELECT rid FROM requests WHERE {lookup.PARKED} AND agent IN ({lookup.marks(agents)})"
        " ORDER BY priority, deadline_boot IS NULL, deadline_boot, seq LIMIT ?"
    )
    rids = [cast(str, rid) for (rid,) in c.execute(query, (*agents, max(0, limit))).fetchall()]
    for rid in rids:
        _move(c, rid, Happening.RESUME, "decision = ''")
    return rids


def resume_others(c: apsw.Connection, agents: tuple[str, ...]) -> None:
    """Queue what waits for a link and is of none of these agents."""
    query = f"SELECT rid FROM requests WHERE {lookup.PARKED} AND agent NOT IN ({lookup.marks(agents)})"
    for (rid,) in c.execute(query, agents).fetchall():
        _move(c, cast(str, rid), Happening.RESUME, "decision = ''")


def try_again(c: apsw.Connection, rid: str, *, clock_set: bool = True) -> None:
    """Queue a request that failed, expired or was quarantined as if it had just come in, without a deadline; its
    finished steps are not repeated. Whoever got the old reply gets the new one too.

    Raises:
        BadRequest: it is not in a state in which that can be, or nobody knows any more what was asked.
    """
    if not lookup.get(c, rid).request.messages:  # see recovery.mend
        raise BadRequest(f"request {rid}: what was asked was in a part of the store that was damaged; ask anew")
    columns = (
        "attempts = 0, ends = 0, alone = 0, status = NULL, finished_wall = NULL, deadline_boot = NULL, findings = '',"
        " decision = '',"
        " spent = ?, accepted_boot = ?, accepted_wall = ?, clock_set = ?"
    )
    try:
        accepted = (clock.boot(), clock.wall(), clock_set)
        _move(c, rid, Happening.REQUEUE, columns, (msgspec.json.encode(Spent()), *accepted))
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
    if only and lookup.get(c, rid).state not in only:
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


def recover(c: apsw.Connection, boot: str) -> Interrupted:
    """After a start: brings deadlines into this boot's time, of what is to be worked on or delivered, and forgets where
    requests were going, which may be otherwise now. Returns what ran when the daemon ended: `put_back` or `settle` it.
    """
    now, wall = clock.boot(), clock.wall()
    running = "finished_wall IS NULL AND state = 'running'"
    another_boot = c.execute(f"SELECT 1 FROM requests WHERE {running} AND boot <> ? LIMIT 1", (boot,)).get == 1
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
    c.execute("UPDATE requests SET decision = '' WHERE finished_wall IS NULL AND decision <> ''")
    found = c.execute(f"SELECT {lookup.COLUMNS} FROM requests WHERE {running}")
    return Interrupted([lookup.as_row(row) for row in found], another_boot)


def count_end(c: apsw.Connection, interrupted: Interrupted, *, own_fault: bool) -> list[Row]:
    """The daemon has ended while these ran. Returns them as they are now.

    Args:
        own_fault: the end counts as an attempt of theirs.
    """
    rids = [row.rid for row in interrupted.rows]
    ran = f"rid IN ({lookup.marks(rids)})"
    if rids:  # else nobody is any the wiser
        c.execute(f"UPDATE requests SET alone = 0 WHERE finished_wall IS NULL AND alone > 0 AND NOT {ran}", rids)
    alone = "CASE WHEN ? THEN alone + 1 ELSE 0 END"
    c.execute(f"UPDATE requests SET ends = ends + 1, alone = {alone} WHERE {ran}", (len(rids) == 1, *rids))
    return [lookup.get(c, rid) for rid in rids] if own_fault else uncount(c, rids)


def uncount(c: apsw.Connection, rids: Sequence[str]) -> list[Row]:
    """The attempts that ran do not count. Returns the requests as they are now."""
    c.execute(f"UPDATE requests SET attempts = attempts - 1 WHERE rid IN ({lookup.marks(rids)})", tuple(rids))
    return [lookup.get(c, rid) for rid in rids]


def put_back(c: apsw.Connection, rid: str) -> None:
    """Back in the queue after the daemon ended."""
    _move(c, rid, Happening.RELEASE)
