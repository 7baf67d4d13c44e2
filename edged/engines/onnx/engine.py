"""The engine of embedding models as the rest of edged sees it: asyncio outside, one thread inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from edged.engines.onnx import sizes
from edged.engines.threaded import ThreadedEngine
from edged.errors import ModelUnavailable
from edged.host import malloc
from edged.interfaces import Residency
from edged.types import Embeddings, EmbedJob, ModelSpec

if TYPE_CHECKING:
    from edged.engines.onnx.runner import EmbeddingRunner, OnnxStats


class OnnxEngine(ThreadedEngine[EmbedJob]):
    """Embedding models in onnxruntime. See BaseEngine.

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
        super().__init__(
            "the engine of embedding models",
            thread_name="edged.engines.onnx",
            packages=sizes.LIBRARIES,
            on_fatal=on_fatal,
        )
        self.residency = residency
        self._threads = threads

    async def embed(self, job: EmbedJob) -> Embeddings:
        """See `interfaces.Embedder`."""
        made: Embeddings = await self._run(job)
        return made

    def stats(self) -> Sequence[OnnxStats]:
        """See `BaseEngine`: as they were after their last batch."""
        return cast("Sequence[OnnxStats]", super().stats())

    def _open_model(self, spec: ModelSpec, goes_on: Callable[[], bool]) -> EmbeddingRunner:
        malloc.return_at_once()
        try:
            from edged.engines.onnx.runner import EmbeddingRunner
        except (ImportError, OSError) as error:  # not installed, or built for another machine
            raise ModelUnavailable(f"onnxruntime cannot be used: {error}") from error
        threads = spec.threads or self._threads or len(os.sched_getaffinity(0))
        try:
            runner = EmbeddingRunner(spec, threads, goes_on)
        except MemoryError:
            raise ModelUnavailable(f"there was no memory to load {spec.name!r}") from None
        malloc.trim()  # while a session is made, weights are there several times
        return runner
