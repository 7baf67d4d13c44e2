"""How models are spoken to: each by the template in its file, read once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from edged.agent.dialects.chat_template import Dialect
from edged.engines.kind import ChatTemplate, TextFormat
from edged.types import ModelSpec

TemplateOf = Callable[[ModelSpec], ChatTemplate]
FormatOf = Callable[[ModelSpec], TextFormat]
SpecOf = Callable[[str], Awaitable[ModelSpec]]


class Dialects:
    """The dialects of all models, each made when it is first needed: reading a template takes tens of milliseconds. One
    that cannot be read is tried again the next time.

    Args:
        template_of: the chat template in a model's file; called in a thread. Raises ModelUnavailable, and BadRequest
            for an embedding model.
        spec_of: what a model's name stands for now; None: a file of that name.
        format_of: how the model in a file goes on with a bare text; called and raises as `template_of`.
    """

    def __init__(
        self,
        template_of: TemplateOf,
        spec_of: SpecOf | None = None,
        format_of: FormatOf = lambda spec: TextFormat(),
    ) -> None:
        self._template_of, self._spec_of, self._format_of = template_of, spec_of, format_of
        self._made: dict[tuple[str, str, str], Dialect] = {}  # by engine, file and adapter
        self._formats: dict[tuple[str, str], TextFormat] = {}  # by engine and file

    async def of_spec(self, spec: ModelSpec) -> Dialect:
        """How the model in a file is spoken to; of the same file the same object. Raises as `template_of`."""
        key = (spec.engine, spec.path, spec.adapter)
        if key not in self._made:
            template = await asyncio.to_thread(self._template_of, spec)
            self._made[key] = await asyncio.to_thread(Dialect, template.source, template.tokens, template.taught)
        return self._made[key]

    async def of_model(self, model: str) -> Dialect:
        """How a model is spoken to. Raises as `spec_of` and `template_of`."""
        return await self.of_spec(await self._spec(model))

    async def text_format(self, model: str) -> TextFormat:
        """How a model goes on with a bare text. Raises as `spec_of` and `format_of`."""
        spec = await self._spec(model)
        key = (spec.engine, spec.path)
        if key not in self._formats:
            self._formats[key] = await asyncio.to_thread(self._format_of, spec)
        return self._formats[key]

    async def _spec(self, model: str) -> ModelSpec:
        return await self._spec_of(model) if self._spec_of else ModelSpec(name=model, path=model, context=0)
