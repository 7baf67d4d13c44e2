"""Values from the world: what parameters with `values_sql` may be now, whatever kind of tool they belong to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from msgspec import Struct

from edged.config import Config, Tool
from edged.config.value_lists import SQL, Source, sources
from edged.errors import BadRequest, ToolFailed
from edged.tools.kind import Problem
from edged.tools.sql.column import Column, Columns
from edged.types import JSON, ToolCall

HINT = "correct the statement or the database"


class Listed(Struct, frozen=True):
    """A parameter with values from a database, as it was read. column: None where it could not be; why says why."""

    tool: str
    parameter: str
    source: Source
    column: Column | None
    why: str = ""

    @property
    def read(self) -> Column:
        """The column. Raises ToolFailed where it could not be read."""
        if self.column is None:
            raise ToolFailed(f"the values of {self.parameter} cannot be read: {self.why}")
        return self.column


class World:
    """Reads values. A database is opened when they are first needed, and never written."""

    def __init__(self, settings: Config) -> None:
        self._settings = settings
        self._columns: dict[str, Columns] = {}

    async def look(self, tools: Mapping[str, Tool]) -> list[Listed]:
        """All parameters of these tools that have values, as their databases are now. Statements are read side by side,
        each once; one that cannot be read costs the others nothing."""
        wanted = [
            (name, parameter, source)
            for name, tool in tools.items()
            for parameter, source in sources(tool.parameters).items()
        ]
        every = list(dict.fromkeys(source for _, _, source in wanted))
        read = dict(zip(every, await asyncio.gather(*map(self._read, every)), strict=True))
        return [Listed(*each, *read[each[2]]) for each in wanted]

    async def exactly(self, tool: Tool, call: ToolCall) -> ToolCall:
        """A call by hand with its values as the rows have them. Only a model's spelling is made good.

        Raises:
            BadRequest: one of them is no row.
            ToolFailed: they cannot be read.
        """
        arguments = dict(call.arguments)
        for listed in await self.look({call.name: tool}):
            name = listed.parameter
            if name in arguments and arguments[name] != tool.parameters[name].get("default"):
                row = listed.read.values.row(arguments[name])
                if row is None:
                    count = len(listed.read.values.values)
                    raise BadRequest(f"arguments: {name}: {arguments[name]!r} is none of the {count} values there are")
                arguments[name] = row
        return ToolCall(call.name, arguments)

    async def check(self, tools: Mapping[str, Tool]) -> list[Problem]:
        """What keeps values from being read now."""
        found = []
        for listed in await self.look(tools):
            problem = listed.why or _misfit(tools[listed.tool].parameters[listed.parameter], listed)
            if problem:
                found.append(Problem(listed.tool, problem, HINT, ("parameters", listed.parameter, SQL)))
        return found

    async def stop(self) -> None:
        """Close the connections."""
        for columns in self._columns.values():
            await columns.stop()

    async def _read(self, source: Source) -> tuple[Column | None, str]:
        """(the values; why there are none)."""
        name = source.database
        if name not in self._columns:
            self._columns[name] = Columns(name, self._settings.databases[name])
        try:
            return await self._columns[name].column(source.sql), ""
        except ToolFailed as error:
            return None, error.message


def _misfit(parameter: Mapping[str, JSON], listed: Listed) -> str | None:
    """A value that no call could have, for the parameter says that it is a number."""
    if parameter.get("type", "string") == "string":
        return None
    wrong = next((value for value in listed.read.values.values if isinstance(value, str)), None)
    return None if wrong is None else f"gives the text {wrong!r}, and the parameter's type is {parameter['type']}"
