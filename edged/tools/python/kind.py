"""Python tools as a kind: a worker for each, and what their processes may not touch."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from edged.config import Config, PythonTool, Tool
from edged.errors import ConfigError
from edged.tools.kind import KindContext, Problem, ToolKind
from edged.types import JSON

if TYPE_CHECKING:
    from edged.tools.python.worker import ToolWorker


class PythonKind(ToolKind[PythonTool]):
    """Nothing of what runs the tools is imported before there is one: a daemon without them does not carry it."""

    table: ClassVar[type[Tool]] = PythonTool
    works: ClassVar[str] = "Python functions can be imported"

    def __init__(self, tools: Mapping[str, PythonTool], context: KindContext) -> None:
        super().__init__(tools, context)
        self._workers: dict[str, ToolWorker] = {}
        if tools:
            from edged.tools.python import landlock
            from edged.tools.python.worker import ToolWorker

            closed, folder = landlock.own_files(context.settings), context.settings.tools_dir
            self._workers = {name: ToolWorker(name, tool, folder, closed) for name, tool in tools.items()}

    @classmethod
    async def resolve(
        cls, settings: Config, tools: Mapping[str, PythonTool]
    ) -> tuple[Mapping[str, PythonTool], list[ConfigError]]:
        """See ToolKind. Child processes read the functions' signatures."""
        if not tools:
            return tools, []
        from edged.tools.python import signatures

        return await signatures.resolve(settings, tools)

    async def call(self, name: str, arguments: dict[str, JSON], rid: str, step: int, intent: str) -> JSON:
        """See ToolKind. Returns what the function returns."""
        return await self._workers[name].call(arguments, rid, step)

    def cautions(self) -> list[Problem]:
        """See ToolKind."""
        if not self._workers:
            return []
        from edged.tools.python import landlock

        if (why := landlock.missing()) is None:
            return []
        hint = "use a kernel with Landlock, or only modules you trust with everything"
        return [Problem("", f"nothing keeps Python tools from edged's own files: {why}", hint)]

    def owns(self, pid: int) -> bool:
        """See ToolKind. A process of the daemon's own user that descends from the daemon was started by a tool."""
        if not self._workers:
            return False
        from edged.tools.python import orphans

        return orphans.comes_of(pid, os.getpid())

    async def close(self) -> None:
        """See ToolKind."""
        await asyncio.gather(*(worker.stop() for worker in self._workers.values()))
