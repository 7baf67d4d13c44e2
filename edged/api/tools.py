"""Tools by hand: which of them a caller may call, and a call."""

from __future__ import annotations

from edged import wire
from edged.access import policy
from edged.access.gate import Gate
from edged.requests.journals import audited_call
from edged.tools.toolbox import Toolbox
from edged.tools.values import schema
from edged.types import JSON, Caller, ToolCall


class Tools:
    """The tools, for callers that call them without an agent."""

    def __init__(self, toolbox: Toolbox, gate: Gate) -> None:
        self._toolbox = toolbox
        self._gate = gate

    def usable(self, caller: Caller) -> list[JSON]:
        """The tools that the caller may call, as the models see them: [{name, description, parameters, effect}]."""
        return [
            {
                "name": name,
                "description": tool.description,
                "parameters": schema(tool.parameters),
                "effect": "write" if tool.is_write else "read",
            }
            for name, tool in self._toolbox.tools.items()
            if policy.may_tool(caller, name)
        ]

    async def call(self, caller: Caller, name: str, arguments: dict[str, JSON], id: str | None = None) -> JSON:
        """Call a tool by hand. With an id an SQL write of the same caller happens once, however often it is called.

        Raises:
            BadRequest: no such tool, arguments that do not fit its schema, or an id under which another call was made.
            Forbidden, Busy: the caller may not call it, or asks too often.
            ToolFailed: the tool's own reason.
        """
        self._gate.tool(caller, name)
        self._gate.spend(caller, "tool.refused")
        rid = wire.new_rid() if id is None else wire.named_rid(caller.client, id)
        about = audited_call(self._toolbox.tools, ToolCall(name, arguments))
        with self._gate.acting(caller, "tool.called", rid=rid, about=about):
            return await self._toolbox.call_by_hand(name, arguments, rid, named=id is not None)
