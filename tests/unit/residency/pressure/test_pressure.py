"""What is given up and taken back, in which order, with parts that write down what they are told. Real time, scaled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edged.errors import Internal, NoMemory
from edged.host import memory
from edged.host.psi import from_manager
from edged.residency.pressure.ladder import Calm
from edged.residency.pressure.low_memory import LowMemory
from edged.residency.pressure.pressure import Parts, Pressure, PressureTiming
from edged.types import JSON

SOON_S = 10.0  # a test that waits longer has failed
MIB = 2**20
CALM = Calm(first_s=0.2, next_s=0.02, again_s=0.0, most_s=1.0)
# Nothing here waits for these by the clock: they only are much shorter than on a board.
PACE = PressureTiming(
    look_s=0.01, idle_s=0.01, work_s=0.02, memory=CALM, heat_s=0.01, batch_s=0.01, smaller_s=0.01, board=CALM
)
UP = ["trim", "relieve", "pause", "refuse", "pause loads"]
DOWN = ["resume loads", "admit", "go on", "relax"]


class Board:
    """All that can be given up, and the files that tell when.

    done: what was done, in order, repeats of `relieve` left out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[str] = []
        self.events: list[tuple[str, dict[str, JSON]]] = []
        self.fault: Exception | None = None
        self.hangs: asyncio.Event | None = None
        self.refused: NoMemory | None = None
        self.strained: str | None = None
        self.available(900)

    def available(self, mib: int) -> None:
        """So much is left from now on. A whole file at a time, as the kernel's are."""
        unfinished = self.folder / "meminfo.new"
        unfinished.write_text(f"MemTotal: {1024 * 1024} kB\nMemAvailable: {mib * 1024} kB\n")
        unfinished.replace(self.folder / "meminfo")

    def note(self, what: str) -> None:
        if what != "relieve" or what not in self.done:
            self.done.append(what)

    async def relieve(self, reason: str) -> list[str]:
        self.note("relieve")
        return []

    async def shrink(self, reason: str) -> list[str]:
        self.note("shrink")
        return []

    def grow(self, reason: str) -> None:
        self.done.append("grow")

    def pause_loads(self, reason: str) -> None:
        self.note("pause loads")

    def resume_loads(self) -> None:
        self.note("resume loads")

    async def trim(self) -> int:
        self.note("trim")
        if self.hangs:
            await self.hangs.wait()
        if self.fault:
            raise self.fault
        return 0

    def relax(self) -> None:
        self.note("relax")

    def pause_batch(self, paused: bool) -> None:
        self.note("pause" if paused else "go on")

    def refuse(self, error: NoMemory | None) -> None:
        self.note("refuse" if error else "admit")
        self.refused = error

    def pressure(self, **more: Any) -> Pressure:
        parts = Parts(self, self, (self.pause_batch,), (self.refuse,))
        nowhere = self.folder / "none"
        settings: dict[str, Any] = {"manager": None, "strain": None, "pace": PACE, "board": nowhere, **more}
        judge = LowMemory(96 * MIB, lambda: memory.left(self.folder / "meminfo", nowhere, nowhere))
        return Pressure(parts, judge, tell=lambda *event: self.events.append(event), group=lambda: None, **settings)

    def told(self, name: str, key: str) -> list[Any]:
        return [data[key] for event, data in self.events if event == name]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


@contextlib.asynccontextmanager
async def at_work(pressure: Pressure) -> AsyncIterator[Pressure]:
    """While it watches; one that died fails the test."""
    task = asyncio.create_task(pressure.run())
    try:
        yield pressure
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():
            await asyncio.sleep(0.001)


async def test_everything_goes_step_by_step_and_comes_back_in_reverse(board: Board) -> None:
    """Memory is low for long, and then it is not."""
    async with at_work(board.pressure()) as pressure:
        assert pressure.status()["level"] == 0
        board.available(20)
        await until(lambda: pressure.memory.level == 4)
        await until(lambda: board.done == UP)
        status = pressure.status()
        assert status["given_up"] == ["caches", "idle models", "batch work", "new work"]
        assert status["reason"] == "20 MiB of memory are left, and less than 48 MiB is low"
        assert status["since"] > 1e9
        refused = board.refused
        assert refused is not None
        assert refused.retry_after_s
        assert "20 MiB" in refused.message
        board.available(60)  # not well yet: nothing comes back
        await asyncio.sleep(2 * CALM.first_s)
        assert pressure.status()["level"] == 4
        board.available(900)
        await until(lambda: pressure.memory.level == 0)
        assert board.done[-4:] == DOWN
        assert board.refused is None
        assert pressure.status() | {"watches": []} == {
            "level": 0,
            "reason": None,
            "since": None,
            "given_up": [],
            "watches": [],
            "board": {"level": 0, "reason": None, "since": None, "given_up": []},
        }
    assert board.told("pressure_rises", "gives_up") == status["given_up"]
    assert board.told("pressure_rises", "level") == [1, 2, 3, 4]
    assert board.told("pressure_rises", "available_bytes") == [20 * MIB] * 4
    assert board.told("pressure_falls", "takes_back") == status["given_up"][::-1]
    assert board.told("pressure_falls", "level") == [3, 2, 1, 0]


