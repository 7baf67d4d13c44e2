"""Gives up one thing after the other while memory is short, or the board too hot or badly powered, and takes it back
when that is over. What comes when is `ladder`'s; who says so, `psi` and `low_memory`; this file waits, does and tells.

| | memory is short | the board is hot or badly powered |
|---|---|---|
| 1 | caches | a thread (the engine sees to it by itself) |
| 2 | models that nobody uses | batch work |
| 3 | batch work: it waits, its state stays | larger variants of models |
| 4 | new work, where no upstream can do it | |
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct

from edged.errors import EdgedError, NoMemory
from edged.host import clock, psi
from edged.host.memory import Room
from edged.host.psi import Signal, Unwatchable
from edged.interfaces import Relief, Yielding
from edged.residency.pressure.ladder import Calm, Ladder, Move, Rung
from edged.residency.pressure.low_memory import PLENTY, LowMemory, MemoryState
from edged.types import JSON

log = logging.getLogger("edged.residency")

# When to ask again what was refused: memory that is needed elsewhere is seldom back before, and what edged gave up
# comes back after ten seconds at the earliest.
RETRY_S = 15.0
ACT_S = 5.0  # an act that takes longer (a model is just being loaded, say) ends by itself while the ladder goes on

Opener = Callable[[], Awaitable[Signal | None]]


class PressureTiming(Struct, frozen=True):
    """Times, in seconds.

    look_s: between two looks at what is left. Between two triggers of PSI there are 2 s, too.
    idle_s: for the caches to help before idle models go: what they hold is seldom enough, and a second after the signal
        the models are to be gone.
    work_s: before work is held up: PSI looks two seconds back, so a sooner signal tells of stalls from before.
    memory: a model that is loaded again at once was unloaded for nothing; ten seconds are five windows of PSI.
    heat_s: between two looks at temperature and power, as the engine's.
    batch_s, smaller_s: a thread less is felt in half a minute by a small board; loading another model heats it, too.
    board: as slow as heat.
    """

    look_s: float = 2.0
    idle_s: float = 0.25
    work_s: float = 2.0
    memory: Calm = Calm(first_s=10.0, next_s=5.0)
    heat_s: float = 5.0
    batch_s: float = 30.0
    smaller_s: float = 60.0
    board: Calm = Calm(first_s=60.0, next_s=30.0, again_s=300.0, most_s=1800.0)


class PressureStep(Struct, frozen=True):
    """A rung and what it means. again: also whenever trouble is seen from there on; what is idle then may not have been
    before."""

    rung: Rung
    give_up: Callable[[str], Awaitable[object]]
    take_back: Callable[[], object]
    again: bool = False


class Stair:
    """A ladder at work, for one kind of trouble.

    Args:
        tell: gets `pressure_rises` and `pressure_falls`.
        now: seconds on a clock that only goes forward.
    """

    def __init__(
        self,
        kind: str,
        steps: Sequence[PressureStep],
        calm: Calm,
        *,
        tell: Callable[[str, dict[str, JSON]], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kind = kind
        self._steps = tuple(steps)
        self._ladder = Ladder([step.rung for step in steps], calm)
        self._tell, self._now = tell, now
        self._news = asyncio.Event()
        self._seen = False
        self._reason: str | None = None
        self._figures: dict[str, JSON] = {}
        self._since: float | None = None

    @property
    def level(self) -> int:
        """How many rungs are taken."""
        return self._ladder.level

    def see(self, reason: str, figures: dict[str, JSON]) -> None:
        """Trouble, now."""
        self._ladder.see(self._now())
        self._reason, self._figures, self._seen = reason, figures, True
        self._news.set()

    def doubt(self) -> None:
        """It is not well yet."""
        self._ladder.doubt(self._now())

    def status(self) -> dict[str, JSON]:
        """level: rungs taken, 0 to the number of them; since: when the first one was (seconds since the epoch)."""
        up = self.level > 0
        return {
            "level": self.level,
            "reason": self._reason if up else None,
            "since": self._since if up else None,
            "given_up": [step.rung.name for step in self._steps[: self.level]],
        }

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Climb as is due, without end."""
        while True:
            due = self._ladder.next_at()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - self._now())):
                    await self._news.wait()
            self._news.clear()
            repeat, self._seen = self.level if self._seen else 0, False
            while move := self._ladder.step(self._now()):
                if move is Move.UP:
                    await self._give_up(group)
                else:
                    self._take_back()
                self._ladder.settled(self._now())
            for step in self._steps[: min(repeat, self.level)]:
                if step.again:
                    await self._act(step, group)

    async def _give_up(self, group: asyncio.TaskGroup) -> None:
        step = self._steps[self.level - 1]
        if self.level == 1:
            self._since = clock.wall()
        log.warning("%s is given up (level %d): %s", step.rung.name, self.level, self._reason)
        self._tell("pressure_rises", {**self._event_data(), "gives_up": step.rung.name, "reason": self._reason})
        await self._act(step, group)

    def _take_back(self) -> None:
        step = self._steps[self.level]
        log.info("%s is taken back (level %d)", step.rung.name, self.level)
        step.take_back()
        self._tell("pressure_falls", {**self._event_data(), "takes_back": step.rung.name, "reason": self._reason})

    def _event_data(self) -> dict[str, JSON]:
        return {"kind": self._kind, "level": self.level, **self._figures}

    async def _act(self, step: PressureStep, group: asyncio.TaskGroup) -> None:
        acting = group.create_task(self._try(step), name=f"edged.pressure.{step.rung.name}")
        await asyncio.wait({acting}, timeout=ACT_S)

    async def _try(self, step: PressureStep) -> None:
        try:
            await step.give_up(self._reason or "")
        except EdgedError as error:  # the engine stops, say: the next step may still help
            log.warning("%s could not be given up: %s", step.rung.name, error.message)


