"""The MCP servers of the configuration, for those who look after the daemon."""

from __future__ import annotations

from edged.access.gate import Gate
from edged.tools.mcp.kind import McpKind
from edged.types import JSON, Caller


class McpServers:
    """What servers offer, and what was accepted of it. Shapes are those of `McpKind`."""

    def __init__(self, kind: McpKind, gate: Gate) -> None:
        self._kind = kind
        self._gate = gate

    def servers(self, caller: Caller) -> list[JSON]:
        """All of them. Raises Forbidden."""
        self._gate.manage(caller, "see MCP servers")
        return self._kind.servers()

    async def look(self, caller: Caller, name: str) -> JSON:
        """Ask a server for its tools now.

        Raises:
            Forbidden: the caller may not.
            BadRequest: there is no such server.
            ToolFailed: it does not answer.
        """
        self._gate.manage(caller, "ask MCP servers", server=name)
        return await self._kind.look(name)

    async def accept(self, caller: Caller, name: str) -> JSON:
        """Use a server's tools as it offers them now. Raises as `look`."""
        with self._gate.managing(caller, "accept what an MCP server offers", server=name):
            return await self._kind.accept(name)
