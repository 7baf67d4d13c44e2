"""The start and the stop of a daemon as a list: what is started last is stopped first, and whatever one step does, the
others are stopped all the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from msgspec import Struct

log = logging.getLogger("edged.daemon.steps")

WITHIN_S = 5.0  # for the stop of a step that usually takes less than one
CANCELLED_S = 0.5  # for a stop that was cancelled because it took too long; one that does not end then is left behind

Act = Callable[[], Awaitable[None]]
Work = Callable[[], Coroutine[Any, Any, None]]


class Step(Struct, frozen=True, kw_only=True):
    """Something that is started and stopped.

    start, stop: None where there is nothing to do. `stop` also runs where `start` failed or was cancelled halfway, and
        then undoes what there is.
    run: what the step does all the while, in a task that is watched: it ends by being cancelled only.
    within_s: how long the stop may take before the others go on without it.
    """

    name: str
    start: Act | None = None
    stop: Act | None = None
    run: Work | None = None
    within_s: float = WITHIN_S


class Steps:
    """Starts them in order, stops them in reverse.

    failed: names of the steps whose stop raised or hung. hung: of these, what may still hold what it held.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._begun: list[Step] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._died: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        self.failed: list[str] = []
        self.hung: list[str] = []

    async def start(self) -> None:
        """Start all. Raises what one of them raises; those after it are not started then."""
        for step in self._steps:
            self._begun.append(step)
            if step.start is not None:
                await step.start()
            if step.run is not None:
                self._tasks[step.name] = asyncio.create_task(step.run(), name=f"edged.{step.name}")
                self.watch(self._tasks[step.name])

    def watch(self, task: asyncio.Task[None]) -> None:
        """A task that a step has made in its start, and that ends by its stop only."""
        task.add_done_callback(self._died.put_nowait)

    async def death(self) -> None:
        """Wait until a watched task ends, and raise what it died of."""
        ended = await self._died.get()
        if not ended.cancelled():
            ended.result()
        raise RuntimeError(f"{ended} ended without being asked to")

    async def stop(self) -> None:
        """Stop what was started, the last first. Raises nothing; see `failed`."""
        while self._begun:
            await self._stop(self._begun.pop())

    async def _stop(self, step: Step) -> None:
        stopping = asyncio.create_task(_ended(step, self._tasks.pop(step.name, None)), name=f"edged.stop.{step.name}")
        about = {"event": "stop_failed", "step": step.name}
        done, _ = await asyncio.wait([stopping], timeout=step.within_s)
        if not done:
            text = "%s does not stop within %g s; the others go on without it"
            log.error(text, step.name, step.within_s, extra=about)
            stopping.cancel()
            await asyncio.wait([stopping], timeout=CANCELLED_S)
            self.hung.append(step.name)
            self.failed.append(step.name)
            return
        error = asyncio.CancelledError() if stopping.cancelled() else stopping.exception()
        if error is not None:
            log.error("%s could not be stopped; the others go on without it", step.name, exc_info=error, extra=about)
            self.failed.append(step.name)


async def _ended(step: Step, task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
    if step.stop is not None:
        await step.stop()
