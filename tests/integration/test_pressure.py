"""The real daemon while memory is short: what it gives up, in which order, and that all of it comes back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from tests.support import cloud as clouds
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import cloudy, upstream
from tests.support.daemon import SCRIPT, START_S, Daemon, Wired, entry

SPARE = """
[models.other]
source = "scripted:{folder}/script.toml"
[agents.spare]
model = "other"
"""
UNEASY, FINE = 70, 900  # MiB: below the reserve of 96 what was given up does not come back
STORY = " ".join(["word"] * 40)


class Memory:
    """The memory of a daemon, which the test decides about; its service manager tells by a FIFO.

    environment: for the daemon.
    """

    def __init__(self, folder: Path) -> None:
        self.fifo, self.meminfo = folder / "pressure", folder / "meminfo"
        self.environment = {"MEMORY_PRESSURE_WATCH": str(self.fifo), "EDGED_TEST_MEMINFO": str(self.meminfo)}
        os.mkfifo(self.fifo)
        self.left(UNEASY)

    def left(self, mib: int) -> None:
        """So much memory is available from now on."""
        unfinished = self.meminfo.with_suffix(".new")
        unfinished.write_text(f"MemTotal: {2**20} kB\nMemAvailable: {mib * 1024} kB\n")
        unfinished.replace(self.meminfo)


def short(folder: Path, memory: Memory) -> Daemon:
    """A daemon with two models; it is not started."""
    script = SCRIPT + entry("slow story", text=STORY, token_s=0.05)
    return Daemon(folder, config=SPARE.format(folder=folder), script=script, environment=memory.environment)


class Watcher(Wired):
    """A client that hears of all events."""

    def events(self, name: str) -> list[dict[str, Any]]:
        told = [frame[2][0] for frame in self.notifications]
        return [event for event in told if event["event"] == name]

    async def pressure(self) -> dict[str, Any]:
        """As `status` tells it."""
        error, status = await self.call(900, "status")
        assert error is None
        found: dict[str, Any] = status["pressure"]
        return found

    async def model(self, name: str) -> dict[str, Any]:
        error, models = await self.call(901, "models.list")
        assert error is None
        found: dict[str, Any] = models[name]
        return found

    async def begun(self, id: str) -> None:
        """Wait until a request is being worked on."""
        async with asyncio.timeout(START_S):
            while all(row["id"] != id for row in (await self.call(902, "requests.list", {"state": "running"}))[1]):
                await asyncio.sleep(0.01)

    async def used(self, name: str) -> None:
        """Wait until a request holds a model: from then on it stays."""
        async with asyncio.timeout(START_S):
            while not (await self.model(name))["in_use"]:
                await asyncio.sleep(0.01)

    async def climb(self, memory: Memory, level: int) -> None:
        """Signals until so much is given up."""
        async with asyncio.timeout(START_S):
            while (await self.pressure())["level"] < level:
                with memory.fifo.open("w") as writer:
                    writer.write("pressure")
                await asyncio.sleep(0.1)
        assert (await self.pressure())["level"] == level


async def test_what_is_given_up_step_by_step_and_comes_back(tmp_path: Path) -> None:
    """Idle models go and come on demand, who is at work finishes, batch work waits, new work is refused; then all is as
    before."""
    memory = Memory(tmp_path)
    async with short(tmp_path, memory) as daemon, Watcher(daemon.socket) as client:
        assert (await client.call(1, "events.subscribe"))[0] is None
        for msgid, name in enumerate(("small", "other"), 2):
            assert (await client.call(msgid, "models.load", {"name": name}))[0] is None
        client.send([0, 10, "agent.ask", [{"agent": "house", "input": "slow story", "id": "busy"}]])
        await client.used("small")
        # two rungs by one signal: caches, and models that nobody uses
        with memory.fifo.open("w") as writer:
            writer.write("pressure")
        await client.climb(memory, 2)
        while not (gone := client.events("model_unloaded")):
            assert await client.read()
        assert [(event["model"], event["reason"]) for event in gone] == [("other", "pressure")]
        assert (await client.model("small"))["state"] == "ready"
        risen = client.events("pressure_rises")
        assert [(event["level"], event["gives_up"]) for event in risen] == [(1, "caches"), (2, "idle models")]
        assert risen[0]["kind"] == "memory"
        assert str(memory.fifo) in risen[0]["reason"]
        assert risen[0]["available_bytes"] == UNEASY * 2**20
        # batch work: what runs stands still, what waits does not begin; others are served, and bring their model back
        client.send(
            [0, 11, "agent.ask", [{"agent": "house", "input": "slow story", "id": "slow", "priority": "batch"}]]
        )
        await client.begun("slow")
        await client.climb(memory, 3)
        client.send([0, 12, "agent.ask", [{"agent": "house", "input": "how full", "priority": "batch"}]])
        assert (await client.answer(10))[1]["output"] == STORY
        error, reply = await client.call(13, "agent.ask", {"agent": "spare", "input": "hello"})
        assert (error, reply["status"]) == (None, "done")
        assert [event["model"] for event in client.events("model_loaded")] == ["small", "other", "other"]
        assert (await client.call(14, "requests.list", {"state": "received"}))[1]
        await client.begun("slow")
        # new work
        await client.climb(memory, 4)
        error, _ = await client.call(16, "agent.ask", {"agent": "house", "input": "how full", "id": "later"})
        assert error["code"] == "no_memory"
        assert error["retryable"]
        assert error["retry_after_s"] > 0
        error, reply = await client.call(17, "agent.ask", {"agent": "house", "input": "slow story", "id": "busy"})
        assert (error, reply["output"]) == (None, STORY), "known already"
        pressure = await client.pressure()
        assert (pressure["level"], pressure["given_up"][-1]) == (4, "new work")
        # memory is back
        memory.left(FINE)
        assert (await client.answer(11))[1]["output"] == STORY
        assert (await client.answer(12))[1]["output"] == "It is 41 percent full."
        while (await client.pressure())["level"]:
            await asyncio.sleep(0.02)
        assert [event["level"] for event in client.events("pressure_falls")] == [3, 2, 1, 0]
        error, reply = await client.call(18, "agent.ask", {"agent": "house", "input": "how full", "id": "later"})
        assert (error, reply["status"]) == (None, "done")
        assert await daemon.stop() == 0
        assert "a part of the daemon died" not in daemon.text()


async def test_stop_and_reload_while_everything_is_given_up_are_clean(tmp_path: Path) -> None:
    """The successor begins on the ground, and watches the same FIFO."""
    memory = Memory(tmp_path)
    async with short(tmp_path, memory) as daemon:
        async with Watcher(daemon.socket) as client:
            await client.climb(memory, 4)
        await daemon.reload()
        async with Watcher(daemon.socket) as client:
            assert (await client.pressure())["level"] == 0
            error, reply = await client.call(1, "agent.ask", {"agent": "house", "input": "how full"})
            assert (error, reply["status"]) == (None, "done")
            await client.climb(memory, 4)
        assert await daemon.stop() == 0
        assert "a part of the daemon died" not in daemon.text()


async def test_new_work_goes_to_the_cloud_where_it_may(tmp_path: Path) -> None:
    """At the level at which the board takes none; what has to stay here is refused."""
    memory = Memory(tmp_path)
    async with ScriptedCloud() as cloud:
        cloud.will(clouds.text("From far away."))
        daemon = cloudy(tmp_path, upstream("far", cloud))
        daemon.environment = memory.environment
        async with daemon, Watcher(daemon.socket) as client:
            await client.climb(memory, 4)
            error, reply = await client.call(1, "agent.ask", {"input": "how full"})
            assert (error, reply["output"]) == (None, "From far away.")
            assert (reply["route"]["where"], reply["route"]["reason"]) == ("cloud", "pressure")
            for only_here in ({"privacy": "device"}, {"route": "local"}):
                error, _ = await client.call(2, "agent.ask", {"input": "how full", **only_here})
                assert error["code"] == "no_memory"
