"""What the service manager hears of the daemon: readiness, status, signs of life, and the end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest

from edged.daemon import lifecycle
from edged.host import systemd
from edged.store.database import Database
from edged.store.schema import MIGRATIONS
from tests.support.broker import Mosquitto, Peer, Wire, free_port, until
from tests.support.daemon import ASK, REPLY, Daemon, Wired
from tests.support.http_api import unix_session

PERIOD_S = 0.1  # of the pings: half of what WATCHDOG_USEC says


async def test_ready_status_signs_of_life_and_stopping_in_this_order(tmp_path: Path) -> None:
    """READY comes when the socket answers; the watchdog is fed at twice the pace that is asked for, until the end."""
    async with Daemon(tmp_path, environment={"WATCHDOG_USEC": str(int(2e6 * PERIOD_S))}) as daemon:
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "status"))[0] is None
            began = time.monotonic()
            heard = daemon.notices.count("WATCHDOG=1")
            await daemon.noticed("WATCHDOG=1", heard + 5)
            assert time.monotonic() - began < 5 * PERIOD_S * 2, "slower than the service manager's patience"
            await client.call(2, "models.load", {"name": "small"})
            await daemon.noticed("STATUS=0 running, models loaded: small")
        assert await daemon.stop() == 0
        told = list(dict.fromkeys(notice.split("=")[0] for notice in daemon.notices))
        assert sorted(told) == ["READY", "STATUS", "STOPPING", "WATCHDOG"]
        assert daemon.notices.count("READY=1") == daemon.notices.count("STOPPING=1") == 1
        assert daemon.notices.index("READY=1") < daemon.notices.index("STOPPING=1")
        assert daemon.text().count("event=daemon_ready") == 1
        assert daemon.text().count("event=daemon_stopping reloading=False") == 1


async def ready(daemon: Daemon) -> tuple[int, str]:
    """What GET /readyz says."""
    async with unix_session(daemon.socket.with_name("http.sock")) as http, http.get("/readyz") as response:
        return response.status, await response.text()


async def test_first_publish_behind_ready_is_answered(tmp_path: Path) -> None:
    """A broker keeps nothing for a session that it does not know yet: READY waits for the subscription. The sockets
    serve meanwhile, and /readyz says what is not there."""
    async with Mosquitto(tmp_path) as broker, Wire(broker.port) as wire, Peer(broker.port) as device:
        await device.subscribe(REPLY)
        wire.hold_down()
        daemon = Daemon(tmp_path, broker=wire.port)
        try:
            await daemon.start(ready=False)
            await until(daemon.socket.with_name("http.sock").exists)
            async with Wired(daemon.socket) as client:
                assert (await client.call(1, "agent.ask", {"input": "how full is it?"}))[1]["status"] == "done"
            status, said = await ready(daemon)
            assert (status, said.startswith("mqtt: ")) == (503, True)
            assert "READY=1" not in daemon.notices
            wire.release()
            await daemon.noticed("READY=1")
            await device.publish(ASK, b"how full is it?", ResponseTopic=REPLY)
            assert json.loads((await device.next()).payload)["status"] == "done"
            assert await ready(daemon) == (200, "ok\n")
            assert await daemon.stop() == 0
        finally:
            await daemon.__aexit__()


async def test_broker_that_is_away_does_not_keep_the_daemon_from_being_ready(tmp_path: Path) -> None:
    """It is waited for a moment; then requests are taken by the other ways, and /readyz says what is missing."""
    port = free_port()
    began = time.monotonic()
    async with Daemon(tmp_path, broker=port) as daemon:
        assert time.monotonic() - began >= lifecycle.READY_WITHIN_S
        status, said = await ready(daemon)
        assert status == 200
        assert said.splitlines()[0] == "ok"
        assert f"mqtt: cannot connect to 127.0.0.1:{port}" in said
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "agent.ask", {"input": "how full is it?"}))[1]["status"] == "done"
        assert await daemon.stop() == 0


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}])
async def test_no_signs_of_life_where_nobody_asked_for_them(tmp_path: Path, environment: dict[str, str]) -> None:
    """No watchdog at all, or one of another process."""
    async with Daemon(tmp_path, environment=environment) as daemon, Wired(daemon.socket) as client:
        for msgid in range(20):
            assert (await client.call(msgid, "status"))[0] is None
        assert "WATCHDOG=1" not in daemon.notices


async def test_engine_that_hangs_stops_the_signs_of_life_and_is_named(tmp_path: Path) -> None:
    """The event loop lives on, and that alone must not look like health."""
    environment = {"EDGED_TEST_STALL": "stall", "WATCHDOG_USEC": str(int(2e6 * PERIOD_S))}
    async with Daemon(tmp_path, environment=environment) as daemon, Wired(daemon.socket) as client:
        await daemon.noticed("WATCHDOG=1", 3)
        client.send([0, 1, "agent.ask", [{"input": "stall"}]])
        await until(lambda: "the watchdog is not fed" in daemon.text())
        assert "in: engine; the watchdog is not fed event=watchdog_not_fed" in daemon.text()
        lines = daemon.text().count("the watchdog is not fed")
        await until(
            lambda: daemon.text().count("the watchdog is not fed") > lines
        )  # what came before it is heard by then
        heard = daemon.notices.count("WATCHDOG=1")
        lines = daemon.text().count("the watchdog is not fed")
        await until(lambda: daemon.text().count("the watchdog is not fed") >= lines + 3)  # three turns without a ping
        assert daemon.notices.count("WATCHDOG=1") == heard
        assert (await client.call(2, "status"))[0] is None


async def test_store_that_hangs_counts_as_stalled_and_an_idle_one_does_not(tmp_path: Path) -> None:
    """From the moment it has work; what waited idle for long is not behind."""
    store = Database(tmp_path / "edged.db", MIGRATIONS)
    await store.start()
    parts = [("store", store.progress)]
    await store.write(lambda c: None)
    limit_s = 0.05
    began = time.monotonic()
    await until(lambda: time.monotonic() - began > 2 * limit_s)
    assert systemd.stalled(parts, limit_s) == []
    gate = threading.Event()
    hanging = asyncio.create_task(store.write(lambda c: gate.wait(20)))
    await asyncio.sleep(0)
    assert systemd.stalled(parts, limit_s) == []
    await until(lambda: systemd.stalled(parts, limit_s) == ["store"])
    gate.set()
    assert await hanging
    await until(lambda: systemd.stalled(parts, limit_s) == [])
    await store.stop()


async def test_log_under_systemd_carries_priorities(tmp_path: Path) -> None:
    """Each line begins with one; journald adds the time."""
    async with Daemon(tmp_path, environment={"JOURNAL_STREAM": "8:1"}) as daemon:
        assert await daemon.stop() == 0
        lines = daemon.text().splitlines()
        assert len(lines) > 1
        assert all(line.startswith(("<6>", "<4>", "<3>")) for line in lines)
