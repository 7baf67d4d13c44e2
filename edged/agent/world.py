"""Values from databases, as minds meet them: told beside the question, and found again in what a mind wrote.

No mind is forced to choose a row: who has to, chooses another boat where the one that was asked for does not exist.
Calls are written freely, and edged looks for the row that is meant (`tools/spoken`). Where there is none, or more than
one, nothing is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from edged.agent.dialects import compact
from edged.config import Tool
from edged.config.value_lists import Source, sources
from edged.tools.toolbox import Toolbox
from edged.tools.world import Listed
from edged.types import JSON, Message, PastTurn, ToolCall

# Values that a question is asked with, of all parameters together. They are computed anew for each request, 5 tokens
# each and 100 tokens in all: a quarter of a second on a small board. Of a list that is longer those are shown that the
# request's letters are likest to; beyond the first few a true name is hardly ever among them.
MOST_TOLD = 20

MOST_READ = 2000  # characters of what was said that likeness is looked for in, the newest first


class NotThere(Exception):
    """A call has a value that is none of those there are, or may be several. Nothing of its decision is done, and the
    run answers with that."""

    def __init__(self, parameter: str, value: JSON) -> None:
        super().__init__(f"{parameter}: {value!r}")
        self.parameter, self.value = parameter, value


class Values:
    """The values that the parameters of some tools may have at one decision.

    Args:
        tools: by name.
        listed: as they were read for it.
    """

    def __init__(self, tools: Mapping[str, Tool], listed: Sequence[Listed] = ()) -> None:
        self._tools = tools
        self._listed = listed

    @classmethod
    async def of(cls, toolbox: Toolbox, tools: Mapping[str, Tool]) -> Values:
        """Of these tools, as their databases are now."""
        if not any(sources(tool.parameters) for tool in tools.values()):
            return cls(tools)
        return cls(tools, await toolbox.world.look(tools))

    def private(self) -> dict[str, frozenset[str]]:
        """Of each tool the parameters whose values no upstream may see. A list is private for all of an agent's tools
        where it is for one: as the parameter, as the column that is read, or with the whole tool."""
        hidden = {listed.source for listed in self._listed if self._is_private(listed)}
        found: dict[str, frozenset[str]] = {}
        for listed in self._listed:
            if listed.source in hidden:
                found[listed.tool] = found.get(listed.tool, frozenset()) | {listed.parameter}
        return found

    def secrets(self) -> tuple[JSON, ...]:
        """Rows of lists that no upstream may see: an earlier answer of edged's, or its client, may tell some."""
        hidden, rows = self.private(), dict[JSON, None]()
        for listed in self._listed:
            if listed.column is not None and listed.parameter in hidden.get(listed.tool, ()):
                rows.update(dict.fromkeys(listed.column.values.values))
        return tuple(rows)

    def _is_private(self, listed: Listed) -> bool:
        names = self._tools[listed.tool].private
        if isinstance(names, bool):
            return names
        own = {listed.parameter.casefold(), *(listed.column.names if listed.column else ())}
        return any(name.casefold().rpartition(".")[2] in own for name in names)

    def told(self, texts: Sequence[str], *, leaves: bool = False) -> str:
        """What a question is asked with; empty where there is nothing to tell. A line for each list.

        Args:
            texts: the request, and what was said before it.
            leaves: it goes to an upstream: without what is private.
        """
        private = self.private() if leaves else {}
        asked = " ".join(texts)[:MOST_READ]
        shown: dict[Source, Listed] = {}
        names: dict[Source, list[str]] = {}
        for listed in self._listed:
            if listed.column is None or not listed.column.values.values:
                continue
            if listed.parameter in private.get(listed.tool, ()):
                continue
            shown.setdefault(listed.source, listed)
            if listed.parameter not in (known := names.setdefault(listed.source, [])):
                known.append(listed.parameter)
        lines: list[str] = []
        room = MOST_TOLD
        every = sorted(shown, key=lambda source: len(shown[source].read.values.values))  # the short ones whole
        for source in every:
            rows = shown[source].read.values
            whole = len(rows.values) <= room
            some = rows.values if whole else tuple(row for _, row in rows.alike(asked, room))
            room -= len(some)
            if some:
                said = "|".join(compact.choice(row) for row in some)
                lines.append(f"{', '.join(names[source])}: {said}{'' if whole else '|...'}")
        return "\n".join(lines)

    async def checked(self, calls: Sequence[ToolCall], *, again: bool) -> tuple[ToolCall, ...] | str:
        """As `meant`, for a model that reads errors: the first time it is told what is wrong, as of any other value
        that its schema does not allow.

        Args:
            again: it was told of something before.
        """
        try:
            return await self.meant(calls)
        except NotThere as absent:
            if again:
                raise
            return not_there(absent)

    async def meant(self, calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
        """Calls with the rows that are meant.

        Raises:
            NotThere: none is, or more than one.
            ToolFailed: the rows could not be read.
        """
        return tuple([await self._of_one(call) for call in calls])

    async def _of_one(self, call: ToolCall) -> ToolCall:
        arguments = dict(call.arguments)
        for listed in self._listed:
            name = listed.parameter
            if listed.tool != call.name or arguments.get(name) is None:
                continue
            value = arguments[name]
            if value == self._tools[call.name].parameters[name].get("default"):
                continue
            rows = listed.read.values
            row = rows.row(value)
            if row is None:  # the index of a long list is made by the first who asks for what is not in it
                row = await asyncio.to_thread(rows.nearest, value, name)
            if row is None:
                raise NotThere(name, value)
            arguments[name] = row
        return ToolCall(call.name, arguments)

    def masked(self, tools: Mapping[str, Tool]) -> dict[str, Tool]:
        """Tools whose parameters with private values are private by name: what their calls were given is masked as that
        of any other private parameter."""
        made = dict(tools)
        for name, parameters in self.private().items():
            private = self._tools[name].private
            if not isinstance(private, bool):
                made[name] = msgspec.structs.replace(made[name], private=(*private, *sorted(parameters)))
        return made


NO_VALUES = Values({})


def said(history: Sequence[PastTurn], asked: Sequence[Message]) -> list[str]:
    """What was said so far, the newest first."""
    earlier = [message for turn in history for message in turn.messages]
    return [message.content for message in reversed((*earlier, *asked))]


def beside(messages: Sequence[Message], told: str) -> tuple[Message, ...]:
    """A request's messages with the values in front of its last one: what is fixed stays in front of both."""
    *before, question = messages
    if not told:
        return tuple(messages)
    return (*before, msgspec.structs.replace(question, content=f"{told}\n\n{question.content}"))


def not_there(absent: NotThere) -> str:
    """The error that goes back to a model that reads errors."""
    return (
        f"{absent.parameter}: {absent.value!r} is none of the values there are. Take no other value in its place: "
        "where it was asked for, say that it is not there."
    )
