"""What a start makes of what an earlier daemon has left: innocent requests go on however often the daemon is ended, the
one that is to blame does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from edged.requests.recovery import MAX_ALONE
from edged.requests.worker import MAX_RUNNING
from edged.store.lifecycle import State
from tests.integration.test_pipeline import House, crash
from tests.support.broker import until
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import cloudy, upstream
from tests.support.daemon import Daemon, Wired, entry, note
from tests.support.faults import may_mount

REQUESTS, FEW = 24, 5
SLOWLY = "".join(entry(f"note {n};", note(f"n{n}"), text="a b c", token_s=0.15) for n in range(REQUESTS))
DISK = "2m"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A state folder on a file system of its own, that can be full."""
    if not may_mount():
        pytest.skip("only root can mount a small file system")
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(state)], check=True)
    yield state
    subprocess.run(["umount", "--lazy", str(state)], check=True)


async def submit(client: Wired, texts: dict[str, str]) -> None:
    """Requests whose answers are asked for later, by id."""
    for number, (id, text) in enumerate(texts.items()):
        client.send([0, number, "agent.ask", [{"input": text, "id": id}]])


async def outcomes(daemon: Daemon, texts: dict[str, str]) -> dict[str, Any]:
    """Their replies' statuses."""
    async with Wired(daemon.socket) as client:
        replies = {}
        for number, (id, text) in enumerate(texts.items()):
            error, reply = await client.call(number, "agent.ask", {"input": text, "id": id})
            assert error is None, error
            replies[id] = reply["status"]
        return replies


async def test_kills_in_a_row_put_no_innocent_request_into_quarantine(tmp_path: Path) -> None:
    """Six within seconds, while 24 requests wait or run."""
    texts = {f"r{n}": f"note {n};" for n in range(REQUESTS)}
    async with Daemon(tmp_path, script=SLOWLY) as daemon:
        async with Wired(daemon.socket) as client:
            await submit(client, texts)
            await until(lambda: daemon.states().count("running") == MAX_RUNNING)
        for _ in range(6):
            await daemon.kill()
            await daemon.start()
            await until(lambda: "running" in daemon.states())
        assert set((await outcomes(daemon, texts)).values()) == {"done"}
        assert sorted(daemon.rows("diary")) == sorted((f"n{n}",) for n in range(REQUESTS))


async def test_request_that_kills_without_a_trace_is_found_when_it_was_alone_often_enough(tmp_path: Path) -> None:
    """SIGKILL says nothing of its cause, so no end counts against it by itself; the innocent are answered meanwhile."""
    poison = {"EDGED_TEST_POISON": "poison", "EDGED_TEST_POISON_SIGNAL": str(int(signal.SIGKILL))}
    innocent = {f"r{n}": f"note {n};" for n in range(3)}
    daemon = Daemon(tmp_path, environment=poison, script=SLOWLY)
    try:
        await daemon.start()
        async with Wired(daemon.socket) as client:
            await submit(client, innocent)
            await until(lambda: daemon.states().count("running") == 3)
            client.send([0, 9, "agent.ask", [{"input": "poison", "id": "p"}]])
            await client.end()
        assert await daemon.ended() == -signal.SIGKILL
        for _ in range(MAX_ALONE):
            await daemon.start(ready=False)
            assert await daemon.ended() == -signal.SIGKILL
        await daemon.start()
        async with Wired(daemon.socket) as client:
            _, reply = await client.call(1, "request.get", {"name": "p"})
        assert (reply["status"], reply["error"]["code"]) == ("failed", "quarantined")
        assert f"ended {MAX_ALONE} times in a row while this was all" in reply["error"]["message"]
        assert set((await outcomes(daemon, innocent)).values()) == {"done"}
    finally:
        await daemon.__aexit__()


