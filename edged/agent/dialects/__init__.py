"""How models are spoken to: each by the template in its file, read once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from edged.agent.dialects.chat_template import Dialect

TemplateOf = Callable[[str], tuple[str | None, dict[str, str]]]
FileOf = Callable[[str], Awaitable[str]]


class Dialects:
    """The dialects of all models, each made when it is first needed: reading a template takes tens of milliseconds. One
    that cannot be read is tried again the next time.

    Args:
        template_of: (template, special tokens) of a model's file; called in a thread. Raises ModelUnavailable.
        file_of: the file that a model's name stands for now; None: the name itself.
    """

    def __init__(self, template_of: TemplateOf, file_of: FileOf | None = None) -> None:
        self._template_of, self._file_of = template_of, file_of
        self._made: dict[str, Dialect] = {}

    async def file(self, model: str) -> str:
        """The file that a model's name stands for now. Raises as `file_of`."""
        return await self._file_of(model) if self._file_of else model

    async def of_file(self, file: str) -> Dialect:
        """How the model in a file is spoken to. Raises ModelUnavailable."""
        if file not in self._made:
            self._made[file] = Dialect(*await asyncio.to_thread(self._template_of, file))
        return self._made[file]

    async def of_model(self, model: str) -> Dialect:
        """How a model is spoken to. Raises as `file` and `of_file`."""
        return await self.of_file(await self.file(model))
