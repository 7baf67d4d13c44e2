"""Times that a model counts from now: what edged makes of them, across a crash and without a clock."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.support import cloud as clouds
from tests.support.cli import edged
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import ask, upstream
from tests.support.daemon import Daemon, Wired, entry

ALARM = """
[node]
timezone = "Europe/Berlin"
[tools.set_alarm]
description = "Set the alarm."
database = "plant"
sql = "INSERT INTO diary(text) VALUES (:at || ' ' || :every)"
effect = "write"
say = "The alarm is set for {at}."
parameters.at = { format = "date-time" }
parameters.every = { format = "duration", default = "PT0S" }
[tools.opens]
description = "When it opens."
database = "plant"
sql = "INSERT INTO diary(text) VALUES (:at || ' ' || :day)"
effect = "write"
parameters.at = { format = "time" }
parameters.day = { format = "date" }
[agents.house]
tools = ["tank_level", "set_alarm", "opens"]
"""
SATURDAY = datetime(2030, 3, 30, 12, 0, 5, tzinfo=ZoneInfo("Europe/Berlin"))  # at night the clocks are put forward
LONG_AGO_S = -20 * 365 * 86_400.0


def alarm(at: str, **more: str) -> dict[str, Any]:
    return {"name": "set_alarm", "arguments": {"at": at, **more}}


OPENS = {"name": "opens", "arguments": {"at": "now+1h30m", "day": "mon"}}
ABSOLUTE = "2030-07-01 07:00"
ENTRIES = "".join(
    (
        entry("twenty minutes", alarm("now+20m")),
        entry("tomorrow night", alarm("tomorrow 02:30", every="90m")),
        entry("both", alarm("sun 18:30"), OPENS, text="Both are done."),
        entry("it opens", OPENS, text="It is set."),
        entry("on the first of July", alarm(ABSOLUTE)),
        entry("no such day", alarm("2030-02-29 07:00")),
        entry("in 20 Minuten", alarm("now+20m")),
        entry("how full", {"name": "tank_level", "arguments": {"tank": "south"}}, text="It is 41 percent full."),
    )
)


def daemon_at(folder: Path, *, dialect: str = "compact", wall: datetime | None = SATURDAY, more: str = "") -> Daemon:
    """A daemon whose clock says this, or was never set; it is not started."""
    put(folder, wall)
    script = f'dialect = "{dialect}"\n{ENTRIES}' if dialect else ENTRIES
    daemon = Daemon(folder, script=script, environment={"EDGED_TEST_CLOCK": str(folder / "clock")})
    daemon.drop_in(ALARM + more)
    return daemon


def put(folder: Path, wall: datetime | None) -> None:
    """The daemon's clock is put to this time; None: as on a board that was switched on without a battery."""
    off_s = LONG_AGO_S if wall is None else wall.timestamp() - time.time()
    (folder / "clock").write_text(str(off_s))


@pytest.mark.parametrize("dialect", ["compact", ""])
async def test_tool_gets_and_reply_tells_the_absolute_time(tmp_path: Path, dialect: str) -> None:
    """In the board's zone, with its summer time; the model's own words are nowhere."""
    async with daemon_at(tmp_path, dialect=dialect) as daemon:
        soon = await ask(daemon, "in twenty minutes")
        assert soon["output"].startswith("The alarm is set for 2030-03-30T12:20:")
        night = await ask(daemon, "tomorrow night")
        at = "2030-03-31T03:30:00+02:00"
        assert night["tool_calls"][0]["arguments"] == {"at": at, "every": "PT90M"}
        assert (night["output"], night["outcome"]) == (f"The alarm is set for {at}.", "acted")
        await ask(daemon, "it opens")
        assert [text for (text,) in daemon.rows("diary")[1:]] == [f"{at} PT90M", "13:30 2030-04-01"]


@pytest.mark.parametrize("point", ["agent.decided", "journal.intent", "tool.effect", "journal.result"])
async def test_resumed_request_counts_from_when_it_was_accepted(tmp_path: Path, point: str) -> None:
    """Hours later; where the kill came before the intent the model decides anew."""
    daemon = daemon_at(tmp_path)
    request = {"input": "both", "id": "q1"}
    try:
        await daemon.start(point)
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [request]])
            await client.end()
        assert await daemon.ended() == -9
        put(tmp_path, SATURDAY.replace(day=31, hour=20))
        await daemon.start()
        async with Wired(daemon.socket) as client:
            error, reply = await client.call(1, "agent.ask", request)
        assert (error, reply["status"]) == (None, "done")
        assert [text for (text,) in daemon.rows("diary")] == ["2030-03-31T18:30:00+02:00 PT0S", "13:30 2030-04-01"]
    finally:
        await daemon.__aexit__()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("in twenty minutes", "That is not done: this board's clock is not set, so nobody knows when that would be."),
        (
            "bitte in 20 Minuten",
            "Das wird nicht getan: Die Uhr dieses Geräts ist nicht gestellt, also ist unbekannt, wann das wäre.",
        ),
    ],
)
async def test_without_a_clock_nothing_is_counted_from_it(tmp_path: Path, text: str, said: str) -> None:
    """What is absolute works, and what has nothing to do with times."""
    async with daemon_at(tmp_path, wall=None) as daemon:
        reply = await ask(daemon, text)
        assert (reply["status"], reply["outcome"], reply["output"]) == ("done", "unable", said)
        assert (reply["tool_calls"], daemon.rows("diary")) == ([], [])
        assert (await ask(daemon, "on the first of July"))["outcome"] == "acted"
        assert (await ask(daemon, "how full"))["output"] == "It is 41 percent full."
        assert daemon.rows("diary") == [("2030-07-01T07:00:00+02:00 PT0S",)]


