"""The table of engine kinds, and all engines of a daemon as one.

To add a kind: a file with an `EngineKind`, and its line in KINDS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from edged.engines.kind import (
    BaseEngine,
    ChatTemplate,
    EngineKind,
    ModelStats,
    Surroundings,
    TextFormat,
    embeds_only,
    generates_only,
)
from edged.engines.llama.kind import LlamaKind
from edged.engines.onnx.kind import OnnxKind
from edged.engines.scripted import ScriptedKind
from edged.errors import ModelUnavailable
from edged.interfaces import OnPiece, Residency
from edged.types import JSON, Completion, Embeddings, EmbedJob, Job, ModelSpec, Speed

KINDS: list[EngineKind] = [LlamaKind(), OnnxKind(), ScriptedKind()]
DEFAULT = LlamaKind.name  # of a file that no kind is known by: GGUF files are called anything


def kind(name: str) -> EngineKind:
    """A kind by its name. ModelUnavailable: there is none; the message names those there are."""
    for each in KINDS:
        if each.name == name:
            return each
    raise ModelUnavailable(f"there is no engine {name!r}; there are {', '.join(names())}")


def names() -> list[str]:
    """Of all kinds."""
    return [each.name for each in KINDS]


def by_scheme(scheme: str) -> EngineKind | None:
    """The kind whose own sources begin so."""
    return next((each for each in KINDS if each.scheme and each.scheme == scheme), None)


def by_suffix(suffix: str) -> EngineKind | None:
    """The kind whose files end so, in letters of any case."""
    return next((each for each in KINDS if each.suffix and each.suffix == suffix.lower()), None)


def chat_template(spec: ModelSpec) -> ChatTemplate:
    """The chat template of a model; see `EngineKind.chat_template`. BadRequest: it is an embedding model."""
    found = kind(spec.engine)
    if not found.generates:
        raise embeds_only(spec.name)
    template = found.chat_template(Path(spec.path))
    return msgspec.structs.replace(template, taught=found.dialect_of(Path(spec.adapter))) if spec.adapter else template


def text_format(spec: ModelSpec) -> TextFormat:
    """How a model goes on with a text; see `EngineKind.text_format`. BadRequest: it is an embedding model."""
    found = kind(spec.engine)
    if not found.generates:
        raise embeds_only(spec.name)
    return found.text_format(Path(spec.path))


def make_engines(specs: Iterable[ModelSpec], around: Surroundings) -> Engines:
    """The engines that these models need, not started."""
    configured = {spec.name: spec for spec in specs}
    wanted = dict.fromkeys(spec.engine for spec in configured.values())
    return Engines(configured, {name: kind(name).make(around) for name in wanted})


class Engines(BaseEngine):
    """Dispatch: what a model is asked goes to the engine that runs it.

    Args:
        specs: the configured models, by name.
        engines: by the names of their kinds; every kind among the models has one.
    """

    def __init__(self, specs: Mapping[str, ModelSpec], engines: Mapping[str, BaseEngine]) -> None:
        self._specs, self._engines = specs, engines
        self._loaded: dict[str, str] = {}  # kinds by name: a file on trial is not among the configured models

    @property
    def residency(self) -> Residency | None:
        """See BaseEngine."""
        return self._residency

    @residency.setter
    def residency(self, residency: Residency | None) -> None:
        self._residency = residency
        for engine in self._engines.values():
            engine.residency = residency

    async def start(self, residency: Residency | None = None) -> None:
        """Start all; they load nothing.

        Args:
            residency: who decides what is loaded; None: it is set otherwise.
        """
        if residency is not None:
            self.residency = residency
        for engine in self._engines.values():
            await engine.start()

    async def settle(self) -> None:
        """See BaseEngine."""
        for engine in self._engines.values():
            await engine.settle()

    async def stop(self) -> None:
        """End everything that runs, free all models."""
        for engine in self._engines.values():
            await engine.stop()

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
        name = self._kind(job.model)
        if not kind(name).embeds:
            others = [spec.name for spec in self._specs.values() if kind(spec.engine).embeds]
            told = f"those that do are {', '.join(others)}" if others else "none that does is configured"
            raise generates_only(job.model, f"; {told}")
        return await self._engines[name].embed(job)

    async def load(self, spec: ModelSpec) -> None:
        """See interfaces.Loader."""
        await self._engines[spec.engine].load(spec)
        self._loaded[spec.name] = spec.engine

    async def unload(self, name: str) -> None:
        """See interfaces.Loader."""
        await self._engines[self._kind(name)].unload(name)

    async def trim(self) -> int:
        """See interfaces.Yielding."""
        return sum([await engine.trim() for engine in self._engines.values()])

    def relax(self) -> None:
        """See interfaces.Yielding."""
        for engine in self._engines.values():
            engine.relax()

    def pause_batch(self, paused: bool) -> None:
        """See interfaces.Yielding."""
        for engine in self._engines.values():
            engine.pause_batch(paused)

    def progress(self) -> tuple[bool, float]:
        """Of the engine that is at work and got on longest ago."""
        at_work = [since for busy, since in (engine.progress() for engine in self._engines.values()) if busy]
        return (True, min(at_work)) if at_work else (False, time.monotonic())

    def stats(self) -> list[ModelStats]:
        """The loaded models of all."""
        return [stats for engine in self._engines.values() for stats in engine.stats()]

    def speeds(self) -> dict[str, Speed]:
        """The loaded models whose speed was measured, by name."""
        return {stats.name: speed for stats in self.stats() if (speed := stats.speed) is not None}

    def lost_s(self, model: str) -> float:
        """See BaseEngine."""
        return self._engines[self._kind(model)].lost_s(model)

    def status(self) -> dict[str, JSON]:
        """See BaseEngine."""
        return {name: value for engine in self._engines.values() for name, value in engine.status().items()}

    def _generator(self, model: str) -> BaseEngine:
        name = self._kind(model)
        if not kind(name).generates:
            raise embeds_only(model)
        return self._engines[name]

    def _kind(self, model: str) -> str:
        if model in self._loaded:
            return self._loaded[model]
        if model not in self._specs:
            raise ModelUnavailable(f"no model {model!r} is configured")
        return self._specs[model].engine
