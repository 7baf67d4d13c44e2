"""Vectors for texts, by an embedding model. Nothing is stored."""

from __future__ import annotations

from collections.abc import Collection

from edged.completions.slots import Slots
from edged.errors import BadRequest, NoMemory
from edged.interfaces import Embedder
from edged.types import Embeddings, EmbedJob


class EmbeddingModels:
    """Embeddings, a bounded number of requests at once.

    Args:
        models: names of those that are configured.
        max_waiting: how many may wait for a slot; one more is refused.
    """

    def __init__(self, engine: Embedder, models: Collection[str], *, max_waiting: int) -> None:
        self._engine, self._models = engine, models
        self._slots = Slots("requests for embeddings", max_waiting=max_waiting)

    def refuse(self, error: NoMemory | None) -> None:
        """Begin nothing, with this error; None: begin again."""
        self._slots.refusing = error

    async def embed(self, job: EmbedJob) -> Embeddings:
        """A vector for each text. Cancelling the task ends it within one batch.

        Raises:
            BadRequest: there is no such model, it makes no embeddings, or fewer dimensions.
            Busy: too many wait already.
            ContextExceeded: a text is longer than the model reads.
            ModelUnavailable, NoMemory: the model cannot be loaded; or the board is short of memory.
        """
        if job.model not in self._models:
            raise BadRequest(f"no model {job.model!r}; configured are {', '.join(self._models) or 'none'}")
        async with self._slots.one():
            return await self._engine.embed(job)
