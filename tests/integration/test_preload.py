"""Models that are loaded at the start: the daemon is ready before, and whatever comes of them it stays so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.broker import until
from tests.support.daemon import Daemon, Wired

PRELOAD = "[models.small]\npreload = true\n"


async def model_state(client: Wired) -> str:
    """Of the one model."""
    error, status = await client.call(900, "status")
    assert error is None
    return str(status["models"]["small"]["state"])


async def test_a_preloaded_model_is_there_before_anybody_asks(tmp_path: Path) -> None:
    """The daemon is ready first; it goes on watching the model as any other."""
    daemon = Daemon(tmp_path)
    daemon.drop_in(PRELOAD)
    async with daemon, Wired(daemon.socket) as client:
        await daemon.noticed("STATUS=0 running, models loaded: small")
        assert daemon.notices.index("READY=1") < daemon.notices.index("STATUS=0 running, models loaded: small")
        assert await model_state(client) == "ready"
        await until(lambda: "model small is warm" in daemon.text())
        assert "3 prefixes" in daemon.text()
        error, reply = await client.call(2, "agent.ask", {"input": "open the north valve"})
        assert error is None
        assert reply["timing"]["load_ms"] < 50
        assert (await client.call(3, "models.unload", {"name": "small"}))[0] is None
        assert await model_state(client) == "unloaded"
        assert await daemon.stop() == 0


async def test_without_it_nothing_is_loaded(tmp_path: Path) -> None:
    """The default: memory is taken when it is needed."""
    async with Daemon(tmp_path) as daemon, Wired(daemon.socket) as client:
        assert await model_state(client) == "unloaded"
        assert await daemon.stop() == 0
        assert "warm" not in daemon.text()


async def test_an_idle_preloaded_model_goes_like_any_other(tmp_path: Path) -> None:
    """It is not pinned."""
    daemon = Daemon(tmp_path, config="[memory]\nidle_unload_s = 0.1\n")
    daemon.drop_in(PRELOAD)
    async with daemon:
        await until(lambda: "model small unloaded (idle)" in daemon.text())


@pytest.mark.parametrize("source", ["scripted:/none/such.toml", "file:/none/such.gguf"])
async def test_a_model_that_cannot_be_loaded_is_a_warning(tmp_path: Path, source: str) -> None:
    """The daemon lives, serves, and stops cleanly; the request that needs the model says why it fails."""
    daemon = Daemon(tmp_path)
    daemon.drop_in(f"{PRELOAD}source = {json.dumps(source)}\n")
    async with daemon, Wired(daemon.socket) as client:
        await until(lambda: "model small is not preloaded" in daemon.text())
        error, reply = await client.call(2, "agent.ask", {"input": "how full is it?"})
        assert error is None
        assert (reply["status"], reply["error"]["code"]) == ("failed", "model_unavailable")
        assert await daemon.stop() == 0
        assert "a part of the daemon died" not in daemon.text()


async def test_a_failed_preload_is_an_event(tmp_path: Path) -> None:
    """For whoever watches: here somebody who came before the load was through."""
    daemon = Daemon(tmp_path, environment={"EDGED_TEST_SLOW_LOAD": "1.5"})
    (tmp_path / "damaged.toml").write_text("replies = 5")
    daemon.drop_in(f'{PRELOAD}source = "scripted:{tmp_path}/damaged.toml"\n')
    async with daemon, Wired(daemon.socket) as client:
        assert (await client.call(1, "events.subscribe"))[0] is None
        while not (told := [frame[2][0] for frame in client.notifications if frame[2][0]["event"] == "preload_failed"]):
            assert await client.read()
        assert (told[0]["model"], told[0]["agent"], told[0]["code"]) == ("small", None, "model_unavailable")
        assert "damaged.toml" in told[0]["reason"]


async def test_a_stop_while_a_model_is_preloaded_is_clean_and_quick(tmp_path: Path) -> None:
    """A load may take a minute on a slow card."""
    daemon = Daemon(tmp_path, environment={"EDGED_TEST_SLOW_LOAD": "60"})
    daemon.drop_in(PRELOAD)
    async with daemon, Wired(daemon.socket) as client:
        await until_loading(client)
        error, _ = await client.call(2, "tools.call", {"name": "tank_level", "arguments": {"tank": "north"}})
        assert error is None
        assert await daemon.stop() == 0
        assert "a part of the daemon died" not in daemon.text()
        assert "not preloaded" not in daemon.text()


async def test_status_tells_of_the_states_on_the_disk(tmp_path: Path) -> None:
    """Where a model may have some; a scripted one has none."""
    daemon = Daemon(tmp_path)
    daemon.drop_in('[models.other]\nsource = "file:/none/such.gguf"\n')
    async with daemon, Wired(daemon.socket) as client:
        error, status = await client.call(1, "status")
        assert error is None
        assert status["snapshots"] == {"files": 0, "bytes": 0, "written_bytes": 0, "restored": 0, "refused": 0}
        await until((tmp_path / "state" / "snapshots").is_dir)
        assert (tmp_path / "state" / "snapshots").stat().st_mode & 0o777 == 0o700


async def until_loading(client: Wired) -> None:
    """Wait until the governor has begun."""
    for _ in range(200):
        if await model_state(client) == "loading":
            return
    raise AssertionError("it never began to load")
