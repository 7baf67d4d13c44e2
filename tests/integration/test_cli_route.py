"""`edged route`: why a request would go where, in sentences a person understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged.agent.router import Reason
from edged.cli.route import WHY
from tests.support.cli import edged
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import cloudy, upstream
from tests.support.daemon import Daemon
from tests.support.msgpack_server import Refuse, StandIn

UP = {"name": "big", "up": True, "room": True, "budget_left": True, "state": "up", "reason": None}
DOWN = {**UP, "name": "lan", "up": False, "state": "down", "reason": "connection refused"}
FROM = (
    "agent house, model small: route auto, privacy any, when offline wait, calls below confidence 0.80 go to the cloud"
)
PRIVATE = "it would better go to the cloud, and nothing of it may leave the board"
ANY_CALL = "calls of any confidence are made"
UNSURE = "the model was not sure enough of its call (0.42, and the agent wants 0.80)"
CALL = {"name": "set_valve", "arguments": {"valve": "north"}, "confidence": 0.42}


def told(go: str, reason: str, **changed: Any) -> dict[str, Any]:
    """What the daemon says of a decision."""
    base = {
        "agent": "house",
        "model": "small",
        "route": "auto",
        "privacy": "any",
        "when_offline": "wait",
        "min_confidence": 0.8,
        "line": {"least": 0.8, "counts": "confidence"},
        "go": go,
        "reason": reason,
        "upstream": None,
        "degraded": False,
        "error": None,
        "upstreams": [UP],
        "call": None,
        "calls": [],
    }
    return {**base, **changed}


@pytest.mark.parametrize(
    ("document", "lines"),
    [
        (
            told("local", "private", privacy="device", upstreams=[], min_confidence=0.0, line=None),
            [
                f"local: model small would answer on the board: {PRIVATE}.",
                FROM.replace("any", "device").replace("calls below confidence 0.80 go to the cloud", ANY_CALL),
            ],
        ),
        (
            told("cloud", "unsure", upstream="big", call=CALL, upstreams=[DOWN, UP]),
            [
                f"cloud: upstream big would answer: {UNSURE}.",
                'The model would call set_valve(valve="north"), with confidence 0.42.',
                FROM,
                "upstream lan: cannot be used: down, connection refused",
                "upstream big: can be used (up)",
            ],
        ),
        (
            told("wait", "cloud_asked", upstreams=[{**UP, "room": False}]),
            [
                "wait: it would wait until an upstream takes it: the cloud was asked for.",
                FROM,
                "upstream big: it has as many requests as it bears (up)",
            ],
        ),
        (
            told(
                "fail",
                "over_budget",
                error={"code": "over_budget", "message": "today's tokens are spent"},
                upstreams=[{**UP, "budget_left": False}],
            ),
            [
                "fail: it would get no answer: it needs the cloud, and today's tokens are spent.",
                "It would end with over_budget: today's tokens are spent",
                FROM,
                "upstream big: today's tokens are spent (up)",
            ],
        ),
    ],
    ids=["private", "unsure", "wait", "budget"],
)
async def test_decision_is_told_in_sentences(tmp_path: Path, document: dict[str, Any], lines: list[str]) -> None:
    """What would happen, why, and what it was decided from."""
    async with StandIn(tmp_path, {"route.explain": document}) as daemon:
        ended = await edged("route", "open it", "--socket", str(daemon.path))
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.splitlines() == lines


async def test_weaker_way_is_said_to_be_one(tmp_path: Path) -> None:
    """As the reply will say it."""
    async with StandIn(tmp_path, {"route.explain": told("local", "offline", degraded=True)}) as daemon:
        ended = await edged("route", "open it", "--socket", str(daemon.path))
        assert "degraded" in ended.out


async def test_wishes_go_to_the_daemon_as_they_are_written(tmp_path: Path) -> None:
    """Those not given are not sent; the document is the daemon's."""
    document = told("local", "local_ok")
    async with StandIn(tmp_path, {"route.explain": document}) as daemon:
        socket = ("--socket", str(daemon.path))
        ended = await edged(
            *("route", "open it", "--agent", "house", "--route", "auto", "--privacy", "any", "--decide", "--json"),
            *socket,
        )
        assert ended.json() == document
        wanted = {"agent": "house", "route": "auto", "privacy": "any"}
        assert daemon.calls == [("route.explain", {"input": "open it", "decide": True, **wanted})]
        await edged("route", "open it", *socket)
        assert daemon.calls[-1] == ("route.explain", {"input": "open it", "decide": False})


