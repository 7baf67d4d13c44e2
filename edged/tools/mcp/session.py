"""What is said with one MCP server once there is a channel: which era it is of, its tools, calls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from edged import __version__
from edged.tools.mcp.channel import Channel, Gone, printable
from edged.tools.mcp.schemas import RemoteTool, headers_of, remote
from edged.types import JSON
from edged.wire import mcp
from edged.wire.mcp import RpcError

# For each of the two ways to begin. npx and uvx look a package up first; the probe of a server that does not answer
# what it does not know costs the shorter time once.
PROBE_S, BEGIN_S = 5.0, 30.0
LIST_S = 15.0  # for one page of tools
PAGES, MAX_TOOLS = 50, 512  # a small model chooses among a dozen
PING_S = 5.0
ABOUT = {"name": "edged", "title": "edged", "version": __version__}


class Session:
    """One. Made by `begin`.

    version: of the protocol. name: what the server calls itself, with its version.
    """

    def __init__(self, channel: Channel, version: str, name: str) -> None:
        self.channel, self.version, self.name = channel, version, name

    @property
    def is_modern(self) -> bool:
        """Whether it is of the modern era."""
        return self.version == mcp.MODERN

    @classmethod
    async def begin(cls, channel: Channel, *, legacy: bool = False) -> Session:
        """Find out how the server speaks, and introduce edged.

        Args:
            legacy: it is known to be of that era.

        Raises:
            Gone, TimeoutError: it does not answer.
            RpcError: it speaks no version that edged does.
        """
        if not legacy:
            try:
                async with asyncio.timeout(PROBE_S):
                    found = await cls._discover(channel)
                if found is not None:
                    return found
            except TimeoutError:  # so do legacy servers that wait for `initialize`
                pass
        async with asyncio.timeout(BEGIN_S):
            try:
                return await cls._initialize(channel)
            except RpcError:  # a modern one that was slow to start has taken the first question for its beginning
                if legacy or (late := await cls._discover(channel)) is None:
                    raise
                return late

    @classmethod
    async def _discover(cls, channel: Channel) -> Session | None:
        made = cls(channel, mcp.MODERN, "")
        try:
            about = await made._ask(mcp.DISCOVER, {})
        except RpcError as error:
            supported = (error.data or {}).get("supported") if isinstance(error.data, dict) else None
            if error.code == mcp.UNSUPPORTED_VERSION and not {*mcp.LEGACY} & {*(supported or ())}:
                raise RpcError(error.code, f"it speaks only {supported}, and edged {mcp.MODERN}") from None
            return None
        if mcp.MODERN not in (about.get("supportedVersions") or ()):
            return None
        told = about.get(mcp.META)
        made.name = _named((told or {}).get(mcp.SERVER_OF) if isinstance(told, dict) else None)
        return made

    @classmethod
    async def _initialize(cls, channel: Channel) -> Session:
        asked = {"protocolVersion": mcp.LEGACY[0], "capabilities": {}, "clientInfo": ABOUT}
        about = await channel.request(mcp.INITIALIZE, asked, {})
        version = about.get("protocolVersion")
        if version not in mcp.LEGACY:
            raise RpcError(
                mcp.UNSUPPORTED_VERSION, f"it speaks version {version!r} of the protocol, which edged does not"
            )
        made = cls(channel, version, _named(about.get("serverInfo")))
        await channel.notify(mcp.INITIALIZED, None, made._headers(mcp.INITIALIZED, {}))
        return made

    async def tools(self) -> list[RemoteTool]:
        """All of the server's tools, also those that cannot be used.

        Raises:
            Gone, RpcError, TimeoutError, Unasked: it does not tell.
        """
        found: dict[str, RemoteTool] = {}
        cursor: JSON = None
        for _ in range(PAGES):
            async with asyncio.timeout(LIST_S):
                page = await self._ask(mcp.LIST, {} if cursor is None else {"cursor": cursor})
            tools = page.get("tools")
            for each in tools if isinstance(tools, list) else ():
                if (tool := remote(each)) is not None:
                    found.setdefault(tool.name, tool)
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str) or len(found) >= MAX_TOOLS:
                break
        return list(found.values())[:MAX_TOOLS]

    async def call(self, tool: RemoteTool, arguments: dict[str, JSON]) -> dict[str, JSON]:
        """The result of a call, as the server gives it. Cancelled, the server is told so.

        Raises:
            Gone, RpcError, Unasked: there is none.
        """
        mirrored = headers_of(tool.schema, arguments) if self.is_modern else {}
        return await self._ask(mcp.CALL, {"name": tool.name, "arguments": arguments}, mirrored)

    async def is_alive(self) -> bool:
        """Whether the server answers at all."""
        try:
            async with asyncio.timeout(PING_S):
                await self._ask(mcp.DISCOVER if self.is_modern else mcp.PING, {})
        except RpcError:
            return True
        except (Gone, TimeoutError):
            return False
        return True

    async def _ask(
        self, method: str, params: dict[str, JSON], headers: Mapping[str, str] | None = None
    ) -> dict[str, JSON]:
        if self.is_modern:
            about = {mcp.VERSION_OF: self.version, mcp.CAPABILITIES_OF: {}, mcp.CLIENT_OF: ABOUT}
            params = {**params, mcp.META: about}
        found: dict[str, JSON] = await self.channel.request(
            method, params, {**self._headers(method, params), **(headers or {})}
        )
        if self.is_modern and found.get("resultType", "complete") != "complete":
            raise RpcError(mcp.MISSING_CAPABILITY, "it wants something of its client that edged does not offer")
        return found

    def _headers(self, method: str, params: Mapping[str, JSON]) -> dict[str, str]:
        told = {mcp.VERSION: self.version}
        if self.is_modern:
            told[mcp.METHOD] = method
            if method in mcp.NAMED_BY:
                told[mcp.NAME] = mcp.in_header(params[mcp.NAMED_BY[method]])
        return told


def _named(about: JSON) -> str:
    """What a server calls itself."""
    if not isinstance(about, dict):
        return ""
    return printable(" ".join(str(about[key]) for key in ("name", "version") if isinstance(about.get(key), str)))
