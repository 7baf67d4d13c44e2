"""The outbox: replies that a transport has to carry to somebody who does not wait for them."""

from __future__ import annotations

from typing import cast

import apsw

from edged.host import clock
from edged.store import lifecycle, lookup
from edged.store.lifecycle import Happening, State
from edged.types import Address, Delivery, Format, Status

MIN_LIFE_S = 60.0  # CONTRACT section 4: a reply is of use at least this long


def expect(c: apsw.Connection, rid: str, transport: str, address: Address, *, answered: bool) -> None:
    """Somebody is to get the reply. Asking again once it was delivered delivers it again."""
    state = "ready" if answered else "waiting"
    c.execute(
        "INSERT INTO deliveries(rid, transport, topic, correlation, format, state) VALUES (?,?,?,?,?,?)"
        " ON CONFLICT DO UPDATE SET state = excluded.state WHERE state = 'delivered'",
        (rid, transport, address.topic, address.correlation or b"", address.format, state),
    )


def release(c: apsw.Connection, rid: str) -> int:
    """The answer is there: what waited for it is ready. Returns how many."""
    c.execute("UPDATE deliveries SET state = 'ready' WHERE rid = ? AND state = 'waiting'", (rid,))
    return c.changes()


def ready(c: apsw.Connection, transports: tuple[str, ...], except_ids: tuple[int, ...], limit: int) -> list[Delivery]:
    """The oldest deliveries to make by these transports, without those that are on their way."""
    query = (
        "SELECT d.id, d.rid, d.transport, r.id, r.status, r.finished_wall, d.topic, d.correlation, d.format, a.reply,"
        " r.agent, CASE WHEN r.boot = ? THEN r.deadline_boot END"  # a deadline of another boot says nothing in this one
        " FROM deliveries d JOIN requests r USING (rid) JOIN replies a USING (seq) WHERE d.state = 'ready'"
        f" AND d.transport IN ({lookup.marks(transports)}) AND d.id NOT IN ({lookup.marks(except_ids)})"
        " ORDER BY d.id LIMIT ?"
    )
    earliest = clock.boot() + MIN_LIFE_S
    return [
        Delivery(
            id=cast(int, ident),
            settled_wall=cast(float, settled),
            rid=cast(str, rid),
            transport=cast(str, transport),
            request_id=cast("str | None", name),
            status=Status(cast(str, status)),
            address=Address(cast(str, topic), cast(bytes, correlation) or None, Format(cast(str, fmt))),
            body=cast(bytes, body),
            agent=cast(str, agent),
            expires_boot=max(cast("float | None", deadline) or 0.0, earliest),
        )
        for ident, rid, transport, name, status, settled, topic, correlation, fmt, body, agent, deadline in c.execute(
            query, (clock.boot_id(), *transports, *except_ids, limit)
        )
    ]


def retract(c: apsw.Connection, rid: str) -> None:
    """The reply is made anew: nothing of the old one goes out any more, and whoever was to get it gets the new one."""
    c.execute("UPDATE deliveries SET state = 'waiting' WHERE rid = ?", (rid,))


def confirm(c: apsw.Connection, delivery: Delivery) -> None:
    """It arrived. An answered request with nothing left to deliver is done. Where the request was tried again while its
    old reply was on its way, the new one is still to be delivered."""
    c.execute(
        "UPDATE deliveries SET state = 'delivered' WHERE id = ? AND state = 'ready'"
        " AND EXISTS (SELECT 1 FROM requests r WHERE r.rid = deliveries.rid AND r.finished_wall = ?)",
        (delivery.id, delivery.settled_wall),
    )
    if c.changes():
        c.execute(
            "UPDATE requests SET state = ? WHERE state = ? AND rid = ?"
            " AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.rid = requests.rid AND d.state <> 'delivered')",
            (lifecycle.after(State.ANSWERED, Happening.DELIVERED), State.ANSWERED, delivery.rid),
        )


def waiting(c: apsw.Connection, transports: tuple[str, ...]) -> int:
    """Deliveries that are ready and not made, of these transports."""
    query = f"SELECT count(*) FROM deliveries WHERE state = 'ready' AND transport IN ({lookup.marks(transports)})"
    return cast(int, c.execute(query, transports).get)
