"""How models without files are spoken to."""

from __future__ import annotations

from collections.abc import Callable

from edged.agent.dialects.dialects import Dialects
from edged.engines.kind import ChatTemplate
from edged.types import ModelSpec


def dialects(template_of: Callable[[str], str | None] = lambda model: None) -> Dialects:
    """The real thing over made-up files. template_of: the chat template of a model, by its name."""

    async def spec_of(model: str) -> ModelSpec:
        return ModelSpec(name=model, path=f"/{model}", context=512)

    return Dialects(spec_of, lambda spec: ChatTemplate(template_of(spec.name)))
