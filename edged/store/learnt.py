"""What requests have taught: examples that an agent's second look is shown. Functions of a connection.

An example belongs to the request that it comes from, and goes with it, whatever lets that go. Of one text an agent
knows one example in each role; the owner's word goes before an upstream's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import cast

import apsw
import msgspec
from msgspec import Struct

from edged.host import clock
from edged.types import ToolCall

# Of one agent's tool, in one role. A second look compares them all with the request: this many for each of ten tools
# take some 100 kB of the store, and it shows four.
MOST = 32

Calls = tuple[ToolCall, ...]


class Source(StrEnum):
    """Where an example comes from."""

    UPSTREAM = "upstream"  #: an upstream's calls, which worked
    CORRECTED = "corrected"  #: somebody said what would have been right
    ADDED = "added"  #: somebody wrote request and calls


class Lesson(Struct, frozen=True, kw_only=True):
    """An example. rid: of the request that it comes from; None: it was added. private: that request was not to leave
    the board."""

    agent: str
    role: str
    source: Source
    text: str
    calls: Calls
    rid: str | None = None
    private: bool = False


class Learnt(Struct, frozen=True):
    """An example in the store. at: seconds since the epoch."""

    id: int
    at: float
    lesson: Lesson


def keep(c: apsw.Connection, lesson: Lesson) -> int | None:
    """Keep an example; its number. None: an upstream's, where the owner has said something else of the request or of
    its text. Of one tool's examples the MOST newest stay, the owner's before those of upstreams."""
    same = "(rid = ? OR agent = ? AND role = ? AND text = ?)"
    values = (lesson.rid, lesson.agent, lesson.role, lesson.text)
    if (
        lesson.source is Source.UPSTREAM
        and c.execute(f"SELECT 1 FROM learnt WHERE {same} AND source <> 'upstream' LIMIT 1", values).fetchone()
    ):
        return None
    c.execute(f"DELETE FROM learnt WHERE {same}", values)
    whose = (lesson.agent, lesson.role, lesson.calls[0].name)
    c.execute(
        "INSERT INTO learnt(rid, agent, role, tool, source, private, text, calls, at) VALUES (?,?,?,?,?,?,?,?,?)",
        (
            lesson.rid,
            *whose,
            lesson.source,
            lesson.private,
            lesson.text,
            msgspec.json.encode(lesson.calls),
            clock.wall(),
        ),
    )
    id = c.last_insert_rowid()
    c.execute(
        "DELETE FROM learnt WHERE id IN (SELECT id FROM learnt WHERE agent = ? AND role = ? AND tool = ?"
        " ORDER BY source = 'upstream', id DESC LIMIT -1 OFFSET ?)",
        (*whose, MOST),
    )
    return id


def known(c: apsw.Connection, agent: str | None = None, role: str | None = None) -> list[Learnt]:
    """The examples, oldest first; of one agent and of one role, where they are named."""
    query = (
        "SELECT id, at, agent, role, source, text, calls, rid, private FROM learnt"
        " WHERE agent = coalesce(?, agent) AND role = coalesce(?, role) ORDER BY id"
    )
    return [
        Learnt(
            cast(int, id),
            cast(float, at),
            Lesson(
                agent=cast(str, whose),
                role=cast(str, by),
                source=Source(cast(str, source)),
                text=cast(str, text),
                calls=msgspec.json.decode(cast(bytes, calls), type=Calls),
                rid=cast("str | None", rid),
                private=bool(private),
            ),
        )
        for id, at, whose, by, source, text, calls, rid, private in c.execute(query, (agent, role))
    ]


def forget(c: apsw.Connection, id: int | None = None, agent: str | None = None, role: str | None = None) -> int:
    """Forget one example, or those of an agent, of a role, of both; all where nothing is named. Returns how many."""
    where = "id = coalesce(?, id) AND agent = coalesce(?, agent) AND role = coalesce(?, role)"
    c.execute(f"DELETE FROM learnt WHERE {where}", (id, agent, role))
    return c.changes()
