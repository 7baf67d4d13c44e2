"""Engines that have a thread of their own, as the event loop sees them."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic

from edged.engines.kind import BaseEngine, ModelStats
from edged.engines.thread import AnyJob, EngineThread, ModelRunner, Ticket, resolve
from edged.errors import Cancelled, EdgedError, Internal
from edged.interfaces import OnPiece
from edged.types import ModelSpec


class ThreadedEngine(BaseEngine, Generic[AnyJob]):
    """The loop's side of the thread: it is started and stopped, and whoever waits is answered whatever becomes of it.
    Belongs to the loop it is started on.

    Args:
        what: it is called, in errors.
        thread_name: of the thread.
        packages: see EngineThread.
        on_fatal: called on the loop if the thread dies; the daemon then has to end.
    """

    def __init__(
        self,
        what: str,
        *,
        thread_name: str,
        packages: frozenset[str],
        on_fatal: Callable[[BaseException], None] | None,
    ) -> None:
        self._what, self._thread_name, self._packages = what, thread_name, packages
        self._report_fatal = on_fatal
        self._thread: EngineThread[AnyJob] | None = None
        self._futures: set[asyncio.Future[Any]] = set()

    @abstractmethod
    def _open_model(self, spec: ModelSpec, goes_on: Callable[[], bool]) -> ModelRunner[AnyJob]:
        """Load a model; see `Open`. Runs in the thread."""

    async def start(self) -> None:
        """Start the thread; loads nothing."""
        if self._thread is not None:
            raise RuntimeError(f"{self._what} is started")
        self._thread = EngineThread(
            asyncio.get_running_loop(),
            self._on_fatal,
            name=self._thread_name,
            open_model=self._open_model,
            packages=self._packages,
        )
        self._thread.start()

    async def stop(self) -> None:
        """End everything within one step: what runs fails with Cancelled, models are freed."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.stop()
        await asyncio.to_thread(thread.join)
        # What the thread sent last is in the loop's queue already; commands it never took are answered here.
        await asyncio.sleep(0)
        self._fail_all(Cancelled("the engine stops"))

    async def load(self, spec: ModelSpec) -> None:
        """See `interfaces.Loader`; does nothing where the model is loaded. Other models wait meanwhile. A cancelled
        call leaves the model unloaded; it returns when the load has ended, which not every runtime breaks off."""
        thread, future, abort = self._running(), self._future(), threading.Event()
        thread.load(spec, abort, future)
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            abort.set()
            if await settled(future) is None:
                await self._unload_anyway(spec.name)
            raise
        future.result()

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

    async def trim(self) -> int:
        """See `interfaces.Yielding`. A load in progress comes first."""
        thread, future = self._running(), self._future()
        thread.trim(future)
        dropped: int = await future
        return dropped

    def relax(self) -> None:
        """See `interfaces.Yielding`."""
        if self._thread is not None:
            self._thread.relax()

    def pause_batch(self, paused: bool) -> None:
        """See `interfaces.Yielding`."""
        if self._thread is not None:
            self._thread.pause_batch(paused)

    def progress(self) -> tuple[bool, float]:
        """See `BaseEngine`."""
        thread = self._thread
        return (thread.busy, thread.progress_at) if thread else (False, time.monotonic())

    def stats(self) -> Sequence[ModelStats]:
        """See `BaseEngine`: as they were after their last step."""
        return self._thread.stats if self._thread else ()

    async def _run(self, job: AnyJob, on_piece: OnPiece | None = None, *, warm: bool = False) -> Any:
        """Have the thread do a job; returns its outcome. A cancelled call returns only after nothing is computed for it
        any more, so that its model is not unloaded under it."""
        called_at = time.monotonic()
        async with self._held(job.model) as load_ms:
            thread = self._running()
            ticket = Ticket(job, on_piece, self._future(), called_at, load_ms, warm)
            thread.submit(ticket)
            try:
                await asyncio.wait([ticket.future])
            except asyncio.CancelledError:
                ticket.on_piece = None  # whoever asked has left
                thread.cancel(ticket)
                await settled(ticket.future)
                raise
            return ticket.future.result()

    def _held(self, model: str) -> AbstractAsyncContextManager[float]:
        if self.residency is None:
            raise Internal(f"{self._what} has no residency")
        return self.residency.hold(model)

    def _running(self) -> EngineThread[AnyJob]:
        if self._thread is None:
            raise Internal(f"{self._what} is not running")
        return self._thread

    def _future(self) -> asyncio.Future[Any]:
        """A future that is answered even if the thread dies."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    async def _unload_anyway(self, name: str) -> None:
        """After a load that nobody wants any more."""
        if self._thread is not None:  # stopped or dead meanwhile: then the model is gone with it
            future = self._future()
            self._thread.unload(name, future)
            await settled(future)

    def _on_fatal(self, error: BaseException) -> None:
        self._thread = None
        self._fail_all(Internal(f"the thread of {self._what} died: {error!r}"))
        if self._report_fatal:
            self._report_fatal(error)

    def _fail_all(self, error: EdgedError) -> None:
        for future in list(self._futures):
            resolve(future, error)


async def settled(future: asyncio.Future[Any]) -> BaseException | None:
    """Wait for a future whatever happens, and return its exception. The wait is bounded by what the thread does at
    once: more cancellations meanwhile change nothing, the first one is raised afterwards."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    return future.exception()
