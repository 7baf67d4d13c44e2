"""The engine as the rest of edged sees it: asyncio outside, one thread inside."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from edged.engines.llama.snapshots import Snapshots
from edged.engines.llama.ticket import LlamaStats, Ticket
from edged.engines.llama.worker import LlamaThread
from edged.engines.thread import Owner, settled
from edged.errors import Internal
from edged.interfaces import OnPiece, Residency
from edged.types import JSON, Completion, Job, ModelSpec


class LlamaEngine(Owner[LlamaThread]):
    """Implements `interfaces.Engine`, `Loader` and `Yielding` with llama.cpp. Belongs to the loop it is started on.

    Args:
        residency: who decides what is loaded; may be set later, before the first `generate` (the governor, in turn,
            needs the engine as its Loader).
        threads: threads to compute with where a model names none; None: what the process may use, revised while
            running.
        on_fatal: called on the loop if the engine thread dies; the daemon then has to end.
        checked: check the books after every step; for tests, costs 0.1 ms a step.
        snapshots: where states of prefixes outlive their model; closed by `stop`.
    """

    def __init__(
        self,
        residency: Residency | None = None,
        threads: int | None = None,
        *,
        on_fatal: Callable[[BaseException], None] | None = None,
        checked: bool = False,
        snapshots: Snapshots | None = None,
    ) -> None:
        super().__init__("the engine", on_fatal)
        self.residency = residency
        self._threads = threads
        self._snapshots = snapshots
        self._checked = checked

    def _make(self, loop: asyncio.AbstractEventLoop) -> LlamaThread:
        return LlamaThread(loop, self._on_fatal, self._threads, snapshots=self._snapshots, checked=self._checked)

    async def generate(
        self, job: Job, on_text: Callable[[str], None] | None = None, *, on_piece: OnPiece | None = None
    ) -> Completion:
        """See `interfaces.Engine`. A cancelled call returns only after the sequence's cells are free, so that its
        model is not unloaded under it."""
        return await self._run(job, on_piece or _without_logprobs(on_text), warm=False)

    async def warm(self, job: Job) -> None:
        """See `interfaces.Engine`."""
        await self._run(job, None, warm=True)

    async def _run(self, job: Job, on_piece: OnPiece | None, *, warm: bool) -> Completion:
        called_at = time.monotonic()
        if self.residency is None:
            raise Internal("the engine has no residency")
        async with self.residency.hold(job.model) as load_ms:
            worker = self._running()
            ticket = Ticket(job, on_piece, self._future(), called_at, load_ms, warm)
            worker.submit(ticket)
            try:
                await asyncio.wait([ticket.future])
            except asyncio.CancelledError:
                ticket.on_piece = None  # whoever asked has left
                worker.cancel(ticket)
                await settled(ticket.future)
                raise
            return ticket.future.result()

    async def load(self, spec: ModelSpec) -> None:
        """See `interfaces.Loader`; does nothing where the model is loaded. Other models wait meanwhile. A cancelled
        call leaves the model unloaded."""
        worker, future, abort = self._running(), self._future(), threading.Event()
        worker.load(spec, abort, future)
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            abort.set()
            if await settled(future) is None:
                await self._unload_anyway(spec.name)
            raise
        future.result()

    async def settle(self) -> None:
        """Look through the states on the disk."""
        if self._snapshots is not None:
            await asyncio.to_thread(self._snapshots.start)

    async def stop(self) -> None:
        """See `Owner`. What is queued for the disk is written."""
        try:
            await super().stop()
        finally:
            if self._snapshots is not None:
                await asyncio.to_thread(self._snapshots.close)

    async def trim(self) -> int:
        """See `interfaces.Yielding`. A load in progress comes first."""
        queued = self._snapshots.forget_queued() if self._snapshots is not None else 0
        worker, future = self._running(), self._future()
        worker.trim(future)
        dropped: int = await future
        return queued + dropped

    def relax(self) -> None:
        """See `interfaces.Yielding`."""
        if self._worker is not None:
            self._worker.relax()

    def pause_batch(self, paused: bool) -> None:
        """See `interfaces.Yielding`."""
        if self._worker is not None:
            self._worker.pause_batch(paused)

    def stats(self) -> list[LlamaStats]:
        """The loaded models, as they were after their last step."""
        worker = self._worker
        return list(worker.stats) if worker else []

    def lost_s(self, model: str) -> float:
        """See `BaseEngine`: nothing where states of prefixes are kept on the disk."""
        held = next((stats for stats in self.stats() if stats.name == model), None)
        if held is None or not held.prefill_tokens_s or (self._snapshots is not None and self._snapshots.max_bytes):
            return 0.0
        return held.cells_used / held.prefill_tokens_s

    def status(self) -> dict[str, JSON]:
        """See `BaseEngine`: the states on the disk."""
        if self._snapshots is None:
            return {}
        stats = self._snapshots.stats
        shown = ("files", "bytes", "written_bytes", "restored", "refused")
        return {"snapshots": {name: getattr(stats, name) for name in shown}}


def _without_logprobs(on_text: Callable[[str], None] | None) -> OnPiece | None:
    return (lambda text, _: on_text(text)) if on_text is not None else None
