"""Feeds the metrics: stands between the parts that work and those that ask them, so that neither has to count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import structs

from edged.daemon.metrics import Metrics
from edged.interfaces import Embedder, Engine, OnPiece
from edged.types import ChatAnswer, Completion, Embeddings, EmbedJob, Event, Job, Status


class Counted(Engine, Embedder, Protocol):
    """What generates and embeds."""


class MeteredEngine:
    """Implements `interfaces.Engine` and `interfaces.Embedder` with another one, counts its tokens and steps, and notes
    which variant answered.

    Args:
        variant_of: the variant of a model that is in memory, by the model's name.
    """

    def __init__(self, engine: Counted, metrics: Metrics, variant_of: Callable[[str], str] = lambda model: "") -> None:
        self._engine = engine
        self._metrics = metrics
        self._variant_of = variant_of

    async def generate(
        self, job: Job, on_text: Callable[[str], None] | None = None, *, on_piece: OnPiece | None = None
    ) -> Completion:
        """See interfaces.Engine."""
        done = await self._engine.generate(job, on_text, on_piece=on_piece)
        # The engine let go of the model in this very step of the event loop: nobody has put another in its place yet.
        if variant := self._variant_of(job.model):
            done = structs.replace(done, variant=variant)
        self._metrics.generated(
            job.model,
            prompt=done.prompt_tokens,
            cached=done.cached_tokens,
            generated=done.completion_tokens,
            forced=done.forced_tokens,
            decode_steps=done.decode_steps,
        )
        return done

    async def warm(self, job: Job) -> None:
        """See interfaces.Engine. Nothing is counted: no request came of it."""
        await self._engine.warm(job)

    async def embed(self, job: EmbedJob) -> Embeddings:
        """See interfaces.Embedder. Its tokens are those of prompts."""
        made = await self._engine.embed(job)
        self._metrics.generated(job.model, prompt=made.tokens, cached=0, generated=0, forced=0, decode_steps=0)
        return made


class Meter:
    """What other parts call when something worth counting has happened."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def answered(self, model: str, answer: ChatAnswer) -> None:
        """An upstream has answered."""
        self._metrics.generated(
            model,
            prompt=answer.prompt_tokens,
            cached=answer.cached_tokens,
            generated=answer.completion_tokens,
            forced=0,
            decode_steps=0,
        )

    def heard(self, event: Event) -> None:
        """A subscriber of the bus: counts requests that ended, loads and unloads."""
        data = event.data
        match event.name:
            case "request_ended":
                first_ms = data["first_token_ms"]
                seconds, first_s = data["total_ms"] / 1000, first_ms / 1000 if first_ms else None
                self._metrics.settled(data["agent"], data["where"], Status(data["status"]), seconds, first_s)
                if data["outcome"] is not None:
                    self._metrics.answered(data["agent"], data["outcome"])
            case "model_loaded":
                self._metrics.model_loaded(data["model"], "ok")
            case "model_load_failed":
                self._metrics.model_loaded(data["model"], data["code"])
            case "model_unloaded":
                self._metrics.model_unloaded(data["model"], data["reason"])