async def test_signal_of_the_manager_makes_caches_and_idle_models_go(board: Board, tmp_path: Path) -> None:
    """One signal; the next one has to come before work is held up. Models that become idle later go, too."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with at_work(board.pressure(manager=(fifo, b""))) as pressure:
        await until(lambda: pressure.status()["watches"] == [f"the service manager's {fifo}"])
        fifo.write_text("x")
        await until(lambda: board.done == UP[:2])
        assert "the service manager's" in board.told("pressure_rises", "reason")[0]
        await until(lambda: board.done == [*UP[:2], "relax"])
        assert board.told("pressure_falls", "level") == [1, 0]


async def test_signal_is_missed_by_nothing_while_memory_is_looked_at(board: Board, tmp_path: Path) -> None:
    """A plain file cannot be watched: that is said, and looking is enough."""
    (tmp_path / "plain").touch()
    async with at_work(board.pressure(manager=(tmp_path / "plain", b"x"))) as pressure:
        board.available(20)
        await until(lambda: pressure.memory.level == 4)
        assert pressure.status()["watches"] == []


async def test_what_cannot_be_watched_is_said_once(
    board: Board, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No manager's file, no PSI of the group or of the board."""
    caplog.set_level(logging.INFO, "edged.residency")
    async with at_work(board.pressure(manager=(tmp_path / "gone", b""))):
        await until(lambda: len(caplog.messages) == 3)
        await asyncio.sleep(5 * PACE.look_s)
    assert sorted(message.split()[0] for message in caplog.messages) == ["no", "the", "this"]


async def test_switched_off_by_the_manager_leaves_our_own_looks(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    """No trigger is set; what is left is looked at all the same."""
    caplog.set_level(logging.INFO, "edged.residency")
    async with at_work(board.pressure(manager=(Path("/dev/null"), b""))) as pressure:
        board.available(20)
        await until(lambda: pressure.memory.level == 4)
        assert not [message for message in caplog.messages if "trigger" in message or "memory.pressure" in message]


async def test_others_that_stall_at_a_limit_of_their_own_are_not_ours_to_help(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While much of the board's memory is left. A FIFO stands for the board's PSI."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pressure = board.pressure()
    monkeypatch.setattr(pressure, "_open_board", lambda: from_manager(fifo, b""))
    async with at_work(pressure):
        await until(lambda: bool(pressure.status()["watches"]))
        fifo.write_text("x")
        await asyncio.sleep(0.05)
        assert board.done == []
        board.available(200)
        fifo.write_text("x")
        await until(lambda: board.done == UP[:2])


async def test_part_that_fails_does_not_stop_the_next(board: Board) -> None:
    """The engine is just stopping, say."""
    board.fault = Internal("the engine is not running")
    async with at_work(board.pressure()) as pressure:
        board.available(20)
        await until(lambda: pressure.memory.level == 4)


async def test_part_that_takes_long_does_not_hold_up_the_next(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is being loaded: the engine trims behind that."""
    monkeypatch.setattr("edged.residency.pressure.pressure.ACT_S", 0.05)
    board.hangs = asyncio.Event()
    async with at_work(board.pressure()) as pressure:
        board.available(20)
        await until(lambda: pressure.memory.level == 4)


async def test_bug_in_a_part_ends_the_watch_loudly(board: Board) -> None:
    """As everywhere: the daemon is started again whole."""
    board.fault = ZeroDivisionError()
    task = asyncio.create_task(board.pressure().run())
    board.available(20)
    await asyncio.wait([task], timeout=SOON_S)
    assert isinstance(task.exception(), ExceptionGroup)


async def test_heat_defers_batch_work_and_wants_smaller_models(board: Board) -> None:
    """A ladder of its own; the engine takes a thread less by itself."""
    async with at_work(board.pressure(strain=lambda: board.strained)) as pressure:
        board.strained = "too hot"
        await until(lambda: pressure.board.level == 3)
        assert board.done == ["pause", "shrink"]
        status = pressure.status()
        assert (status["level"], status["board"]["level"], status["board"]["reason"]) == (0, 3, "too hot")
        board.strained = None
        await until(lambda: pressure.board.level == 0)
        assert board.done == ["pause", "shrink", "grow", "go on"]
    kinds = {data["kind"] for _, data in board.events}
    assert kinds == {"board"}


async def test_batch_work_goes_on_when_the_last_reason_is_gone(board: Board) -> None:
    """Memory has come back, and it is still hot."""
    async with at_work(board.pressure(strain=lambda: board.strained)) as pressure:
        board.strained = "too hot"
        board.available(20)
        await until(lambda: pressure.memory.level == 4 and pressure.board.level == 3)
        board.available(900)
        await until(lambda: pressure.memory.level == 0)
        assert "go on" not in board.done
        board.strained = None
        await until(lambda: pressure.board.level == 0)
        assert board.done[-1] == "go on"
