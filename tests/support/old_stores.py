"""Stores as every earlier edged left them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import apsw
import msgspec

from edged.store import journal
from edged.store.schema import MIGRATIONS
from edged.types import Message, Request, ToolCall

REPLY = b'{"id":null,"rid":"done1","status":"done"}'
BODY = msgspec.json.encode(Request(agent="house", messages=(Message("user", "hi"),)))
STATES = ("received", "running", "answered", "done", "failed", "quarantined")
INTENT = msgspec.json.encode(journal.Intent(ToolCall("note", {"text": "x"}), None))


def make(path: Path, schema: int) -> None:
    """A file as an edged of that schema left it: a request in each state, with all that belongs to it."""
    with contextlib.closing(apsw.Connection(str(path))) as c:
        c.execute("PRAGMA page_size = 4096")
        c.execute("PRAGMA journal_mode = WAL").fetchall()
        for script in MIGRATIONS[:schema]:
            c.execute(script)
        c.pragma("user_version", schema)
        has_column = "reply" in [name for _, name, *_ in c.execute("PRAGMA table_info(requests)")]
        for number, state in enumerate(STATES, start=1):
            finished = state not in ("received", "running")
            row: dict[str, Any] = {
                "seq": number, "rid": f"{state}1", "client": "c", "key": f"id:{number}", "digest": b"d",
                "id": str(number), "transport": "mqtt", "agent": "house", "priority": 0, "body": BODY, "boot": "b",
                "accepted_wall": 1.0, "accepted_boot": 1.0, "state": state, "attempts": int(state != "received"),
                "status": "done" if finished else None, "finished_wall": 2.0 if finished else None,
            }  # fmt: skip
            if has_column and finished:
                row["reply"] = REPLY
            marks = ",".join(f":{name}" for name in row)
            c.execute(f"INSERT INTO requests({','.join(row)}) VALUES ({marks})", row)
            if finished and not has_column:
                c.execute("INSERT INTO replies VALUES (?, ?)", (number, REPLY))
            c.execute("INSERT INTO steps VALUES (?, 0, ?, NULL)", (f"{state}1", INTENT))
            delivery = (f"{state}1", "mqtt", "t", b"", "json", "ready" if finished else "waiting")
            c.execute(
                "INSERT INTO deliveries(rid, transport, topic, correlation, format, state) VALUES (?,?,?,?,?,?)",
                delivery,
            )
        c.execute("INSERT INTO packets(mid, seq, digest, rid) VALUES (1, 1, x'00', 'done1')")
        turn = ("c", "house", "k", 1, msgspec.json.encode([Message("user", "hi")]), 1e12)
        c.execute(
            "INSERT INTO turns(client, agent, conversation, seq, messages, expires_wall) VALUES (?,?,?,?,?,?)", turn
        )
