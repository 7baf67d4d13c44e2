"""All tools of a daemon, of whatever kind, by name. The list belongs to the toolbox and may change while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from edged.config import Agent, Config, Tool
from edged.config.roles import Role
from edged.config.tools import TABLES
from edged.errors import BadRequest, ConfigError, ToolFailed
from edged.interfaces import Publisher
from edged.tools import check, values
from edged.tools.kind import Done, KindContext, OtherCall, Problem, ToolKind, check_same_call, intent_of
from edged.tools.mcp.kind import McpKind
from edged.tools.publish import PublishKind
from edged.tools.python.kind import PythonKind
from edged.tools.sql.kind import SqlKind
from edged.tools.world import World
from edged.types import JSON, ToolCall

logger = logging.getLogger("edged.tools")

# The kinds of tools. A new one is a file, its line here, and its table's line in `config.tools.TABLES`.
KINDS: list[type[ToolKind[Any]]] = [SqlKind, PublishKind, PythonKind, McpKind]


ALL_OF = ".*"  # after the name of an MCP server: all of its tools


def add_kind(kind: type[ToolKind[Any]]) -> None:
    """Let configurations have tools of a kind that lies outside this package. Before any is loaded."""
    KINDS.append(kind)
    TABLES.append(kind.table)


async def resolve(settings: Config) -> tuple[Config, list[ConfigError]]:
    """The configuration with all that it leaves to the kinds of its tools (a function's docstring is its description),
    and what is wrong with those tools, which stay as they were."""
    tools, problems = dict(settings.tools), []
    for kind in KINDS:
        resolved, wrong = await kind.resolve(settings, _of(settings, kind))
        tools.update(resolved)
        problems += wrong
    agents = {name: _with_all(agent, tools) for name, agent in settings.agents.items()}
    roles = {name: _with_all(role, tools) for name, role in settings.roles.items()}
    return msgspec.structs.replace(settings, tools=tools, agents=agents, roles=roles), problems


Listing = TypeVar("Listing", Agent, Role)


def _with_all(one: Listing, tools: Iterable[str]) -> Listing:
    """The same with the tools of an MCP server in the place of `SERVER.*`."""
    if not any(name.endswith(ALL_OF) for name in one.tools):
        return one
    named: list[str] = []
    for name in one.tools:
        server = name.removesuffix("*")
        named += [tool for tool in tools if tool.startswith(server)] if name.endswith(ALL_OF) else [name]
    return msgspec.structs.replace(one, tools=tuple(dict.fromkeys(named)))


class Toolbox:
    """Calls tools by name.

    Args:
        settings: as `resolve` left them.
        publisher: None where no broker is configured.
        called: gets (tool, whether it worked) of every call.
        tell: publishes an event.

    Attributes:
        tools: all there are, those of the configuration first and in its order. A live view: it always shows the tools
            of now. `subscribe` tells when they change.
        world: values that their parameters have from databases.
    """

    def __init__(
        self,
        settings: Config,
        publisher: Publisher | None = None,
        *,
        called: Callable[[str, bool], None] = lambda tool, ok: None,
        tell: Callable[[str, dict[str, JSON]], None] = lambda name, data: None,
    ) -> None:
        self._called = called
        self.world = World(settings)
        self._configured = settings.tools
        self._listeners: list[Callable[[], None]] = []
        self._tools: dict[str, Tool] = {}
        self._kind_of: dict[str, ToolKind[Any]] = {}
        self._left_out: dict[str, str] = {}
        self.tools: Mapping[str, Tool] = MappingProxyType(self._tools)
        context = KindContext(settings, publisher, self._changed, tell)
        self.kinds: tuple[ToolKind[Any], ...] = ()
        self.kinds = tuple(kind(_of(settings, kind), context) for kind in KINDS)
        self._list()

    async def start(self) -> None:
        """A daemon serves from now on."""
        for kind in self.kinds:
            await kind.start()

    @property
    def mcp(self) -> McpKind:
        """The kind that has servers of its own to look after."""
        return next(kind for kind in self.kinds if isinstance(kind, McpKind))

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """From now on `listener` is called after every change of `tools`; the returned function ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """These tools cannot work, and no others: models are told of them as far as possible, and a call of one fails
        with its reason, for a request is to learn why."""
        if dict(reasons) != self._left_out:
            self._left_out = dict(reasons)
            self._changed()

    def get(self, name: str) -> Tool | None:
        """A tool; None where the journal names one that is not there any more."""
        return self._tools.get(name)

    def is_write(self, name: str) -> bool:
        """Whether the tool changes something; its intent is durable before it runs."""
        tool = self._tools.get(name)
        return tool is not None and tool.is_write

    def keeps_intents(self, name: str) -> bool:
        """Whether the tool keeps the intent of a call beside its effect, in one transaction. See ToolKind."""
        kind = self._kind_of.get(name)
        return kind is not None and kind.keeps_intents(name)

    async def recall(self, rid: str) -> list[Done]:
        """What is known to have been done for a request, of the tools that know it.

        Raises:
            ToolFailed: one of them cannot look. Nothing may be done again then.
        """
        found = await asyncio.gather(*(kind.recall(rid) for kind in self.kinds))
        return [done for each in found for done in each]

    async def call(self, call: ToolCall, rid: str, step: int, intent: str | None = None) -> JSON:
        """Do it. An SQL write happens once per (rid, step); publishing and Python tools happen at every call.

        Args:
            intent: what `recall` gives back, from kinds that recall; None: the call alone.

        Raises:
            ToolFailed: the reason, as the model and the reply get it.
        """
        try:
            result = await self._do(call, rid, step, intent)
        except ToolFailed:
            self._called(call.name, False)
            raise
        self._called(call.name, True)
        return result

    async def call_by_hand(self, name: str, arguments: dict[str, JSON], rid: str, *, named: bool = False) -> JSON:
        """Call a tool outside of any request; nothing has made its arguments fit.

        Args:
            rid: identity of the call.
            named: the caller may have used it before. What was done under it then is not done again.

        Raises:
            BadRequest: no such tool, arguments that its schema does not allow, or another call under the same name.
            ToolFailed: as `call`.
        """
        tool = self._tools.get(name)
        if tool is None:
            raise BadRequest(f"no tool {name!r}; configured are {', '.join(self._tools) or 'none'}")
        self._check_works(name)
        call = ToolCall(name, values.given(tool.parameters, arguments))
        wrong = await check.problem({**values.schema(tool.parameters), "additionalProperties": False}, call.arguments)
        if wrong:
            raise BadRequest(f"arguments: {wrong}")
        try:
            call = await self._exactly(tool, call, rid if named else None)
            if named and (done := await self._done_by_hand(call, rid)) is not None:
                return done.result
            return await self.call(call, rid, 0, intent_of(call))
        except OtherCall as error:
            raise BadRequest(f"id: {error.message}; take another id for another call") from None

    async def resume(self, call: ToolCall, rid: str, step: int, intent: str | None = None) -> JSON:
        """Finish a step that may or may not have been done when the daemon died (CONTRACT section 3). `recall` knows
        nothing of it.

        Raises:
            ToolFailed: also where the call may have been made and is not made again (`on_uncertain`).
        """
        tool = self._tools.get(call.name)
        if tool is None:
            raise ToolFailed(f"the tool {call.name!r} is not configured any more")
        if not tool.is_repeatable:
            raise ToolFailed("the daemon stopped before it knew what came of this call: it may have happened")
        return await self.call(call, rid, step, intent)

    def owns(self, pid: int) -> bool:
        """Whether a process of the daemon's own user was started by a tool, or may have been."""
        return any(kind.owns(pid) for kind in self.kinds)

    async def check(self) -> list[Problem]:
        """What keeps tools from working now. Nothing is run."""
        found = [problem for kind in self.kinds for problem in await kind.check()]
        return found + await self.world.check(self.tools)

    def cautions(self) -> list[Problem]:
        """What keeps no tool from working, and whoever runs edged should know."""
        return [problem for kind in self.kinds for problem in kind.cautions()]

    async def stop(self) -> None:
        """End processes, close connections."""
        for kind in self.kinds:
            await kind.close()
        await self.world.stop()

    async def _do(self, call: ToolCall, rid: str, step: int, intent: str | None) -> JSON:
        tool = self._tools.get(call.name)
        if tool is None:  # it went since the call was decided on
            raise ToolFailed(f"the tool {call.name!r} is not there any more")
        self._check_works(call.name)
        arguments = values.complete(tool.parameters, call.arguments)
        kind = self._kind_of[call.name]
        return await kind.call(call.name, arguments, rid, step, intent or intent_of(call))

    def _check_works(self, name: str) -> None:
        """Raises ToolFailed where a tool is left out."""
        if name in self._left_out:
            raise ToolFailed(self._left_out[name])

    async def _exactly(self, tool: Tool, call: ToolCall, rid: str | None) -> ToolCall:
        """A call with its values as the rows have them. Raises as World.exactly, but not where the call was made before
        under this rid, which may be why a row is gone. rid: None where it was not."""
        try:
            return await self.world.exactly(tool, call)
        except (BadRequest, ToolFailed):
            if rid is None or await self._done_by_hand(call, rid) is None:
                raise
            return call

    async def _done_by_hand(self, call: ToolCall, rid: str) -> Done | None:
        """What was done under the name of a call; None: nothing. Raises OtherCall: it was another call."""
        for kind in self.kinds:
            try:
                known = await kind.recall(rid)
            except ToolFailed as error:  # the tool's own kind still finds its effect when it is called
                logger.warning("whether %s was called before is not known everywhere: %s", call.name, error.message)
                continue
            for done in known:
                check_same_call(done.intent, intent_of(call))
                return done
        return None

    def _changed(self) -> None:
        """A kind has other tools than before."""
        self._list()
        for listener in list(self._listeners):
            listener()

    def _list(self) -> None:
        """Gather all kinds' tools. Of two that have one name, the configuration's counts, else the first kind's."""
        every = [(name, tool, kind) for kind in self.kinds for name, tool in kind.tools.items()]
        order = {name: place for place, name in enumerate(self._configured)}
        every.sort(key=lambda each: order[each[0]] if self._configured.get(each[0]) is each[1] else len(order))
        found: dict[str, tuple[Tool, ToolKind[Any]]] = {}
        for name, tool, kind in every:
            if found.setdefault(name, (tool, kind)) != (tool, kind):
                logger.warning("another tool is called %r, too: it is left out", name)
        for name in self._tools.keys() - found:
            del self._tools[name]
        self._tools.update(  # the store's thread looks in it, too
            (name, silenced(name, tool) if name in self._left_out else tool) for name, (tool, _) in found.items()
        )
        self._kind_of = {name: kind for name, (_, kind) in found.items()}


def silenced(name: str, tool: Tool) -> Tool:
    """A tool that cannot work, as models are told of it: it takes no arguments, and is described whatever it lacks."""
    described = tool.description.strip() or name.replace("_", " ")
    return msgspec.structs.replace(tool, description=described, parameters={}, examples=(), say=None)


def _of(settings: Config, kind: type[ToolKind[Any]]) -> dict[str, Tool]:
    """The configured tools of a kind."""
    return {name: tool for name, tool in settings.tools.items() if type(tool) is kind.table}
