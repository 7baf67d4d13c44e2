"""The real daemon with a cloud behind it (tests/support/cloud.py): its configuration, and a client that asks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.cloud import ScriptedCloud
from tests.support.daemon import Daemon, Wired, entry, note

OPEN_NORTH = {"name": "set_valve", "arguments": {"valve": "north", "position": "open"}}
ESCALATE = {"name": "escalate", "arguments": {}}
MISSING = {"name": "tank_level", "arguments": {"tank": "nowhere"}}

# What the board's model does about the requests of these tests; the first that matches counts.
SCRIPT = "".join(
    (
        entry("too hard", ESCALATE, text="said on the board"),
        entry("unsure", OPEN_NORTH, text="done", confidence=0.3),
        entry("note and escalate", note("from the board"), ESCALATE),
        entry("says nothing", text=""),
        entry("open the north valve", OPEN_NORTH),
        entry("slow one", note("slow"), text="slowly " * 30, token_s=0.05),
        *(entry(f"note {n};", note(f"n{n}"), text=f"noted {n}", token_s=0.02) for n in range(50)),
    )
)


def upstream(name: str, cloud: ScriptedCloud, **more: Any) -> str:
    """Its table."""
    lines = {"base_url": cloud.base_url, "model": "large", "connect_timeout_s": 1, "first_byte_timeout_s": 1, **more}
    return f"[upstreams.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def cloudy(folder: Path, *upstreams: str, broker: int | None = None, script: str = SCRIPT, **agent: Any) -> Daemon:
    """A daemon whose agent may use these upstreams; it is not started."""
    daemon = Daemon(folder, broker=broker, script=script)
    (folder / "conf.d").mkdir()
    settings = {"privacy": "any", **agent}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    (folder / "conf.d" / "cloud.toml").write_text("".join(upstreams) + f"[agents.house]\n{lines}")
    return daemon


async def ask(daemon: Daemon, text: str, **fields: Any) -> dict[str, Any]:
    """A request over the Unix socket and its reply."""
    async with Wired(daemon.socket) as client:
        error, reply = await client.call(1, "agent.ask", {"input": text, **fields})
        assert error is None, error
        assert isinstance(reply, dict)
        return reply


async def refused(daemon: Daemon, text: str, **fields: Any) -> dict[str, Any]:
    """A request that is refused; the error."""
    async with Wired(daemon.socket) as client:
        error, reply = await client.call(1, "agent.ask", {"input": text, **fields})
        assert reply is None
        assert isinstance(error, dict)
        return error
