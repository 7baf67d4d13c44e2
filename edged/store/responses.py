"""Responses of the Responses API, so that a later request can go on from one. Functions of a connection.

A thread is a response with all that go on from it, however they branch. It is forgotten as a whole: what a dialogue
goes on from is there as long as its newest response.
"""

from __future__ import annotations

import zlib
from typing import cast

import apsw
from msgspec import Struct

from edged.host import clock
from edged.store import retention

# Bodies repeat the tools and the instructions that they were asked with, and JSON shrinks to a fifth at the quickest
# level, in a tenth of a millisecond for 20 KiB. What is not packed begins with a bracket, and never so.
LEVEL, PACKED = 1, b"\x78"
MAX_CHAIN = 256  # responses that one goes on from; a board's model reads no dialogue that is longer
FIELDS = "id, client, thread, previous, private, keyed, created_wall, input, body"


class Kept(Struct, frozen=True, kw_only=True):
    """A stored response.

    id: unique among all clients'; thread: the id that its dialogue began with; previous: that it goes on from.
    private: no upstream ever sees what it holds.
    keyed: its id was made of the client's Idempotency-Key.
    created_wall: seconds since the epoch.
    input: what was asked, a list of items, JSON. body: the response as its client gets it, JSON; of one that an agent
        has not answered yet, without output.
    """

    id: str
    client: str
    thread: str
    previous: str | None = None
    private: bool = False
    keyed: bool = False
    created_wall: float
    input: bytes
    body: bytes


def keep(c: apsw.Connection, kept: Kept, max_bytes: int) -> bool:
    """Store a response, or the newer body of one that is stored; without effect where the id is another client's.
    Returns whether there was room for it."""
    if retention.used_bytes(c) >= max_bytes:
        return False
    c.execute(
        f"INSERT INTO responses({FIELDS}, boot, created_boot) VALUES (?,?,?,?,?,?,?,?,?,?,?)"
        " ON CONFLICT(id) DO UPDATE SET body = excluded.body WHERE client = excluded.client",
        (
            kept.id,
            kept.client,
            kept.thread,
            kept.previous,
            kept.private,
            kept.keyed,
            kept.created_wall,
            zlib.compress(kept.input, LEVEL),
            zlib.compress(kept.body, LEVEL),
            clock.boot_id(),
            clock.boot(),
        ),
    )
    return True


def find(c: apsw.Connection, client: str, id: str) -> Kept | None:
    """A response of the client's."""
    row = c.execute(f"SELECT {FIELDS} FROM responses WHERE id = ? AND client = ?", (id, client)).fetchone()
    return _kept(row) if row else None


def chain(c: apsw.Connection, client: str, id: str) -> list[Kept]:
    """A response and all that it goes on from, oldest first. KeyError with the id of the first that is not there;
    OverflowError: there are more than MAX_CHAIN."""
    found: list[Kept] = []
    wanted: str | None = id
    while wanted is not None:
        if len(found) == MAX_CHAIN:
            raise OverflowError
        kept = find(c, client, wanted)
        if kept is None:
            raise KeyError(wanted)
        found.append(kept)
        wanted = kept.previous
    return found[::-1]


def delete(c: apsw.Connection, client: str, id: str) -> bool:
    """Forget a response of the client's; whether there was one. An agent's request that it came from goes with it. One
    that has an Idempotency-Key stays, so that it is not done again."""
    kept = find(c, client, id)
    if kept is None:
        return False
    c.execute("DELETE FROM responses WHERE id = ?", (id,))
    if not kept.keyed:
        c.execute("DELETE FROM requests WHERE id = ? AND client = ? AND finished_wall IS NOT NULL", (id, client))
    return True


def _kept(row: tuple[object, ...]) -> Kept:
    id, client, thread, previous, private, keyed, created_wall, given, body = row
    return Kept(
        id=cast(str, id),
        client=cast(str, client),
        thread=cast(str, thread),
        previous=cast("str | None", previous),
        private=bool(private),
        keyed=bool(keyed),
        created_wall=cast(float, created_wall),
        input=unpacked(cast(bytes, given)),
        body=unpacked(cast(bytes, body)),
    )


def unpacked(stored: bytes) -> bytes:
    """What was stored in `input` or `body`. zlib.error: it is damaged."""
    return zlib.decompress(stored) if stored[:1] == PACKED else stored
