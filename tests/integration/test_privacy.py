"""Nothing of what is private leaves: a listener on the wire while everything happens that would hand a request over."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import cloud as clouds
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import ask, cloudy, refused, upstream
from tests.support.daemon import Daemon, entry
from tests.support.tap import Tap

CANARY = "Xk3canary9Q"  # in every private request, and nowhere else
CONTROL = "control77Z"  # in the one request that may leave: the listener hears it, so it would have heard the others


@pytest.fixture
async def cloud() -> AsyncIterator[ScriptedCloud]:
    """One that is up all the time."""
    async with ScriptedCloud() as scripted:
        yield scripted


CALL = {"name": "set_valve", "arguments": {"valve": "north", "position": "open"}}
SCRIPT = "".join(
    (
        entry("escalate", {"name": "escalate", "arguments": {}}, text="said here"),
        entry("unsure", CALL, confidence=0.2),
        entry("fails", CALL),
        entry("silent", text=""),
    )
)


async def everything_that_could_escalate(daemon: Daemon, **fields: str) -> None:
    """A request of each kind that the router would send to the cloud, were it not private."""
    statuses = [
        (await ask(daemon, f"escalate {CANARY}", **fields))["status"],
        (await ask(daemon, f"unsure {CANARY}", **fields))["status"],
        (await ask(daemon, f"fails {CANARY}", **fields))["status"],
        (await ask(daemon, f"silent {CANARY}", **fields))["status"],
        (await ask(daemon, CANARY * 5000, **fields))["status"],
        (await ask(daemon, f"hello {CANARY}", conversation="k", **fields))["status"],
    ]
    assert statuses == ["done", "done", "failed", "done", "done", "done"]
    assert (await refused(daemon, f"hello {CANARY}", **{**fields, "route": "cloud"}))["code"] == "bad_request"


@pytest.mark.skipif(os.geteuid() != 0, reason="listening on the wire takes root")
@pytest.mark.parametrize("when_offline", ["wait", "local", "fail"])
async def test_private_requests_never_reach_the_wire(tmp_path: Path, cloud: ScriptedCloud, when_offline: str) -> None:
    """By the request's own wish, through every reason to hand it over, with a link that is up."""
    cloud.otherwise = clouds.text("from the cloud")
    daemon = cloudy(tmp_path, upstream("far", cloud), script=SCRIPT, min_confidence=0.5, when_offline=when_offline)
    with Tap(cloud.port) as tap:
        async with daemon:
            daemon.execute("DROP TABLE valve_commands")
            await everything_that_could_escalate(daemon, privacy="device")
            leaves = await ask(daemon, f"escalate {CONTROL}", conversation="k")
            assert leaves["output"] == "from the cloud"
        assert CONTROL.encode() in tap.heard
        assert CANARY.encode() not in tap.heard
    assert len(cloud.chats) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="listening on the wire takes root")
async def test_private_agent_never_reaches_the_wire(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """By its configuration: no request can loosen it, not even one that says `any`."""
    daemon = cloudy(tmp_path, upstream("far", cloud), script=SCRIPT, privacy="device", min_confidence=0.5)
    with Tap(cloud.port) as tap:
        async with daemon:
            daemon.execute("DROP TABLE valve_commands")
            await everything_that_could_escalate(daemon, privacy="any")
            await cloud.until(lambda: cloud.probes > 0)
        assert b"/v1/models" in tap.heard  # the link is looked after all the same
        assert CANARY.encode() not in tap.heard
    assert cloud.chats == []