async def test_contradiction_is_65_with_the_routers_sentence(tmp_path: Path) -> None:
    """As `edged ask` would say it."""
    refusal = Refuse("bad_request", "route: 'cloud' contradicts privacy 'device'")
    async with StandIn(tmp_path, {"route.explain": refusal}) as daemon:
        ended = await edged("route", "open it", "--route", "cloud", "--json", "--socket", str(daemon.path))
        assert (ended.code, ended.json()["error"]) == (65, refusal.error)


async def test_reason_of_a_newer_daemon_is_shown_as_its_word(tmp_path: Path) -> None:
    """Better than none."""
    async with StandIn(tmp_path, {"route.explain": told("local", "moon_phase")}) as daemon:
        ended = await edged("route", "open it", "--socket", str(daemon.path))
        assert "moon_phase" in ended.out.splitlines()[0]


def test_every_reason_of_the_router_has_its_sentence() -> None:
    """A new one needs a line in edged/cli/route.py."""
    assert set(WHY) == set(Reason)


async def test_daemon_without_a_cloud_answers_itself_and_does_nothing_yet(tmp_path: Path) -> None:
    """The call is only told; an agent nobody configured is the caller's mistake."""
    async with Daemon(tmp_path) as daemon:
        told = await edged("route", "open the north valve", "--decide", config=daemon.config)
        assert (told.code, told.err) == (0, "")
        assert told.out.splitlines()[:2] == [
            "local: model small would answer on the board: nothing speaks against answering on the board.",
            'The model would call set_valve(valve="north", position="open"), with score 1.00.',
        ]
        assert (await edged("route", "x", "--agent", "nobody", config=daemon.config)).code == 65
        assert (await edged("route", "x", "--route", "cloud", config=daemon.config)).code == 65
        assert daemon.rows("valve_commands") == []
        assert daemon.states() == []


async def test_daemon_with_a_cloud_tells_why_it_would_go_there_or_wait(tmp_path: Path) -> None:
    """Asked for, handed over, too little confidence; and the same with the link gone."""
    async with ScriptedCloud() as cloud, cloudy(tmp_path, upstream("far", cloud), min_confidence=0.8) as daemon:
        asked = await edged("route", "hello", "--route", "cloud", config=daemon.config)
        assert asked.out.startswith("cloud: upstream far would answer: the cloud was asked for.\n")
        handed = await edged("route", "too hard", "--decide", config=daemon.config)
        assert "the board's model chose to hand it over" in handed.out.splitlines()[0]
        unsure = await edged("route", "unsure", "--decide", config=daemon.config)
        assert unsure.out.splitlines()[0] == f"cloud: upstream far would answer: {UNSURE.replace('0.42', '0.30')}."
        private = await edged("route", "unsure", "--decide", "--privacy", "device", config=daemon.config)
        assert private.out.startswith("local: edged would ask whether to do it: the model was not sure enough of its")
        await cloud.stop()
        assert (await edged("ask", "hello", "--route", "cloud", "--deadline", "0.5", config=daemon.config)).code
        waiting = await edged("route", "hello", "--route", "cloud", config=daemon.config)
        assert waiting.out.startswith("wait: it would wait until an upstream takes it: the cloud was asked for.\n")
        assert "upstream far: cannot be used: down" in waiting.out
        status = await edged("status", config=daemon.config)
        assert "\nupstream  far: down since " in status.out
        assert f"\nhttp  {tmp_path}/run/http.sock\n" in status.out
        assert cloud.received == [received for received in cloud.received if received.method == "GET"]
