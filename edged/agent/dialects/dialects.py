"""How every model is spoken to: the chat template of a model's file, read once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from edged.agent.dialects.chat_template import Dialect
from edged.engines import registry
from edged.engines.kind import ChatTemplate
from edged.types import ModelSpec


class Dialects:
    """The dialects of models, made when they are first needed: reading a template takes tens of milliseconds.

    Args:
        spec_of: the file a model's name stands for now; it is asked for every prompt, because updates and variants
            change it. Raises ModelUnavailable, NoMemory.
        template_of: the chat template in a model's file; called in a thread.
    """

    def __init__(
        self,
        spec_of: Callable[[str], Awaitable[ModelSpec]],
        template_of: Callable[[ModelSpec], ChatTemplate] = registry.chat_template,
    ) -> None:
        self._spec_of = spec_of
        self._template_of = template_of
        self._made: dict[tuple[str, str], Dialect] = {}  # by engine and file

    async def __call__(self, model: str) -> Dialect:
        """The dialect of a model by its name. The same file has the same object.

        Raises:
            BadRequest: it is an embedding model.
            ModelUnavailable, NoMemory: its file is not here, or cannot be read.
        """
        return await self.of(await self._spec_of(model))

    async def of(self, spec: ModelSpec) -> Dialect:
        """The dialect of a model's file; raises as a call."""
        key = (spec.engine, spec.path)
        if key not in self._made:
            template = await asyncio.to_thread(self._template_of, spec)
            self._made[key] = Dialect(template.source, template.tokens)
        return self._made[key]
