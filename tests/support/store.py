"""For tests of the store: requests as transports hand them in, and a store in memory to put them into."""

from __future__ import annotations

from typing import Any

import apsw

from edged.store import requests
from edged.store.lookup import Row
from edged.store.requests import Accepted, FreeSlots
from edged.store.schema import MIGRATIONS
from edged.types import Address, Ask, Caller, Message, Packet, Reply, Request, Status
from edged.wire import new_rid, reply_bytes

PLENTY = 2**30
ONE, ANY = FreeSlots(1, 1, 1), FreeSlots(16, 16, 16)


def store() -> apsw.Connection:
    """An empty store."""
    connection = apsw.Connection(":memory:")
    connection.execute("PRAGMA foreign_keys = ON")
    for script in MIGRATIONS:
        connection.execute(script)
    return connection


def ask(
    text: str = "hi",
    *,
    client: str = "c",
    key: str | None = None,
    packet: Packet | None = None,
    reply_topic: str | None = None,
    correlation: bytes | None = None,
    expiry_s: float | None = None,
    **fields: Any,
) -> Ask:
    """A request; `fields` are those of Request."""
    return Ask(
        request=Request(**{"agent": "house", "messages": (Message("user", text),), **fields}),
        caller=Caller(client, "mqtt", frozenset({"house"})),
        key=key,
        packet=packet,
        address=Address(reply_topic, correlation) if reply_topic else None,
        expiry_s=expiry_s,
    )


def put(c: apsw.Connection, wanted: Ask | None = None, *, boot: str = "boot-1", max_waiting: int = 1000) -> Accepted:
    """Hand a request in."""
    return requests.accept(c, wanted or ask(), new_rid(), boot, max_waiting, PLENTY)


def claim(c: apsw.Connection) -> Row:
    """The next request, which must exist."""
    [row] = requests.claim(c, ONE)
    return row


def answer(rid: str, status: Status = Status.DONE) -> bytes:
    """A reply's bytes."""
    return reply_bytes(Reply(id=None, rid=rid, status=status, output="ok"))


def settle(c: apsw.Connection, rid: str, status: Status = Status.DONE, **more: Any) -> bool:
    """End a request."""
    return requests.settle(c, rid, status, answer(rid, status), **more)


def finished(c: apsw.Connection, wanted: Ask | None = None, status: Status = Status.DONE) -> str:
    """The rid of a request that went all the way to its outcome."""
    rid = put(c, wanted).rid
    c.execute("UPDATE requests SET state = 'running', attempts = 1 WHERE rid = ?", (rid,))
    assert settle(c, rid, status)
    return rid
