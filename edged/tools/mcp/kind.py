"""Tools of MCP servers as a kind: the servers, what was accepted of them, and what they offer otherwise since."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from edged.config import Config, McpTool, Tool
from edged.errors import BadRequest, ConfigError, ToolFailed
from edged.tools.kind import KindContext, Problem, ToolKind
from edged.types import JSON

if TYPE_CHECKING:
    from edged.tools.mcp.book import Book, Difference
    from edged.tools.mcp.schemas import RemoteTool
    from edged.tools.mcp.server import Server

logger = logging.getLogger("edged.tools")


class McpKind(ToolKind[McpTool]):
    """Nothing of what speaks with servers is imported before there is one: a daemon without them does not carry it."""

    table: ClassVar[type[Tool]] = McpTool

    def __init__(self, tools: Mapping[str, McpTool], context: KindContext) -> None:
        super().__init__(tools, context)
        settings = context.settings
        self._configured = {name: tool for name, tool in tools.items() if settings.is_given("tools", name)}
        self._servers: dict[str, Server] = {}
        self._books: dict[str, Book] = {}
        self._told: dict[str, Difference] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        if settings.mcp:
            from edged.tools.mcp import resolve
            from edged.tools.mcp.server import Server
            from edged.tools.python import landlock

            own = landlock.own_files(settings)
            self._books = resolve.known(settings)
            self._servers = {name: Server(name, one, settings, own, self._looked) for name, one in settings.mcp.items()}

    @classmethod
    async def resolve(
        cls, settings: Config, tools: Mapping[str, McpTool]
    ) -> tuple[Mapping[str, McpTool], list[ConfigError]]:
        """See ToolKind. Servers of which nothing is known are asked for their tools."""
        if not settings.mcp:
            return tools, []
        from edged.tools.mcp import resolve

        return await resolve.resolve(settings, tools)

    async def start(self) -> None:
        """See ToolKind. What was asked for the first time is accepted: from now on it is used as it was then."""
        if not self._servers:
            return
        from edged.tools.mcp import resolve

        for name, book in resolve.fresh(self._context.settings).items():
            try:
                await self._keep(name, book)
            except OSError as error:  # it is asked again at the next start
                about = {"event": "mcp_not_kept"}
                logger.warning("tools of MCP server %s cannot be kept: %s", name, error.strerror, extra=about)

    async def call(self, name: str, arguments: dict[str, JSON], rid: str, step: int, intent: str) -> JSON:
        """See ToolKind. Returns the structured content of the result, else its text, else {isError, text}."""
        from edged.tools.mcp import results, schemas

        tool = self.tools[name]
        server, _, remote = tool.mcp.partition(".")
        described = self._accepted(server, remote)
        if described is None:
            raise ToolFailed(f"MCP server {server!r} has no tool {remote!r} that was accepted")
        result = await self._servers[server].call(
            described, schemas.given(described, arguments), timeout_s=tool.timeout_s, is_write=tool.is_write
        )
        return await results.value(described, result, is_write=tool.is_write)

    async def check(self) -> list[Problem]:
        """See ToolKind."""
        found = []
        if self._servers:
            from edged.tools.mcp import starting

            settings = self._context.settings
            whys = {name: starting.problem(name, one, settings) for name, one in settings.mcp.items()}
            for name, tool in self.tools.items():
                server = tool.mcp.partition(".")[0]
                if (why := whys.get(server)) is not None:
                    found.append(Problem(name, f"MCP server {server!r}: {why}", f"correct [mcp.{server}]"))
        return found

    def cautions(self) -> list[Problem]:
        """See ToolKind. What servers offer otherwise than it was accepted, and what nothing keeps them from."""
        found = []
        for name in self._servers:
            if change := self._difference(name):
                hint = f"see `edged mcp check {name}`; to use it so: edged mcp accept {name}"
                found.append(Problem("", f"MCP server {name!r} offers other tools than were accepted: {change}", hint))
        programs = [name for name, one in self._context.settings.mcp.items() if not one.url]
        if programs:
            from edged.tools.python import landlock

            if (why := landlock.missing()) is not None:
                hint = "use a kernel with Landlock, or only servers you trust with everything"
                found.append(Problem("", f"nothing keeps MCP servers from edged's own files: {why}", hint))
            inside = [name for name in programs if not self._context.settings.mcp[name].network]
            if inside and (why := landlock.missing_network()) is not None:
                message = f"nothing keeps MCP servers ({', '.join(inside)}) from the network: {why}"
                found.append(Problem("", message, "use a newer kernel, or IPAddressDeny= of the service"))
        return found

    def owns(self, pid: int) -> bool:
        """See ToolKind."""
        if not self._servers:
            return False
        import os

        from edged.tools.python import orphans

        return orphans.comes_of(pid, os.getpid())

    async def close(self) -> None:
        """See ToolKind."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))
        if self._keeping:
            await asyncio.wait(self._keeping)

    # -- for those who look after the daemon -----------------------------------------------------------------------

    def servers(self) -> list[JSON]:
        """[{name, state, server, version, tools, difference: {new, changed, gone}}] of all. state: running, idle, or
        what it failed of."""
        return [self._document(name) for name in self._servers]

    async def look(self, name: str) -> JSON:
        """Ask a server for its tools now. As `servers` says of one, with `unusable`: {tool: why}.

        Raises:
            BadRequest: there is no such server.
            ToolFailed: it does not answer.
        """
        from edged.tools.mcp import schemas

        unusable = {}
        for tool in await self._server(name).tools():
            try:
                schemas.parameters(tool)
            except schemas.Unusable as error:
                unusable[tool.name] = str(error)
        return {**self._document(name), "unusable": unusable}

    async def accept(self, name: str) -> JSON:
        """Use a server's tools as it offers them now. As `servers` says of one, with what was accepted as difference.

        Raises:
            BadRequest: there is no such server.
            ToolFailed: it does not answer, or that cannot be kept.
        """
        from edged.tools.mcp import book, resolve

        server = self._server(name)
        offered = tuple(await server.tools())
        before, settings = self._books.get(name), self._context.settings
        difference = book.difference(before.accepted if before else (), offered, self._uses(name))
        made = book.Book(book.source(settings.mcp[name]), server.session.name if server.session else "", offered)
        try:
            await self._keep(name, made)
        except OSError as error:
            raise ToolFailed(f"it cannot be kept: {error.strerror}") from None
        self._told.pop(name, None)
        found, _ = resolve.tools(settings, self._configured, self._books)
        named = {each for agent in settings.agents.values() for each in agent.tools}  # their calls say what is wrong
        others = {
            each: tool for each, tool in self.tools.items() if each in named or tool.mcp.partition(".")[0] != name
        }
        self.tools = {**others, **found}
        self._context.changed()
        return {**self._document(name), "difference": _told(difference)}

    def _document(self, name: str) -> dict[str, JSON]:
        book, server = self._books.get(name), self._servers[name]
        return {
            "name": name,
            "state": server.state,
            "server": book.server if book else "",
            "version": server.session.version if server.session else None,
            "tools": [each for each, tool in self.tools.items() if tool.mcp.partition(".")[0] == name],
            "difference": _told(self._difference(name)),
        }

    def _server(self, name: str) -> Server:
        if name not in self._servers:
            raise BadRequest(f"no MCP server {name!r}; configured are {', '.join(self._servers) or 'none'}")
        return self._servers[name]

    def _accepted(self, server: str, remote: str) -> RemoteTool | None:
        book = self._books.get(server)
        return next((tool for tool in book.accepted if tool.name == remote), None) if book else None

    def _uses(self, server: str) -> _Uses:
        picked = {tool.mcp for tool in self._configured.values()}
        return _Uses(server, self._context.settings, frozenset(picked))

    def _difference(self, name: str) -> Difference | None:
        from edged.tools.mcp.book import difference

        book = self._books.get(name)
        if book is None or book.offered is None:
            return None
        return difference(book.accepted, book.offered, self._uses(name))

    def _looked(self, name: str, tools: list[RemoteTool]) -> None:
        """A server was asked for its tools."""
        import msgspec

        from edged.tools.mcp.book import difference

        book = self._books.get(name)
        if book is None:
            return
        change = difference(book.accepted, tools, self._uses(name))
        offered = tuple(tools) if change else None
        if offered != book.offered:
            self._books[name] = msgspec.structs.replace(book, offered=offered)
            task = asyncio.create_task(self._keep(name, self._books[name]), name=f"edged.mcp.{name}.keep")
            self._keeping.add(task)
            task.add_done_callback(self._kept)
        if change and self._told.get(name) != change:
            self._told[name] = change
            self._context.tell("mcp_changed", {"server": name, **_told(change)})

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._keeping.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("what an MCP server offers cannot be kept: %s", error, extra={"event": "mcp_not_kept"})

    async def _keep(self, name: str, book: Book) -> None:
        from edged.tools.mcp import book as books

        self._books[name] = book
        await asyncio.to_thread(books.save, self._context.settings.state_dir, name, book)


class _Uses:
    """Whether a tool of one server is used: as one of its own, or picked."""

    def __init__(self, server: str, settings: Config, picked: frozenset[str]) -> None:
        self._server, self._settings, self._picked = server, settings.mcp[server], picked

    def __call__(self, tool: str) -> bool:
        return self._settings.has(tool) or f"{self._server}.{tool}" in self._picked


def _told(difference: Difference | None) -> dict[str, JSON]:
    """{new, changed, gone}: names of tools."""
    if difference is None:
        return {"new": [], "changed": [], "gone": []}
    return {"new": list(difference.new), "changed": list(difference.changed), "gone": list(difference.gone)}
