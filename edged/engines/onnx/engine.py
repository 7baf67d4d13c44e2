"""The engine of embedding models as the rest of edged sees it: asyncio outside, one thread inside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edged.engines.onnx.ticket import OnnxStats, Ticket
from edged.engines.onnx.worker import OnnxThread
from edged.engines.thread import Owner, settled
from edged.errors import Internal
from edged.interfaces import Residency
from edged.types import Embeddings, EmbedJob, ModelSpec


class OnnxEngine(Owner[OnnxThread]):
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
        super().__init__("the engine of embedding models", on_fatal)
        self.residency = residency
        self._threads = threads

    def _make(self, loop: asyncio.AbstractEventLoop) -> OnnxThread:
        return OnnxThread(loop, self._on_fatal, self._threads)

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
            if await settled(future) is None:
                await self._unload_anyway(spec.name)
            raise
        future.result()

    def stats(self) -> list[OnnxStats]:
        """The loaded models, as they were after their last batch."""
        worker = self._worker
        return list(worker.stats) if worker else []
