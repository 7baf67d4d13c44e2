"""The tools of all MCP servers as tools of the configuration: as they were accepted, else as the server lists them now.
What cannot be used is left out with a reason; a server that does not answer leaves out its own tools and no others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping

import msgspec

from edged.config import NAME, Config, McpServer, McpTool, words_that_fail
from edged.errors import ConfigError, ToolFailed
from edged.tools.mcp import book, schemas
from edged.tools.mcp.book import Book
from edged.tools.mcp.schemas import RemoteTool, Unusable
from edged.tools.mcp.server import Server
from edged.tools.python.landlock import own_files
from edged.types import JSON

logger = logging.getLogger("edged.tools")

# Servers that were listed in this process because nothing was known of them, until a daemon keeps it: the checks of a
# reload and the start after it ask once. What did not answer is asked again sooner, after somebody has put it right.
FRESH_S = 600.0
_listed: dict[tuple[str, str, str], tuple[float, Book]] = {}


class Found(msgspec.Struct, frozen=True):
    """What is known of all servers. books: by the server's name; failures: why nothing is known of one."""

    books: dict[str, Book]
    failures: dict[str, str]


async def find(settings: Config) -> Found:
    """Look at what was accepted, and ask the servers of which nothing is known."""
    names = list(settings.mcp)
    found = await asyncio.gather(*(_book(settings, name) for name in names))
    books = {name: each for name, each in zip(names, found, strict=True) if isinstance(each, Book)}
    failures = {name: each for name, each in zip(names, found, strict=True) if isinstance(each, str)}
    return Found(books, failures)


def known(settings: Config) -> dict[str, Book]:
    """What is known without asking, by the server's name."""
    found = {}
    for name, server in settings.mcp.items():
        if (each := book.load(settings.state_dir, name, server) or _fresh(settings, name)) is not None:
            found[name] = each
    return found


def fresh(settings: Config) -> dict[str, Book]:
    """What was asked here and is not kept yet."""
    unkept = [name for name, one in settings.mcp.items() if book.load(settings.state_dir, name, one) is None]
    return {name: each for name in unkept if (each := _fresh(settings, name)) is not None}


def tools(
    settings: Config, configured: Mapping[str, McpTool], books: Mapping[str, Book]
) -> tuple[dict[str, McpTool], dict[str, str]]:
    """(tools by name, why others cannot be used by name): those that the configuration picks, then all that the servers
    have."""
    found: dict[str, McpTool] = {}
    problems: dict[str, str] = {}
    for name, tool in configured.items():
        found[name] = tool
        server, _, remote = tool.mcp.partition(".")
        if server in books:
            one = _remote(books[server], remote)
            made = f"the server has no tool {remote!r}" if one is None else _filled(settings, name, tool, one)
            if isinstance(made, str):
                problems[name] = made
            else:
                found[name] = made
    for server, each in books.items():
        for one in each.accepted:
            name = f"{server}.{one.name}"
            if not settings.mcp[server].has(one.name) or name in found:
                continue
            made = _filled(settings, name, McpTool(mcp=name), one) if NAME.fullmatch(name) else _too_long(name)
            if isinstance(made, str):
                problems[name] = made
            else:
                found[name] = made
    return found, problems


async def resolve(settings: Config, configured: Mapping[str, McpTool]) -> tuple[dict[str, McpTool], list[ConfigError]]:
    """See ToolKind.resolve. A tool that somebody names and that is not there is a tool that cannot work."""
    everything = await find(settings)
    made, problems = tools(settings, configured, everything.books)
    for name in _named(settings):
        server, _, remote = name.partition(".")
        if name not in made and server in settings.mcp and name not in settings.tools:
            made[name] = McpTool(mcp=name)
            allowed = settings.mcp[server].has(remote)
            absent = f"the server has no tool {remote!r}" if allowed else f"mcp.{server}.tools does not name it"
            problems.setdefault(name, absent)
    for name in made:
        if (why := everything.failures.get(made[name].mcp.partition(".")[0])) is not None:
            problems[name] = why
    for name in problems.keys() - made.keys():  # nobody uses it
        logger.info("%s is left out: %s", name, problems[name])
    return made, [settings.error(("tools", name), why) for name, why in problems.items() if name in made]


def _named(settings: Config) -> Collection[str]:
    lists = [*(agent.tools for agent in settings.agents.values()), *(role.tools for role in settings.roles.values())]
    return dict.fromkeys(name for names in lists for name in names if not name.endswith("*"))


async def _book(settings: Config, name: str) -> Book | str:
    """What is known of a server, or why nothing is."""
    server = settings.mcp[name]
    if (here := book.load(settings.state_dir, name, server) or _fresh(settings, name)) is not None:
        return here
    asked = Server(name, server, settings, await asyncio.to_thread(own_files, settings))
    try:
        found = await asked.tools()
        session = asked.session
        made = Book(book.source(server), session.name if session else "", tuple(found))
    except ToolFailed as error:
        return error.message
    finally:
        await asked.close()
    _listed[_key(settings, name)] = time.monotonic(), made
    return made


def _fresh(settings: Config, name: str) -> Book | None:
    at, made = _listed.get(_key(settings, name), (-FRESH_S, None))
    return made if time.monotonic() - at < FRESH_S else None


def _key(settings: Config, name: str) -> tuple[str, str, str]:
    return str(settings.state_dir), name, book.source(settings.mcp[name])


def _remote(known: Book, name: str) -> RemoteTool | None:
    return next((tool for tool in known.accepted if tool.name == name), None)


def _filled(settings: Config, name: str, tool: McpTool, remote: RemoteTool) -> McpTool | str:
    """A tool with what its server says of it, or why it cannot be used. What the configuration says goes before, but
    for this: where one of both says that it writes, it does."""
    server = settings.mcp[tool.mcp.partition(".")[0]]
    try:
        theirs = schemas.parameters(remote)
    except Unusable as error:
        return str(error)
    for parameter in tool.parameters:
        if parameter not in theirs:
            known = ", ".join(theirs) or "none"
            return f"parameters.{parameter}: the server's tool has no such parameter; it has {known}"
    parameters: dict[str, dict[str, JSON]] = {
        parameter: {**schema, **tool.parameters.get(parameter, {})} for parameter, schema in theirs.items()
    }
    filled = msgspec.structs.replace(
        tool,
        description=tool.description.strip() or remote.description or remote.name.replace("_", " "),
        parameters=parameters,
        effect="write" if _writes(server, tool, remote) else "read",
        on_uncertain=_on_uncertain(server, tool, remote),
        timeout_s=tool.timeout_s if settings.is_given("tools", name, "timeout_s") else server.timeout_s,
        private=True if server.private else tool.private,
    )
    if (wrong := next(words_that_fail(filled), None)) is not None:
        return f"{'.'.join(wrong[0])}: {wrong[1]}"
    return filled


def _writes(server: McpServer, tool: McpTool, remote: RemoteTool) -> bool:
    if remote.hints.get("readOnlyHint") is False or remote.hints.get("destructiveHint") is True:
        return True
    return tool.effect != "read" if tool.effect else not server.only_reads(remote.name)


def _on_uncertain(server: McpServer, tool: McpTool, remote: RemoteTool) -> str:
    if remote.hints.get("idempotentHint") is False:
        return "report"
    return tool.on_uncertain or server.on_uncertain


def _too_long(name: str) -> str:
    return f"a tool's name has at most 64 characters: pick it under another one with [tools.NAME] mcp = {name!r}"
