"""How models are spoken to: each by the template in its file, read once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from edged.agent.dialects.chat_template import Dialect
from edged.engines.kind import ChatTemplate
from edged.types import ModelSpec

TemplateOf = Callable[[ModelSpec], ChatTemplate]
SpecOf = Callable[[str], Awaitable[ModelSpec]]


class Dialects:
    """The dialects of all models, each made when it is first needed: reading a template takes tens of milliseconds. One
    that cannot be read is tried again the next time.

    Args:
        template_of: the chat template in a model's file; called in a thread. Raises ModelUnavailable, and BadRequest
            for an embedding model.
        spec_of: what a model's name stands for now; None: a file of that name.
    """

    def __init__(self, template_of: TemplateOf, spec_of: SpecOf | None = None) -> None:
        self._template_of, self._spec_of = template_of, spec_of
        self._made: dict[tuple[str, str, str], Dialect] = {}  # by engine, file and adapter

    async def of_spec(self, spec: ModelSpec) -> Dialect:
        """How the model in a file is spoken to; of the same file the same object. Raises as `template_of`."""
        key = (spec.engine, spec.path, spec.adapter)
        if key not in self._made:
            template = await asyncio.to_thread(self._template_of, spec)
            self._made[key] = await asyncio.to_thread(Dialect, template.source, template.tokens, template.taught)
        return self._made[key]

    async def of_model(self, model: str) -> Dialect:
        """How a model is spoken to. Raises as `spec_of` and `template_of`."""
        spec = await self._spec_of(model) if self._spec_of else ModelSpec(name=model, path=model, context=0)
        return await self.of_spec(spec)