async def test_shape_holds_no_sentence_about_the_clock(tmp_path: Path) -> None:
    """The request fails with it; and so does what would have been done is told beforehand."""
    asked = {"input": "in twenty minutes", "response_schema": {"type": "object", "properties": {"at": {}}}}
    async with daemon_at(tmp_path, wall=None) as daemon, Wired(daemon.socket) as client:
        error, reply = await client.call(1, "agent.ask", asked)
        assert (error, reply["status"], reply["error"]["code"]) == (None, "failed", "tool_failed")
        assert "this board's clock is not set" in reply["error"]["message"]
        assert daemon.rows("diary") == []
        error, told = await client.call(2, "route.explain", {**asked, "decide": True})
        assert error is None
        assert "this board's clock is not set" in told["call"]["unable"]


async def test_clock_that_is_set_later_does_not_tell_when_a_request_was_accepted(tmp_path: Path) -> None:
    """It was accepted in the dark, and stays so. A new one is not."""
    daemon = daemon_at(tmp_path, wall=None)
    try:
        await daemon.start("work.claimed")
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"input": "in twenty minutes", "id": "q1"}]])
            await client.end()
        assert await daemon.ended() == -9
        put(tmp_path, SATURDAY)
        await daemon.start()
        assert (await ask(daemon, "in twenty minutes", id="q1"))["outcome"] == "unable"
        assert (await ask(daemon, "in twenty minutes", id="q2"))["outcome"] == "acted"
    finally:
        await daemon.__aexit__()


async def test_day_that_no_calendar_has_goes_back_to_the_model_once(tmp_path: Path) -> None:
    async with daemon_at(tmp_path) as daemon:
        reply = await ask(daemon, "no such day")
        assert (reply["status"], reply["tool_calls"], daemon.rows("diary")) == ("failed", [], [])
        assert "at: '2030-02-29 07:00' is no date-time" in reply["error"]["message"]


async def test_route_shows_what_was_said_and_what_it_is(tmp_path: Path) -> None:
    async with daemon_at(tmp_path) as daemon:
        told = await edged("route", "tomorrow night", "--decide", config=daemon.config)
        assert told.out.splitlines()[1:4] == [
            'The model would call set_alarm(at="2030-03-31T03:30:00+02:00", every="PT90M"), with score 1.00.',
            'It said at="tomorrow 02:30", which is "2030-03-31T03:30:00+02:00".',
            'It said every="90m", which is "PT90M".',
        ]
        call = (await edged("route", "tomorrow night", "--decide", "--json", config=daemon.config)).json()["call"]
        assert call["said"] == {"at": "tomorrow 02:30", "every": "90m"}
        put(tmp_path, None)
        told = await edged("route", "tomorrow night", "--decide", config=daemon.config)
        assert told.out.splitlines()[1:3] == [
            'The model would call set_alarm(at="tomorrow 02:30", every="90m"), with score 1.00.',
            "The answer would be: That is not done: this board's clock is not set, so nobody knows when that would be.",
        ]
        assert daemon.rows("diary") == []


async def test_call_by_hand_has_absolute_times(tmp_path: Path) -> None:
    """Nobody knows what it would count from: it is not made fit, as ever."""
    async with daemon_at(tmp_path) as daemon, Wired(daemon.socket) as client:
        arguments = {"at": "2030-07-01T07:00:00Z"}
        error, _ = await client.call(1, "tools.call", {"name": "set_alarm", "arguments": arguments})
        assert error is None
        assert daemon.rows("diary") == [("2030-07-01T07:00:00Z PT0S",)]


async def test_served_model_is_told_the_forms_and_may_use_them(tmp_path: Path) -> None:
    """What is none goes back to it; the same call again is the same call."""
    async with ScriptedCloud() as server:
        night = ("set_alarm", {"at": "tomorrow 02:30"})
        server.will(clouds.calls(("set_alarm", {"at": "soon"})), clouds.calls(night))
        model = f'[models.npu]\nengine = "openai"\nbase_url = "{server.base_url}"\nmodel = "large"\n'
        async with daemon_at(tmp_path, more=f'model = "npu"\n{model}') as daemon:
            reply = await ask(daemon, "wake me tomorrow night")
            assert [call["arguments"] for call in reply["tool_calls"]] == [{"at": "2030-03-31T03:30:00+02:00"}]
            assert len(daemon.rows("diary")) == 1
    body = server.chats[0].body
    assert body["messages"][-1]["content"] == "Now: Sat 2030-03-30 12:00, Europe/Berlin\nwake me tomorrow night"
    shown = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in body["tools"]}
    assert shown["opens"]["at"] == {"type": "string", "description": 'HH:MM, or "now+20m"'}
    assert "at: 'soon' is no date-time" in json.dumps(server.chats[1].body["messages"])


async def test_upstream_is_told_the_time_as_it_is(tmp_path: Path) -> None:
    """It is no number that identifies anybody. Without a clock it hears that nobody knows."""
    async with ScriptedCloud() as far:
        far.will(clouds.calls(("set_alarm", {"at": "now+20m"})), clouds.text("It is set."))
        cloudy = f'privacy = "any"\nroute = "cloud"\n{upstream("far", far)}'
        async with daemon_at(tmp_path, more=cloudy) as daemon:
            reply = await ask(daemon, "in twenty minutes, please")
            assert reply["tool_calls"][0]["arguments"]["at"].startswith("2030-03-30T12:20:")
            put(tmp_path, None)
            await ask(daemon, "and now?")
    said = [chat.body["messages"] for chat in far.chats]
    assert said[0][-1]["content"] == "Now: Sat 2030-03-30 12:00, Europe/Berlin\nin twenty minutes, please"
    assert said[1][: len(said[0])] == said[0]
    assert said[2][-1]["content"] == "Now: unknown\nand now?"
