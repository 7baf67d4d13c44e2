"""An answer behind an act that failed says so, whatever its model words: edged knows what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import cloud as clouds
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import cloudy, upstream
from tests.support.daemon import Daemon, Wired, entry, note

STUCK = """
    CREATE TRIGGER stuck BEFORE INSERT ON valve_commands WHEN new.valve = 'south'
    BEGIN SELECT RAISE(ABORT, 'the valve is stuck.'); END;
    CREATE TRIGGER full BEFORE INSERT ON diary WHEN new.text = 'late'
    BEGIN SELECT RAISE(ABORT, 'the page is full'); END;
"""
FULL, STUCK_VALVE = "database 'plant': the page is full", "database 'plant': the valve is stuck"
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def valve(name: str) -> dict[str, Any]:
    """A call that opens one."""
    return {"name": "set_valve", "arguments": {"valve": name, "position": "open"}}


SCRIPT = "".join(
    (
        entry("both valves", valve("south"), valve("north"), text="Both valves are open."),
        entry("two notes", note("late"), note("early"), text="Both are written down."),
        entry("zwei Notizen", note("late"), note("early"), text="Beide sind notiert."),
        entry("a note and a level", note("late"), {"name": "tank_level", "arguments": {"tank": "south"}}, text="41."),
        entry("a level in a shape", {"name": "tank_level", "arguments": {"tank": "south"}}, text='{"n": 41}'),
        entry("in a shape", note("late"), note("early"), text='{"n": 2}'),
        entry("early, then late", note("early"), note("late"), text="Both are written down."),
    )
)


async def streamed(daemon: Daemon, text: str, **fields: Any) -> tuple[dict[str, Any], str]:
    """(the reply, what its deltas say)."""
    async with Wired(daemon.socket) as client:
        error, reply = await client.call(1, "agent.ask", {"input": text, "stream": True, **fields})
        assert error is None, error
        heard = ""
        for _, offset, piece in (params for _, method, params in client.notifications if method == "agent.delta"):
            heard = heard[:offset] + piece
        return reply, heard


@pytest.mark.parametrize(
    ("asked", "fields", "output"),
    [
        (
            "open both valves",
            {},
            f"set_valve (valve: south, position: open) failed: {STUCK_VALVE}. Valve north is now open.",
        ),
        ("write two notes", {}, f"note (text: late) failed: {FULL}. Both are written down."),
        (
            "Schreib bitte zwei Notizen",
            {},
            f"note (text: late) ist fehlgeschlagen: {FULL}. Beide sind notiert.",
        ),
        (
            "write two notes",
            {"language": "fr"},
            f"note (text: late) a échoué : {FULL}. Both are written down.",
        ),
        ("a note and a level", {}, f"note (text: late) failed: {FULL}. 41."),
    ],
    ids=["say", "words", "language-of-the-question", "language-that-is-asked-for", "a-read-that-worked"],
)
async def test_answer_begins_with_the_act_that_failed(
    tmp_path: Path, asked: str, fields: dict[str, Any], output: str
) -> None:
    """Another call worked, and the model tells of both: edged tells first what failed. Deltas say the same."""
    async with Daemon(tmp_path, script=SCRIPT) as daemon:
        daemon.execute(STUCK)
        reply, heard = await streamed(daemon, asked, **fields)
        assert (reply["status"], reply["output"]) == ("done", output)
        assert heard == output
        assert [call["ok"] for call in reply["tool_calls"]] == [False, True]


async def test_act_that_failed_last_is_the_error_and_nothing_else_is_heard(tmp_path: Path) -> None:
    """What was done before stands in the reply's calls."""
    async with Daemon(tmp_path, script=SCRIPT) as daemon:
        daemon.execute(STUCK)
        reply, heard = await streamed(daemon, "early, then late")
        assert (reply["status"], reply["output"], heard) == ("failed", None, "")
        assert reply["error"]["message"] == f"note: {FULL}"
        assert [call["ok"] for call in reply["tool_calls"]] == [True, False]


@pytest.mark.parametrize(("asked", "status"), [("two in a shape", "failed"), ("a level in a shape", "done")])
async def test_answer_in_a_shape_that_could_not_say_so_fails(tmp_path: Path, asked: str, status: str) -> None:
    """A shape holds no sentence of edged's."""
    async with Daemon(tmp_path, script=SCRIPT) as daemon:
        daemon.execute(STUCK)
        reply, _ = await streamed(daemon, asked, response_schema=NUMBER)
        assert reply["status"] == status
        if status == "failed":
            assert reply["error"]["message"] == f"note: {FULL}"


@pytest.mark.parametrize("where", ["server", "cloud"])
async def test_other_minds_words_after_a_failure_are_not_heard(tmp_path: Path, where: str) -> None:
    """They come before it is known that no call follows; behind an act that failed they count for nothing."""
    async with ScriptedCloud() as server:
        server.will(clouds.calls(("note", {"text": "late"})), clouds.text("It is written down."))
        if where == "server":
            daemon = Daemon(tmp_path)
            model = f'[models.npu]\nengine = "openai"\nbase_url = "{server.base_url}"\nmodel = "large"\n'
            daemon.drop_in(f'{model}[agents.house]\nmodel = "npu"\n')
        else:
            daemon = cloudy(tmp_path, upstream("far", server), route="cloud")
        async with daemon:
            daemon.execute(STUCK)
            reply, heard = await streamed(daemon, "write it down")
        assert (reply["status"], heard) == ("failed", "")
        assert "the page is full" in reply["error"]["message"]


@pytest.mark.parametrize("where", ["server", "cloud"])
async def test_other_minds_answer_begins_with_the_act_that_failed(tmp_path: Path, where: str) -> None:
    """The same rule for every mind."""
    async with ScriptedCloud() as server:
        failing, working = ("note", {"text": "late"}), ("note", {"text": "early"})
        server.will(clouds.calls(failing), clouds.calls(working), clouds.text("Both are written down."))
        if where == "server":
            daemon = Daemon(tmp_path)
            model = f'[models.npu]\nengine = "openai"\nbase_url = "{server.base_url}"\nmodel = "large"\n'
            daemon.drop_in(f'{model}[agents.house]\nmodel = "npu"\n')
        else:
            daemon = cloudy(tmp_path, upstream("far", server), route="cloud")
        async with daemon:
            daemon.execute(STUCK)
            reply, heard = await streamed(daemon, "write both down")
        assert reply["output"] == heard == f"note (text: late) failed: {FULL}. Both are written down."
