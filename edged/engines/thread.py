"""Threads that own native objects: only they touch them, everybody else posts commands and awaits futures.

`NativeThread` is the thread, `Owner` what the event loop sees of it. Results go back in one call a round: one wake-up
of the loop for all of it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

from edged.engines.kind import BaseEngine
from edged.errors import Cancelled, EdgedError, Internal

log = logging.getLogger("edged.engines.thread")

Command = Callable[[], None]


class NativeThread(ABC):
    """The thread and its mailbox.

    `busy` and `progress_at` (time.monotonic()) may be read from anywhere.

    Args:
        loop: where futures and callbacks live.
        on_fatal: called on the loop with the exception that ended the thread.
        name: of the thread.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_fatal: Callable[[BaseException], None], *, name: str
    ) -> None:
        self.busy = False
        self.progress_at = time.monotonic()
        self.stats: tuple[Any, ...] = ()  # of the models; replaced as a whole
        self._loop, self._on_fatal = loop, on_fatal
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._outbox: list[Command] = []
        self._stopping = threading.Event()
        # A daemon thread: if a native call never returns, the process must still be able to end.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # Called from the event loop

    def start(self) -> None:
        self._thread.start()

    def post(self, command: Command) -> None:
        """Have the thread do something."""
        self._commands.put(command)

    def stop(self) -> None:
        """End after what is in progress."""
        self._stopping.set()
        self.post(lambda: None)

    def join(self) -> None:
        """Wait for the thread's end. Blocks."""
        self._thread.join()

    @abstractmethod
    def unload(self, name: str, future: asyncio.Future[None]) -> None:
        """Free a model."""

    # The thread

    @property
    @abstractmethod
    def _has_work(self) -> bool:
        """Whether there is something to do without a command."""

    @abstractmethod
    def _step(self) -> None:
        """Do some of it, and see to `progress_at` and `stats`."""

    @abstractmethod
    def _free_all(self) -> None:
        """The end: whoever still waits is told, and the memory is given back."""

    def _await_command(self) -> Command:
        """The next command, when there is no work."""
        return self._commands.get()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._take_commands()
                self._step()
                self._send()
            self._free_all()
        except BaseException as error:  # whatever it is, the loop has to hear of it
            log.critical("the thread %s died", self._thread.name, exc_info=error)
            self._outbox.append(partial(self._on_fatal, error))
        finally:
            self.busy = False
            self._send()

    def _take_commands(self) -> None:
        """Do what was posted; sleep while there is nothing at all to do."""
        if not self._has_work and not self._outbox:
            self.busy = False
            command = self._await_command()
            self.busy, self.progress_at = True, time.monotonic()
            command()
        while not self._stopping.is_set():
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            self.progress_at = time.monotonic()
            command()

    def _send(self) -> None:
        """Hand everything of this round to the loop."""
        outbox, self._outbox = self._outbox, []
        if not outbox:
            return
        try:
            self._loop.call_soon_threadsafe(_run_all, outbox)
        except RuntimeError:  # the loop is closed, so nobody waits any more
            log.debug("%d results came after the event loop was closed", len(outbox))

    def _resolve(self, future: asyncio.Future[Any], value: object) -> None:
        self._outbox.append(partial(resolve, future, value))


W = TypeVar("W", bound=NativeThread)


class Owner(BaseEngine, Generic[W]):
    """The loop's side of a worker: it is started and stopped, and whoever waits is answered whatever becomes of it.

    Args:
        what: it is called, in errors.
        on_fatal: called on the loop if the thread dies; the daemon then has to end.
    """

    def __init__(self, what: str, on_fatal: Callable[[BaseException], None] | None) -> None:
        self._what = what
        self._report_fatal = on_fatal
        self._worker: W | None = None
        self._futures: set[asyncio.Future[Any]] = set()

    @abstractmethod
    def _make(self, loop: asyncio.AbstractEventLoop) -> W:
        """The worker, not started."""

    async def start(self) -> None:
        """Start the thread; loads nothing."""
        if self._worker is not None:
            raise RuntimeError(f"{self._what} is started")
        self._worker = self._make(asyncio.get_running_loop())
        self._worker.start()

    async def stop(self) -> None:
        """End everything within one step: what runs fails with Cancelled, models are freed."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.stop()
        await asyncio.to_thread(worker.join)
        # What the thread sent last is in the loop's queue already; commands it never took are answered here.
        await asyncio.sleep(0)
        self._fail_all(Cancelled("the engine stops"))

    async def unload(self, name: str) -> None:
        """See `interfaces.Loader`; does nothing where no such model is loaded. Not to be interrupted: a cancelled call
        returns when it is done."""
        future = self._future()
        self._running().unload(name, future)
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            await settled(future)
            raise
        future.result()

    def progress(self) -> tuple[bool, float]:
        """Whether the thread is at work, and when it last got on (time.monotonic()). For the watchdog: no locks, no
        I/O."""
        worker = self._worker
        return (worker.busy, worker.progress_at) if worker else (False, time.monotonic())

    def _running(self) -> W:
        if self._worker is None:
            raise Internal(f"{self._what} is not running")
        return self._worker

    def _future(self) -> asyncio.Future[Any]:
        """A future that is answered even if the thread dies."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    async def _unload_anyway(self, name: str) -> None:
        """After a load that nobody wants any more."""
        if self._worker is not None:  # stopped or dead meanwhile: then the model is gone with it
            future = self._future()
            self._worker.unload(name, future)
            await settled(future)

    def _on_fatal(self, error: BaseException) -> None:
        self._worker = None
        self._fail_all(Internal(f"the thread of {self._what} died: {error!r}"))
        if self._report_fatal:
            self._report_fatal(error)

    def _fail_all(self, error: EdgedError) -> None:
        for future in list(self._futures):
            resolve(future, error)


# On the event loop


def resolve(future: asyncio.Future[Any], value: object) -> None:
    """Set a future's result or exception, unless it has one."""
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)


def _run_all(calls: Iterable[Command]) -> None:
    for call in calls:
        call()


async def settled(future: asyncio.Future[Any]) -> BaseException | None:
    """Wait for a future whatever happens, and return its exception. The wait is bounded by what the thread does at
    once: more cancellations meanwhile change nothing, the first one is raised afterwards."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    return future.exception()
