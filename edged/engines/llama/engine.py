"""llama.cpp as the rest of edged sees it: asyncio outside, one thread inside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from edged.engines.llama import predict
from edged.engines.llama.snapshots import Snapshots
from edged.engines.llama.stats import LlamaStats
from edged.engines.threaded import ThreadedEngine
from edged.errors import ModelUnavailable
from edged.host import cpus
from edged.interfaces import OnPiece, Residency
from edged.types import JSON, Completion, Job, ModelSpec

if TYPE_CHECKING:
    from edged.engines.llama.runner import Runner

SHOWN = ("files", "bytes", "written_bytes", "restored", "refused")  # of the states on the disk


class LlamaEngine(ThreadedEngine[Job]):
    """Language models in llama.cpp. See BaseEngine.

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
        super().__init__("the engine", thread_name="edged.engines.llama", packages=predict.PACKAGES, on_fatal=on_fatal)
        self.residency = residency
        self._threads = threads
        self._snapshots = snapshots
        self._checked = checked

    async def generate(
        self, job: Job, on_text: Callable[[str], None] | None = None, *, on_piece: OnPiece | None = None
    ) -> Completion:
        """See `interfaces.Engine`."""
        done: Completion = await self._run(job, on_piece or _without_logprobs(on_text))
        return done

    async def warm(self, job: Job) -> None:
        """See `interfaces.Engine`."""
        await self._run(job, warm=True)

    async def settle(self) -> None:
        """Look through the states on the disk."""
        if self._snapshots is not None:
            await asyncio.to_thread(self._snapshots.start)

    async def stop(self) -> None:
        """See `ThreadedEngine`. What is queued for the disk is written."""
        try:
            await super().stop()
        finally:
            if self._snapshots is not None:
                await asyncio.to_thread(self._snapshots.close)

    async def trim(self) -> int:
        """See `interfaces.Yielding`. A load in progress comes first."""
        queued = self._snapshots.forget_queued() if self._snapshots is not None else 0
        return queued + await super().trim()

    def stats(self) -> Sequence[LlamaStats]:
        """See `BaseEngine`: as they were after their last step."""
        return cast("Sequence[LlamaStats]", super().stats())

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
        return {"snapshots": {name: getattr(stats, name) for name in SHOWN}}

    def _open_model(self, spec: ModelSpec, goes_on: Callable[[], bool]) -> Runner:
        try:
            cpus.before_loading()
            from edged.engines.llama.runner import Runner

            configured = spec.threads if spec.threads is not None else self._threads
            return Runner(
                spec,
                cpus.most_threads(configured),
                lambda fraction: goes_on(),
                tuned=configured is None,
                snapshots=self._snapshots,
                checked=self._checked,
            )
        except (ImportError, RuntimeError, OSError, MemoryError) as error:  # libraries missing, or built for other CPUs
            raise ModelUnavailable(f"llama.cpp cannot be used: {error}") from error


def _without_logprobs(on_text: Callable[[str], None] | None) -> OnPiece | None:
    return (lambda text, _: on_text(text)) if on_text is not None else None
