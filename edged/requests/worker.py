"""Which requests are worked on, and how many at once: the worker claims them, and ends them where somebody wants it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

import apsw

from edged.errors import Cancelled
from edged.requests.answering import Answering
from edged.requests.attempt import Attempt
from edged.requests.recovery import Recovery
from edged.requests.settle import Settler
from edged.requests.signals import Signals
from edged.requests.storing import until_stored
from edged.store import lifecycle, lookup, requests
from edged.store.database import Database
from edged.store.lookup import Row
from edged.store.requests import FreeSlots
from edged.types import Priority, Status

log = logging.getLogger("edged.requests")

T = TypeVar("T")

MAX_RUNNING = 16  # requests worked on at once: as many as a model has places for
MAX_HELD = 64  # with those whose outcome is being stored: a disk that refuses holds so many in memory
MAX_BATCH = 8  # of MAX_RUNNING, batch work: more gain nothing on boards of 2 to 8 cores, and the rest is for who waits
# Of MAX_RUNNING, work that an upstream or a server on this board does. It mostly waits, for a minute where the other
# side is slow; however many of them there are, half of the slots are left for what the board can do at once.
MAX_REMOTE = MAX_RUNNING // 2
GRACE_S = 5.0  # a stop waits this long for running requests; what is not done goes back into the queue
PUT_BACK_S = 2.0  # and this long until they are back in the queue, where the disk takes it


class Worker:
    """Owns the running requests, and which of them are suspected of killing the daemon. `run` is its task."""

    def __init__(
        self,
        database: Database,
        answering: Answering,
        settler: Settler,
        recovery: Recovery,
        signals: Signals,
    ) -> None:
        self._database = database
        self._answering = answering
        self._settler = settler
        self._recovery = recovery
        self._signals = signals
        self._idle = asyncio.Event()
        self._idle.set()
        self._running: dict[str, Attempt] = {}
        self._promised = 0  # slots that a claim may fill which is being written
        self._group: asyncio.TaskGroup | None = None
        self._suspects: set[str] = set()
        self._stopping = self._batch_paused = False

    @property
    def running(self) -> Mapping[str, Attempt]:
        """The attempts that are under way, by rid."""
        return self._running

    @property
    def slots(self) -> int:
        """How many requests are worked on at once. Until all suspects are over it is one at a time: so the next death
        is counted against its cause only."""
        return 1 if self._suspects else MAX_RUNNING

    def clear(self, rid: str) -> None:
        """The request is over, or waits for a link: the daemon lived through it."""
        self._suspects.discard(rid)
        self._signals.queued.set()

    def pause_batch(self, paused: bool) -> None:
        """Begin no batch work while paused; it waits in the queue."""
        self._batch_paused = paused
        self._signals.queued.set()

    async def run(self) -> None:
        """Claim requests and work on them, until cancelled; ends with an exception if the work on one does."""
        await self._recovery.finish()
        # By the writer: then whatever ends one of them later is heard of later, too.
        suspects = functools.partial(self._database.write, lookup.suspects, durable=False)
        self._suspects.update(await until_stored(suspects))
        async with asyncio.TaskGroup() as group:
            self._group = group
            while True:
                await self._signals.queued.wait()
                self._signals.queued.clear()
                while (slots := self.free()).all > 0:
                    # lazy: a claim that is lost with the power only means that the attempt is not counted
                    _, rows = await until_stored(
                        functools.partial(self.claiming, lambda c: (None, requests.claim(c, slots)), slots)
                    )
                    if not rows:
                        break

    async def stop(self) -> None:
        """Claim nothing more, finish what runs within GRACE_S, put the rest back."""
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._idle.wait()
        for attempt in list(self._running.values()):
            attempt.interrupt()
        with contextlib.suppress(TimeoutError):  # an outcome the disk refuses is worked out again after the next start
            async with asyncio.timeout(PUT_BACK_S):
                await self._idle.wait()

    async def cancel(self, name: str, client: str | None = None) -> Row | None:
        """End a request by rid or its client's id; None where there is none. One that has its outcome keeps it.
        Returns when it has one."""
        row = await self._database.read(lambda c: lookup.find(c, name, client))
        if row is None or row.state not in lifecycle.UNFINISHED:
            return row
        if row.rid not in self._running:
            error = Cancelled("the request was cancelled")
            if await self._settler.end(row, Status.CANCELLED, error, only=lifecycle.WAITING):
                self.clear(row.rid)
        if attempt := self._running.get(row.rid):  # it may have been claimed just now
            attempt.cancelled = True
            attempt.interrupt()
            await attempt.ended.wait()
        return await self._database.read(lambda c: lookup.get(c, row.rid))

    def free(self, most: int = MAX_RUNNING) -> FreeSlots:
        """Slots for requests to begin with."""
        if self._stopping or self._group is None:
            return FreeSlots(0, 0, 0)
        batch = sum(attempt.batch for attempt in self._running.values()) + self._promised
        working = sum(not attempt.settling or bool(self._suspects) for attempt in self._running.values())
        held = len(self._running) + self._promised
        left = min(most, self.slots - working - self._promised, MAX_HELD - held)
        remote = self._remote() + self._promised
        return FreeSlots(max(0, left), 0 if self._batch_paused else MAX_BATCH - batch, MAX_REMOTE - remote)

    async def claiming(
        self,
        work: Callable[[apsw.Connection], tuple[T, list[Row]]],
        slots: FreeSlots,
        *,
        durable: bool = False,
        committed: Callable[[T, list[Row]], None] = lambda value, claimed: None,
    ) -> tuple[T, list[Row]]:
        """Write what claims rows for these slots, and begin the work on them, also where the caller leaves meanwhile:
        what is written is written. It is begun before anybody can hear of a later commit, a cancel's for one.

        Args:
            committed: gets the value of `work`, and what was claimed, as early.
        """
        writing = self._database.post(work, durable=durable)
        self._promised += slots.all
        self._idle.clear()

        def written(done: asyncio.Future[tuple[T, list[Row]]]) -> None:
            self._promised -= slots.all
            rows: list[Row] = []
            if not done.cancelled() and not done.exception():
                value, rows = done.result()
                committed(value, rows)
            for row in rows:
                self._begin(row)
            self._look_whether_idle()
            if len(rows) == slots.all:  # there may be more of them, and slots again
                self._signals.queued.set()

        writing.add_done_callback(written)
        return await asyncio.shield(writing)

    def _begin(self, row: Row) -> None:
        assert self._group is not None, "nothing is claimed before"
        attempt = self._running[row.rid] = Attempt(
            row.agent,
            batch=row.request.priority is Priority.BATCH,
            remote=row.remote,
            has_remote_slot=lambda: self._remote() < MAX_REMOTE,
        )
        if self._stopping:
            attempt.interrupt()
        work = self._answering.work(row, attempt)
        try:
            task = self._group.create_task(work, name=f"edged.request.{row.rid}")
        except RuntimeError:  # the group has ended: the row stays marked as running, and the next start finds it
            work.close()
            self._worked(row.rid, None)
            return
        task.add_done_callback(functools.partial(self._worked, row.rid))

    def _remote(self) -> int:
        """How many do their work elsewhere."""
        return sum(attempt.remote and not attempt.settling for attempt in self._running.values())

    def _worked(self, rid: str, _: object) -> None:
        self._running.pop(rid).ended.set()
        self.clear(rid)
        self._look_whether_idle()
        self._signals.queued.set()

    def _look_whether_idle(self) -> None:
        if not self._running and not self._promised:
            self._idle.set()
