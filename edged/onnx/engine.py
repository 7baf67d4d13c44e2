"""The engine of embedding models as the rest of edged sees it: asyncio outside, one thread inside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from edged.errors import Cancelled, EdgedError, Internal
from edged.interfaces import Residency
from edged.mailbox import resolve, settled
from edged.onnx.ticket import ModelStats, Ticket
from edged.onnx.worker import Worker
from edged.types import Embeddings, EmbedJob, ModelSpec


class OnnxEngine:
    """Implements `interfaces.Embedder` and `interfaces.Loader` with onnxruntime. Belongs to the loop it is started on.

    Args:
        residency: who decides what is loaded; may be set later, before the first `embed`.
        threads: to compute with where a model names none; None: as many as the process may use.
        on_fatal: called on the loop if the thread dies; the daemon then has to end.
    """

    def __init__(
        self,
        residency: Residency | None = None,
        threads: int | None = None,
        *,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.residency = residency
        self._threads = threads
        self._report_fatal = on_fatal
        self._worker: Worker | None = None
        self._futures: set[asyncio.Future[Any]] = set()

    async def start(self) -> None:
        """Start the thread; loads nothing."""
        if self._worker is not None:
            raise RuntimeError("the engine is started")
        self._worker = Worker(asyncio.get_running_loop(), self._on_fatal, self._threads)
        self._worker.start()

    async def stop(self) -> None:
        """End everything within one batch: running jobs fail with Cancelled, models are freed."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.stop()
        await asyncio.to_thread(worker.join)
        # What the thread sent last is in the loop's queue already; commands it never took are answered here.
        await asyncio.sleep(0)
        self._fail_all(Cancelled("the engine stops"))

    async def embed(self, job: EmbedJob) -> Embeddings:
        """See `interfaces.Embedder`. A cancelled call returns only when nothing of it is computed any more, so that its
        model is not unloaded under it."""
        if self.residency is None:
            raise Internal("the engine has no residency")
        async with self.residency.hold(job.model):
            worker = self._running()
            ticket = Ticket(job, self._future())
            worker.submit(ticket)
            try:
                await asyncio.wait([ticket.future])
            except asyncio.CancelledError:
                worker.cancel(ticket)
                await settled(ticket.future)
                raise
            return ticket.future.result()

    async def load(self, spec: ModelSpec) -> None:
        """See `interfaces.Loader`; does nothing where the model is loaded. A cancelled call leaves it unloaded, and
        returns when the session is made: that cannot be broken off."""
        worker, future = self._running(), self._future()
        worker.load(spec, future)
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            if await settled(future) is None and self._worker is not None:
                again = self._future()
                self._worker.unload(spec.name, again)
                await settled(again)
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

    def progress(self) -> tuple[bool, float]:
        """Whether the thread is at work, and when it last got on (time.monotonic()). For the watchdog: no locks, no
        I/O."""
        worker = self._worker
        return (worker.busy, worker.progress_at) if worker else (False, time.monotonic())

    def stats(self) -> list[ModelStats]:
        """The loaded models, as they were after their last batch."""
        worker = self._worker
        return list(worker.stats) if worker else []

    def _running(self) -> Worker:
        if self._worker is None:
            raise Internal("the engine of embedding models is not running")
        return self._worker

    def _future(self) -> asyncio.Future[Any]:
        """A future that is answered even if the thread dies."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def _on_fatal(self, error: BaseException) -> None:
        self._worker = None
        self._fail_all(Internal(f"the thread of onnxruntime died: {error!r}"))
        if self._report_fatal:
            self._report_fatal(error)

    def _fail_all(self, error: EdgedError) -> None:
        for future in list(self._futures):
            resolve(future, error)
