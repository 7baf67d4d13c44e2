"""A model that was taught the compact dialect: several calls in a decision, values out of range, what it cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.cloud_daemon import ask
from tests.support.daemon import Daemon, Wired, entry, note

GLAZE = """
[tools.set_oven]
description = "Set the oven."
database = "plant"
sql = "INSERT INTO diary(text) VALUES ('oven ' || :celsius)"
effect = "write"
say = "The oven goes to {celsius} degrees."
parameters.celsius = { type = "number", minimum = 30, maximum = 300 }
[agents.house]
tools = ["tank_level", "set_valve", "note", "set_oven"]
"""
VALVE = {"name": "set_valve", "arguments": {"valve": "north", "position": "open"}}
BROKEN = "SELECT abs(-9223372036854775808 + 0 * length(:tank))"  # an integer overflow
LEVEL = {"name": "tank_level", "arguments": {"tank": "south"}}


def oven(celsius: float) -> dict[str, Any]:
    return {"name": "set_oven", "arguments": {"celsius": celsius}}


SCRIPT = 'dialect = "compact"\n' + "".join(
    (
        entry("both", VALVE, oven(200)),
        entry("two notes", note("one"), note("two"), text="Both are written down."),
        entry("valve and level", VALVE, LEVEL, text="The south tank is 41 percent full."),
        entry("how full", LEVEL, text="It is 41 percent full."),
        entry("made up", LEVEL, text="It is 87 percent full, which is 3 more."),
        entry("too hot", VALVE, oven(3500)),
        entry("fails", note("before"), {"name": "tank_level", "arguments": {"tank": "north"}}, LEVEL, VALVE),
        entry("unknown", {"name": "unable", "arguments": {}}),
        *(entry(f"many {n}", *(note(f"{n}.{i}") for i in range(n))) for n in (3, 7)),
        entry("hello", text="Hello."),
    )
)


def taught(folder: Path, **more: Any) -> Daemon:
    """A daemon whose model decides in the compact dialect; it is not started."""
    daemon = Daemon(folder, script=SCRIPT, **more)
    daemon.drop_in(GLAZE)
    return daemon


async def test_two_things_are_done_in_order_and_each_is_told(tmp_path: Path) -> None:
    """Both have a sentence: nobody has to word the answer."""
    async with taught(tmp_path) as daemon:
        reply = await ask(daemon, "both")
        assert reply["output"] == "Valve north is now open. The oven goes to 200 degrees."
        assert [(call["name"], call["ok"]) for call in reply["tool_calls"]] == [("set_valve", True), ("set_oven", True)]
        assert (reply["outcome"], daemon.rows("diary")) == ("acted", [("oven 200",)])


async def test_answer_tells_what_it_is(tmp_path: Path) -> None:
    async with taught(tmp_path) as daemon:
        outcomes = {
            text: (await ask(daemon, text))["outcome"] for text in ("hello", "how full", "two notes", "unknown")
        }
        assert outcomes == {"hello": "answered", "how full": "answered", "two notes": "acted", "unknown": "unable"}


async def test_value_out_of_range_is_told_and_nothing_of_the_decision_is_done(tmp_path: Path) -> None:
    """The grammar would have made 300 of it."""
    async with taught(tmp_path) as daemon:
        reply = await ask(daemon, "too hot")
        assert reply["output"] == "That is not done: 3500 is outside what is allowed for celsius."
        assert (reply["status"], reply["outcome"], reply["tool_calls"]) == ("done", "unable", [])
        assert daemon.rows("valve_commands") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "unknown: when does the ferry go?",
            "I can neither do that here nor find it out: “unknown: when does the ferry go?”",
        ),
        (
            "unknown: wann fährt die Fähre?",
            "Das kann ich hier weder tun noch herausfinden: „unknown: wann fährt die Fähre?“",
        ),
    ],
)
async def test_what_no_tool_can_do_is_said_in_the_language_of_the_request(tmp_path: Path, text: str, said: str) -> None:
    async with taught(tmp_path) as daemon:
        reply = await ask(daemon, text)
        assert (reply["output"], reply["outcome"], reply["tool_calls"]) == (said, "unable", [])


async def test_agent_may_say_it_in_its_own_words(tmp_path: Path) -> None:
    daemon = taught(tmp_path)
    daemon.drop_in('[agents.house]\nunable = "Please ask at the desk."\n', "60.toml")
    async with daemon:
        assert (await ask(daemon, "unknown"))["output"] == "Please ask at the desk."


async def test_number_that_nobody_gave_is_not_told(tmp_path: Path) -> None:
    """The rows are, plainly."""
    async with taught(tmp_path) as daemon:
        reply = await ask(daemon, "made up")
        assert (reply["output"], reply["outcome"]) == ("level: 41", "answered")


async def test_more_calls_than_a_request_may_take_do_nothing(tmp_path: Path) -> None:
    async with taught(tmp_path) as daemon:
        assert (await ask(daemon, "many 3"))["status"] == "done"
        reply = await ask(daemon, "many 7")
        assert (reply["status"], reply["error"]["code"]) == ("failed", "tool_failed")
        assert reply["error"]["message"] == "7 calls at once, and 6 more may be made (max_steps)"
        assert daemon.rows("diary") == [("3.0",), ("3.1",), ("3.2",)]


async def test_after_a_failure_the_rest_is_not_done_and_the_reply_names_all(tmp_path: Path) -> None:
    """The error goes back to the model once; then the request has failed."""
    daemon = taught(tmp_path)
    daemon.drop_in(f'[tools.tank_level]\nsql = "{BROKEN}"\n', "60.toml")
    async with daemon:
        reply = await ask(daemon, "fails")
        assert reply["status"] == "failed"
        assert reply["error"]["message"].endswith("; done: note; not done: set_valve")
        assert [(call["name"], call["ok"]) for call in reply["tool_calls"][:2]] == [
            ("note", True),
            ("tank_level", False),
        ]
        assert (daemon.rows("diary"), daemon.rows("valve_commands")) == ([("before",)], [])


@pytest.mark.parametrize("text", ["two notes", "both", "valve and level"])
@pytest.mark.parametrize(
    "point", ["agent.decided", "journal.intent", "tool.effect", "journal.result", "agent.answered", "settle.committed"]
)
async def test_decision_for_two_things_is_kept_where_a_kill_has_ended_it(tmp_path: Path, point: str, text: str) -> None:
    """Each is done once, in order, and one reply tells of both, also where the kill came between them."""
    daemon = taught(tmp_path)
    request = {"input": text, "id": "q1"}
    try:
        await daemon.start(point)
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [request]])
            await client.end()
        assert await daemon.ended() == -9
        await daemon.start()
        async with Wired(daemon.socket) as client:
            error, reply = await client.call(1, "agent.ask", request)
        assert (error, reply["status"]) == (None, "done")
        made = {"two notes": "note note", "both": "set_valve set_oven", "valve and level": "set_valve tank_level"}
        assert " ".join(call["name"] for call in reply["tool_calls"]) == made[text]
        assert daemon.rows("diary") == {"two notes": [("one",), ("two",)], "both": [("oven 200",)]}.get(text, [])
        assert len(daemon.rows("valve_commands")) == (0 if text == "two notes" else 1)
    finally:
        await daemon.__aexit__()
