"""All engines of this daemon as one: what a model is asked goes to the engine that runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from edged.errors import BadRequest
from edged.interfaces import Embedder, Engine, Loader, OnPiece, Residency, Yielding
from edged.types import Completion, Embeddings, EmbedJob, EngineKind, Job, ModelSpec


class Part(Loader, Protocol):
    """What every engine is to the daemon, whatever its models can do."""

    residency: Residency | None

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def progress(self) -> tuple[bool, float]: ...
    def stats(self) -> list[Any]: ...


class Generator(Part, Engine, Yielding, Protocol):
    """An engine of language models."""


class EmbeddingEngine(Part, Embedder, Protocol):
    """An engine of embedding models."""


class Runtime(Part, Engine, Embedder, Yielding, Protocol):
    """An engine as the daemon runs it, for models of all kinds."""


class Engines:
    """Implements `Runtime`: dispatch by the kind of engine that a model's spec names.

    Args:
        specs: the configured models; every kind among them has its engine in one of the following.
        generators: engines of language models, by kind.
        embedders: engines of embedding models, by kind.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        *,
        generators: Mapping[EngineKind, Generator],
        embedders: Mapping[EngineKind, EmbeddingEngine],
    ) -> None:
        self._specs, self._generators, self._embedders = specs, generators, embedders
        self._parts: dict[EngineKind, Part] = {**generators, **embedders}
        self._loaded: dict[str, EngineKind] = {}  # by name: a file on trial is not among the configured models
        self._residency: Residency | None = None

    @property
    def residency(self) -> Residency | None:
        """Who decides what is loaded."""
        return self._residency

    @residency.setter
    def residency(self, residency: Residency | None) -> None:
        self._residency = residency
        for part in self._parts.values():
            part.residency = residency

    async def start(self) -> None:
        """Start all; they load nothing."""
        for part in self._parts.values():
            await part.start()

    async def stop(self) -> None:
        """End everything that runs, free all models."""
        for part in self._parts.values():
            await part.stop()

    async def generate(
        self, job: Job, on_text: Callable[[str], None] | None = None, *, on_piece: OnPiece | None = None
    ) -> Completion:
        """See interfaces.Engine."""
        return await self._generator(job.model).generate(job, on_text, on_piece=on_piece)

    async def warm(self, job: Job) -> None:
        """See interfaces.Engine."""
        await self._generator(job.model).warm(job)

    async def embed(self, job: EmbedJob) -> Embeddings:
        """See interfaces.Embedder."""
        engine = self._embedders.get(self._kind(job.model))
        if engine is None:
            names = [spec.name for spec in self._specs.values() if spec.engine in self._embedders]
            told = f"those that do are {', '.join(names)}" if names else "none that does is configured"
            raise BadRequest(f"model: {job.model!r} is a language model and makes no embeddings; {told}")
        return await engine.embed(job)

    async def load(self, spec: ModelSpec) -> None:
        """See interfaces.Loader."""
        await self._parts[spec.engine].load(spec)
        self._loaded[spec.name] = spec.engine

    async def unload(self, name: str) -> None:
        """See interfaces.Loader."""
        await self._parts[self._kind(name)].unload(name)

    async def trim(self) -> int:
        """See interfaces.Yielding; embedding models keep nothing between two requests."""
        return sum([await engine.trim() for engine in self._generators.values()])

    def relax(self) -> None:
        """See interfaces.Yielding."""
        for engine in self._generators.values():
            engine.relax()

    def pause_batch(self, paused: bool) -> None:
        """See interfaces.Yielding; embeddings are not told to be batch work."""
        for engine in self._generators.values():
            engine.pause_batch(paused)

    def progress(self) -> tuple[bool, float]:
        """Of the engine that is at work and got on longest ago."""
        at_work = [since for busy, since in (part.progress() for part in self._parts.values()) if busy]
        return (True, min(at_work)) if at_work else (False, time.monotonic())

    def stats(self) -> list[Any]:
        """The loaded models of all."""
        return [stats for part in self._parts.values() for stats in part.stats()]

    def _generator(self, model: str) -> Generator:
        engine = self._generators.get(self._kind(model))
        if engine is None:
            raise embeds_only(model)
        return engine

    def _kind(self, model: str) -> EngineKind:
        """Of a model nobody configured: any; its engine asks who decides what is loaded, and that says so."""
        if model in self._loaded:
            return self._loaded[model]
        spec = self._specs.get(model)
        return spec.engine if spec is not None else next(iter(self._parts))


def embeds_only(model: str) -> BadRequest:
    """What is told to those who want a text of an embedding model."""
    return BadRequest(f"model: {model!r} is an embedding model: it does not generate, see POST /v1/embeddings")
