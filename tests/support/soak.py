"""A long life in short: one daemon process under mixed load and mishaps, looked at when it is quiet."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemon import Wired
from tests.support.fault_verdict import Verdict
from tests.support.faults import FAULTS, Rig

MISHAPS = (
    "reload while busy",
    "the broker restarts",
    "the link is cut",
    "the link is a black hole",
    "the wall clock jumps",
)
CONFIG = "[store]\nretention_days = 0.01\n[audit]\nkeep_days = 1\n"  # a quarter of an hour: rows come and go
WARM_UP = 0.2  # of the time: until everything was used, and the first rows are forgotten
BETWEEN_S = 2.0
QUIET_S = 2.0
LEAVERS = 3  # clients that leave amid an answer, and strangers that send nonsense, between two mishaps
NONSENSE = (b"\xff" * 100, b"\x94\x00\x01", b"\x94\x00\x01\xa6status\x91" + b"\x91" * 100, b"GET / HTTP/1.1\r\n\r\n")


@dataclass(frozen=True)
class Level:
    """What a daemon holds. private: MiB."""

    private: float
    descriptors: int
    threads: int
    tasks: int
    waiting: int


@dataclass(frozen=True)
class Life:
    """What came of it: levels after the warm-up and at the end, and the books."""

    first: Level
    last: Level
    mishaps: int
    verdict: Verdict

    def grown(self) -> dict[str, float]:
        """By name, where it is more than at first."""
        names = ("private", "descriptors", "threads", "tasks", "waiting")
        return {name: getattr(self.last, name) - getattr(self.first, name) for name in names}


async def live(folder: Path, seconds: float, seed: int, say: Callable[[str], None] = lambda text: None) -> Life:
    """So long."""
    async with Rig(folder, seed, config=CONFIG) as rig:
        began, first, mishaps = time.monotonic(), None, 0
        load = rig.load()
        await rig.flowing()
        while (passed := time.monotonic() - began) < seconds:
            if first is None and passed > WARM_UP * seconds:
                await rig.quiet(load)
                first = await level(rig)
                say(f"{passed:.0f} s: {first}")
                load = rig.load()
            await FAULTS[rig.chance.choice(MISHAPS)](rig)
            mishaps += 1
            await strangers(rig)
            await asyncio.sleep(BETWEEN_S)
        await rig.quiet(load)
        last = await level(rig)
        say(f"{seconds:.0f} s: {last}")
        idle = asyncio.create_task(asyncio.sleep(0))
        return Life(first or last, last, mishaps, await rig.settle(idle))


async def strangers(rig: Rig) -> None:
    """Clients that leave, and nonsense."""
    attempts: list[Awaitable[None]] = [_leave(rig) for _ in range(LEAVERS)]
    attempts += [_nonsense(rig, data) for data in NONSENSE]
    await asyncio.gather(*attempts, return_exceptions=True)


async def _leave(rig: Rig) -> None:
    async with Wired(rig.daemon.socket) as client:
        client.send([0, 1, "agent.ask", [{"input": "never ends", "stream": True}]])
        await client.read()


async def _nonsense(rig: Rig, data: bytes) -> None:
    async with Wired(rig.daemon.socket) as client:
        await client.raw(data)


async def level(rig: Rig) -> Level:
    """Of the daemon, after a moment without work."""
    await asyncio.sleep(QUIET_S)
    async with Wired(rig.daemon.socket) as client:
        status = (await client.call(1, "status"))[1]
    pid = rig.daemon.pid
    private = re.findall(
        r"^Private_\w+: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8"), re.MULTILINE
    )
    return Level(
        private=round(sum(map(int, private)) / 1024, 1),
        descriptors=sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        threads=sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()),
        tasks=status["tasks"],
        waiting=status["queue"]["outbox_waiting"] + status["queue"]["running"],
    )
