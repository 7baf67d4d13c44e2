"""Conversations: the turns of a client's dialogue with an agent. Functions of a connection."""

from __future__ import annotations

from typing import cast

import apsw
import msgspec

from edged.host import clock
from edged.store.lookup import Row
from edged.types import Message, PastTurn

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


def follows(c: apsw.Connection, row: Row) -> bool:
    """Whether something was said before a request in its conversation, as far as is still known."""
    named = "client = ? AND agent = ? AND conversation = ? AND seq < ?"
    query = f"SELECT EXISTS(SELECT 1 FROM turns WHERE {named}) OR EXISTS(SELECT 1 FROM requests WHERE {named})"
    name = (row.client, row.agent, row.conversation, row.seq)
    return row.conversation is not None and bool(c.execute(query, (*name, *name)).get)


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
