"""SQL tools as a kind: which database a tool uses, and all databases' effects together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from edged.config import SqlTool, Tool
from edged.errors import ToolFailed
from edged.tools import values
from edged.tools.kind import Done, KindContext, Problem, ToolKind
from edged.tools.sql.database import SqlDatabase
from edged.types import JSON


class SqlKind(ToolKind[SqlTool]):
    """A thread and its connections for every database of the configuration, opened by the first use."""

    table: ClassVar[type[Tool]] = SqlTool
    works: ClassVar[str] = "statements fit their databases"

    def __init__(self, tools: Mapping[str, SqlTool], context: KindContext) -> None:
        super().__init__(tools, context)
        self._cautions: list[Problem] = []
        # Also those that no tool uses any more: they know what requests have done before a reload.
        self._databases = {name: SqlDatabase(name, table) for name, table in context.settings.databases.items()}

    async def call(self, name: str, arguments: dict[str, JSON], rid: str, step: int, intent: str) -> JSON:
        """See ToolKind. A write happens once for (rid, step), however often it is called."""
        tool = self.tools[name]
        database = self._databases[tool.database]
        bound = dict.fromkeys(values.optional(tool.parameters)) | arguments  # what was left out is NULL
        if tool.is_write:
            return await database.write(tool, bound, rid, step, intent)
        return await database.read(tool, bound, name=name)

    def keeps_intents(self, name: str) -> bool:
        """See ToolKind."""
        return self.tools[name].is_write

    async def recall(self, rid: str) -> list[Done]:
        """See ToolKind."""
        found = await asyncio.gather(*(database.recall(rid) for database in self._databases.values()))
        return [done for each in found for done in each]

    async def check(self) -> list[Problem]:
        """See ToolKind. Missing files, tables, columns and parameters: statements are prepared, not run."""
        problems, self._cautions = [], []
        for name, tool in self.tools.items():
            try:
                doubled = await self._databases[tool.database].check(tool)
                self._cautions += [_caution(name, column) for column in doubled]
            except ToolFailed as error:
                problems.append(Problem(name, error.message, "correct the statement or the database"))
        return problems

    def cautions(self) -> list[Problem]:
        """See ToolKind. What `check` found: columns of one name."""
        return self._cautions

    async def close(self) -> None:
        """See ToolKind."""
        for database in self._databases.values():
            await database.stop()


def _caution(tool: str, column: str) -> Problem:
    message = (
        f"{tool}: several columns of its result are called {column!r}; the second is given as {column}_2, and so on"
    )
    return Problem(tool, message, "give each its own name by AS")
