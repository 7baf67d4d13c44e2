"""What no grammar keeps of a tool's parameters is checked before the tool is called, whatever the model writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edged.client import AsyncClient
from tests.support.daemon import Daemon, entry

PLACES = """
[tools.places]
description = "Write places down."
database = "plant"
sql = "INSERT INTO diary(text) VALUES (:places)"
effect = "write"
say = "Written down."
parameters.places = { type = "array", items = { type = "string" }, uniqueItems = true }
[agents.clerk]
model = "small"
tools = ["places"]
"""
SCRIPT = "".join(
    entry(match, {"name": "places", "arguments": {"places": places}})
    for match, places in (("twice", ["hall", "hall"]), ("once", ["hall", "barn"]))
)


@pytest.mark.parametrize(("text", "status", "written"), [("once", "done", ["hall", "barn"]), ("twice", "failed", None)])
async def test_a_call_that_does_not_fit_its_schema_is_not_made(
    tmp_path: Path, text: str, status: str, written: list[str] | None
) -> None:
    """It is asked for once more; then the request fails, and says what was wrong."""
    async with Daemon(tmp_path, config=PLACES, script=SCRIPT) as daemon:
        async with AsyncClient(daemon.socket) as client:
            reply = await client.ask(text, agent="clerk")
        assert reply["status"] == status
        assert [json.loads(row[-1]) for row in daemon.rows("diary")] == ([written] if written else [])
        if written is None:
            assert reply["error"]["code"] == "tool_failed"
            assert reply["error"]["message"].startswith("places was not called: ")
            assert "non-unique" in reply["error"]["message"]
            assert reply["tool_calls"] == []
        assert await daemon.stop() == 0
