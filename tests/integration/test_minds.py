"""A mind that lies outside the package stands in front of the others, in the real daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.cli import edged
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import ask, cloudy, upstream
from tests.support.daemon import ROOT, Daemon, Wired

MEMBERS = {"EDGED_TEST_MEMBERS": str(ROOT / "tests" / "support" / "phrases.py")}
LEVEL = {
    "name": "tank_level",
    "arguments": {"tank": "south"},
    "result": {"rows": [{"level": 41.0}], "truncated": False},
}


def phrased(folder: Path, **more: Any) -> Daemon:
    """A daemon that has the mind; it is not started."""
    return Daemon(folder, environment=MEMBERS, **more)


async def test_mind_in_front_answers_and_passes_on(tmp_path: Path) -> None:
    """The reply says who answered and why, and so do the metrics; of what it passes on nothing is different."""
    async with phrased(tmp_path) as daemon:
        mine = await ask(daemon, "good morning")
        assert (mine["status"], mine["output"]) == ("done", "Good morning to you.")
        assert mine["route"] == {
            "where": "phrases", "model": "", "reason": "known_phrase", "confidence": None, "score": None,
        }  # fmt: skip
        assert mine["usage"]["prompt_tokens"] == 0
        shown = await edged("requests", "show", mine["rid"], config=daemon.config)
        assert "route   phrases: known_phrase" in shown.out
        other = await ask(daemon, "open the north valve")
        assert (other["output"], other["route"]["where"]) == ("Valve north is now open.", "local")
        connector = aiohttp.UnixConnector(str(tmp_path / "run" / "http.sock"))
        async with aiohttp.ClientSession(connector=connector) as http, http.get("http://edged/metrics") as response:
            metrics = await response.text()
        assert 'edged_requests_total{agent="house",status="done",where="phrases"} 1.0' in metrics


async def test_mind_in_front_acts_under_the_same_journal_audit_and_roles(tmp_path: Path) -> None:
    """A call of it is one like any other: in the reply, in the audit log, and refused to those who may not have it."""
    daemon = phrased(tmp_path)
    daemon.drop_in('[roles.viewer]\nagents = ["house"]\ntools = ["tank_level"]\n')
    daemon.drop_in(f'[access]\nunix_uid = {{ "{os.getuid()}" = "viewer" }}\n', "60.toml")
    async with daemon:
        refused = await ask(daemon, "write down rain")
        assert (refused["status"], refused["error"]["code"]) == ("failed", "forbidden")
        assert (refused["route"]["where"], refused["tool_calls"], daemon.rows("diary")) == ("phrases", [], [])
        (tmp_path / "conf.d" / "50.toml").write_text('[roles.viewer]\nagents = ["house"]\ntools = ["*"]\n')
        await daemon.reload()
        written = await ask(daemon, "write down rain")
        assert (written["output"], written["route"]["where"]) == ("It is written down.", "phrases")
        assert [(call["name"], call["ok"]) for call in written["tool_calls"]] == [("note", True)]
        assert daemon.rows("diary") == [("rain",)]
        log = await edged("requests", "audit", "--json", config=daemon.config)
        assert [each["about"]["tool"] for each in log.json() if each["what"] == "tool.called"] == ["note"]


async def test_what_a_mind_did_before_it_passed_on_is_known_to_the_next(tmp_path: Path) -> None:
    """It looks, the model words it; nothing is done twice."""
    async with phrased(tmp_path) as daemon:
        reply = await ask(daemon, "look first: how full is it?")
        assert (reply["output"], reply["route"]["where"]) == ("It is 41 percent full.", "local")
        assert reply["tool_calls"] == [{**LEVEL, "ok": True}]


@pytest.mark.parametrize(
    ("point", "text"),
    [
        *((point, "write down rain") for point in ("agent.decided", "tool.effect", "journal.result", "agent.answered")),
        *((point, "look first: how full is it?") for point in ("journal.intent", "journal.result", "agent.answered")),
    ],
)
async def test_mind_goes_on_where_a_kill_has_ended_it(tmp_path: Path, point: str, text: str) -> None:
    """One act and one outcome, whatever was true when the process was killed."""
    daemon = phrased(tmp_path)
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
        mine = text.startswith("write")
        assert reply["route"]["where"] == ("phrases" if mine else "local")
        assert [call["name"] for call in reply["tool_calls"]] == (["note"] if mine else ["tank_level"])
        assert daemon.rows("diary") == ([("rain",)] if mine else [])
    finally:
        await daemon.__aexit__()


async def test_mind_in_front_needs_no_link_where_the_agent_asks_the_cloud(tmp_path: Path) -> None:
    """What it knows is answered while everything else waits, or fails, for want of a link; and is not called weaker."""
    async with ScriptedCloud() as cloud:
        daemon = cloudy(tmp_path, upstream("far", cloud), route="cloud", when_offline="fail")
        daemon.environment = MEMBERS
        async with daemon:
            assert (await ask(daemon, "hello"))["route"]["where"] == "cloud"
            await cloud.stop()
            assert (await ask(daemon, "hello"))["error"]["code"] == "no_link"
            reply = await ask(daemon, "good morning")
            assert (reply["status"], reply["route"]["where"], reply["degraded"]) == ("done", "phrases", False)


async def test_route_tells_of_a_mind_that_comes_first(tmp_path: Path) -> None:
    """`edged route --decide` says what it would do, and does nothing."""
    async with phrased(tmp_path) as daemon:
        told = await edged("route", "write down rain", "--decide", config=daemon.config)
        assert told.out.splitlines()[1:3] == [
            "Mind phrases comes before that and takes it.",
            'It would call note(text="rain").',
        ]
        assert daemon.rows("diary") == []