async def test_power_that_goes_again_and_again_counts_against_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the folder of the last process says: it may have outlived the boot."""
    async with House(tmp_path) as house:
        accepted = [await house.take(f"wait {n}") for n in range(2)]
        for boot in range(house.config.queue.max_attempts + 1):
            await until(lambda: house.engine.asked)
            await crash(house)
            house.engine.asked.clear()
            monkeypatch.setattr("edged.host.clock.boot_id", lambda boot=boot: f"boot {boot}")
            await house.begin()
        house.engine.open.set()
        assert [(await house.reply(each))["status"] for each in accepted] == ["done", "done"]


async def test_suspect_that_ends_before_the_store_can_be_written_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deadline passes while nothing can be put back."""
    monkeypatch.setattr("edged.requests.storing.RETRY_S", (0.01, 0.02))
    async with House(tmp_path) as house:
        accepted = await house.take("wait", deadline_s=1.0)
        await until(lambda: house.engine.asked)
        await crash(house)
        house.engine.asked.clear()
        house.store.refuses = apsw.FullError("full")
        await house.begin()
        await asyncio.sleep(1.0)  # until the deadline
        house.store.refuses = None
        assert (await house.reply(accepted))["status"] == "expired"
        await house.busy()


async def test_suspect_that_waits_for_a_link_holds_up_nobody(tmp_path: Path) -> None:
    """The daemon lived through its attempt: everything else goes on as ever while the link is down."""
    async with ScriptedCloud() as cloud:
        await cloud.stop()
        script = entry("too hard", {"name": "escalate", "arguments": {}}, text="x y", token_s=0.3) + SLOWLY
        async with cloudy(tmp_path, upstream("far", cloud), script=script) as daemon:
            async with Wired(daemon.socket) as client:
                client.send([0, 1, "agent.ask", [{"input": "too hard and note 0;", "id": "hard"}]])
                client.send([0, 2, "agent.ask", [{"input": "note 0;", "id": "other"}]])
                await until(lambda: daemon.states().count("running") == 2 or "waiting_link" in daemon.states())
            await daemon.kill()
            _set_running(daemon, "hard")
            await daemon.start()
            await until(lambda: "waiting_link" in daemon.states())
            async with Wired(daemon.socket) as client:
                await submit(client, {f"r{n}": f"note {n};" for n in range(1, 9)})
                await until(lambda: daemon.states().count("running") >= 8)
            await cloud.start()
            await until(lambda: set(daemon.states()) == {"done"})


def _set_running(daemon: Daemon, id: str) -> None:
    """As if it had been at work when the daemon was killed: a decision of a scripted model takes no time."""
    with contextlib.closing(apsw.Connection(str(daemon.folder / "state" / "edged.db"))) as store:
        store.execute("UPDATE requests SET state = 'running', attempts = 1 WHERE id = ?", (id,))


async def test_start_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path: Path, small_disk: Path) -> None:
    """What ran and what waited was stored before; nothing of that can be put back now."""
    texts = {f"r{n}": f"note {n};" for n in range(FEW)}
    async with Daemon(tmp_path, script=SLOWLY) as daemon:
        async with Wired(daemon.socket) as client:
            await submit(client, texts)
            await until(lambda: daemon.states().count("running") == FEW)
        await daemon.kill()
        ballast = small_disk / "ballast"
        _fill(ballast)
        await daemon.start()
        assert "what ran or waits goes on only when it can" in daemon.text()
        ballast.unlink()
        assert set((await outcomes(daemon, texts)).values()) == {"done"}
        assert await daemon.stop() == 0


async def test_start_on_a_full_disk_after_a_clean_stop(tmp_path: Path, small_disk: Path) -> None:
    """Not even the index that SQLite keeps beside its log has room."""
    texts = {f"r{n}": f"note {n};" for n in range(FEW)}
    async with Daemon(tmp_path, script=SLOWLY, environment={"EDGED_TEST_GRACE": "0.01"}) as daemon:
        async with Wired(daemon.socket) as client:
            await submit(client, texts)
            await until(lambda: daemon.states().count("running") == FEW)
            assert await daemon.stop() == 0
        assert State.RECEIVED in daemon.states()
        ballast = small_disk / "ballast"
        _fill(ballast)
        await daemon.start()
        async with Wired(daemon.socket) as client:
            error, _ = await client.call(1, "agent.ask", {"input": "note 0;"})
            assert error["code"] == "busy"
        ballast.unlink()
        assert set((await outcomes(daemon, texts)).values()) == {"done"}
        assert await daemon.stop() == 0


def _fill(ballast: Path) -> None:
    """No byte is left."""
    descriptor = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, bytes(512))
    os.close(descriptor)
