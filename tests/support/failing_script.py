"""A scripted model that ends in the middle of an answer. A daemon gets it by EDGED_TEST_MEMBERS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edged.engines.scripted import ScriptedEngine
from edged.errors import ModelUnavailable
from edged.types import Completion, Job, TokenLogprob

WORDS = 5  # that come before
generate = ScriptedEngine.generate


async def breaking(
    self: ScriptedEngine, job: Job, on_text: Any = None, *, on_piece: Callable[..., None] | None = None
) -> Completion:
    """Breaks where it is asked to."""
    told = 0

    def piece(text: str, tokens: tuple[TokenLogprob, ...]) -> None:
        nonlocal told
        told += 1
        if told > WORDS:
            raise ModelUnavailable("the model is gone")
        if on_piece:
            on_piece(text, tokens)

    breaks = any("speaks and breaks" in segment.text for segment in job.turn)
    return await generate(self, job, on_text, on_piece=piece if breaks else on_piece)


ScriptedEngine.generate = breaking  # type: ignore[method-assign]