class Parts(Struct, frozen=True):
    """What can be given up, and who does it.

    pause: stop and continue batch work. refuse: an error for all new work that has to be done here, or None again.
    """

    relief: Relief
    engine: Yielding
    pause: Sequence[Callable[[bool], None]]
    refuse: Sequence[Callable[[NoMemory | None], None]]


class Pressure:
    """Watches the board and climbs both ladders. `run` is its task.

    Args:
        manager: path and text of the service manager's signal; None: it has none.
        strain: looks at heat and power: what is wrong, or None; called in a thread. None: the board tells nothing.
    """

    def __init__(
        self,
        parts: Parts,
        low_memory: LowMemory,
        *,
        manager: tuple[Path, bytes] | None,
        strain: Callable[[], str | None] | None,
        tell: Callable[[str, dict[str, JSON]], None],
        pace: PressureTiming,
        board: Path = psi.BOARD,
        group: Callable[[], Path | None] = psi.own_group,
    ) -> None:
        self._parts, self._low_memory, self._manager, self._strain = parts, low_memory, manager, strain
        self._pace = pace
        self._board_file, self._group_file = board, group
        self._paused: set[str] = set()
        self._watched: list[str] = []
        self.memory = Stair("memory", self._memory_steps(), pace.memory, tell=tell)
        self.board = Stair("board", self._board_steps(), pace.board, tell=tell)

    def status(self) -> dict[str, JSON]:
        """For `status`. watches: who would tell of memory beside our own looks."""
        return {**self.memory.status(), "watches": list(self._watched), "board": self.board.status()}

    async def run(self) -> None:
        """Watch until cancelled. What cannot be watched is said once, and something else is."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.memory.run(group), name="edged.pressure.memory")
            group.create_task(self.board.run(group), name="edged.pressure.board")
            group.create_task(self._look(), name="edged.pressure.look")
            if self._strain is not None:
                group.create_task(self._feel(self._strain), name="edged.pressure.feel")
            own: list[Opener] = [self._open_group]
            if self._manager is not None:
                own.insert(0, partial(psi.from_manager, *self._manager))
            group.create_task(self._listen(own, everybody=False), name="edged.pressure.listen")
            if self._manager is None or self._manager[0] != psi.OFF:
                group.create_task(self._listen([self._open_board], everybody=True), name="edged.pressure.listen.board")

    # -- who tells -------------------------------------------------------------------------------------------------

    async def _listen(self, openers: Sequence[Opener], *, everybody: bool) -> None:
        """Hear the first that works, and the next one when it ends. everybody: it tells of all the board's programs."""
        for open_one in openers:
            try:
                signal = await open_one()
                if signal is None:
                    return
                await self._hear(signal, everybody=everybody)
            except Unwatchable as error:
                log.info("%s", error)

    async def _hear(self, signal: Signal, *, everybody: bool) -> None:
        self._watched.append(signal.name)
        try:
            while True:
                await signal.next()
                _, room = self._low_memory.look()
                if everybody and room.part is not None and room.part > PLENTY:
                    log.debug("%s: others stall, and much of the memory is left", signal.name)
                    continue
                self.memory.see(f"programs wait for memory: {signal.name}", _figures(room))
        finally:
            self._watched.remove(signal.name)
            signal.close()

    async def _open_group(self) -> Signal | None:
        path = self._group_file()
        if path is None:
            raise Unwatchable("this cgroup has no memory.pressure")
        return psi.trigger(path, "PSI of this cgroup")

    async def _open_board(self) -> Signal | None:
        return psi.trigger(self._board_file, "PSI of the board")

    async def _look(self) -> None:
        while True:
            state, room = self._low_memory.look()
            if state is MemoryState.LOW:
                mib = 2**20
                left, low = (room.least or 0) // mib, self._low_memory.low // mib
                told = f"{left} MiB of memory are left, and less than {low} MiB is low"
                self.memory.see(told, _figures(room))
            elif state is MemoryState.UNEASY:
                self.memory.doubt()
            await asyncio.sleep(self._pace.look_s)

    async def _feel(self, strain: Callable[[], str | None]) -> None:
        while True:
            if (reason := await asyncio.to_thread(strain)) is not None:
                self.board.see(reason, {})
            await asyncio.sleep(self._pace.heat_s)

    # -- what is given up ------------------------------------------------------------------------------------------

    def _memory_steps(self) -> list[PressureStep]:
        pace, relief = self._pace, self._parts.relief
        return [
            PressureStep(Rung("caches"), self._trim, self._parts.engine.relax),
            PressureStep(Rung("idle models", pace.idle_s, anew=False), relief.relieve, _nothing, again=True),
            PressureStep(
                Rung("batch work", pace.work_s), partial(self._pause, "memory"), partial(self._resume, "memory")
            ),
            PressureStep(Rung("new work", pace.work_s), self._refuse, self._admit),
        ]

    def _board_steps(self) -> list[PressureStep]:
        pace = self._pace
        return [
            PressureStep(Rung("a thread"), _agree, _nothing),
            PressureStep(
                Rung("batch work", pace.batch_s), partial(self._pause, "board"), partial(self._resume, "board")
            ),
            PressureStep(Rung("larger variants", pace.smaller_s), self._parts.relief.shrink, self._grow),
        ]

    async def _trim(self, _: str) -> None:
        dropped = await self._parts.engine.trim()
        log.info("caches: %d KiB of states were dropped", dropped // 1024)

    async def _pause(self, kind: str, _: str) -> None:
        self._paused.add(kind)
        for pause in self._parts.pause:
            pause(True)

    def _resume(self, kind: str) -> None:
        self._paused.discard(kind)
        if not self._paused:
            for pause in self._parts.pause:
                pause(False)

    def _grow(self) -> None:
        self._parts.relief.grow("the board is well again")

    async def _refuse(self, reason: str) -> None:
        error = NoMemory(f"the board is short of memory and takes no new work now: {reason}", retry_after_s=RETRY_S)
        for refuse in self._parts.refuse:
            refuse(error)
        self._parts.relief.pause_loads(reason)

    def _admit(self) -> None:
        self._parts.relief.resume_loads()
        for refuse in self._parts.refuse:
            refuse(None)


def _figures(room: Room) -> dict[str, JSON]:
    return {"available_bytes": room.available, "group_left_bytes": room.group}


async def _agree(_: str) -> None:
    """Somebody else does it."""


def _nothing() -> None:
    """There is nothing to take back: models come when they are asked for."""
