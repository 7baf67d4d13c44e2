"""The tools of an OpenAI request, and which of them are to be called. Pure."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from edged.completions.request import ToolChoice
from edged.types import JSON, ToolSpec
from edged.wire.dialogue import BadParameter, convert
from edged.wire.tools import Function, check_count, specs


class Tool(Struct, forbid_unknown_fields=True):
    type: str
    function: Function | None = None
    custom: Any = None


class AllowedTools(Struct, forbid_unknown_fields=True):
    mode: str
    tools: list[JSON]


def tools(raw: list[Any]) -> tuple[ToolSpec, ...]:
    """Those that a request brings along. Raises BadParameter."""
    check_count(raw)
    functions = []
    for i, item in enumerate(raw):
        tool = convert(item, Tool, f"tools[{i}]")
        if tool.type != "function":
            raise BadParameter(f"tools[{i}].type", f"{tool.type!r}; allowed is function")
        if tool.function is None:
            raise BadParameter(f"tools[{i}].function", "is required")
        functions.append((f"tools[{i}].function", tool.function))
    return specs(functions)


def choice(
    tools: tuple[ToolSpec, ...], given: str | dict[str, JSON] | None
) -> tuple[tuple[ToolSpec, ...], ToolChoice, bool]:
    """(the tools to show, whether to call, whether several calls are possible)."""
    if given is None or given in ("none", "auto"):
        return tools, ToolChoice(given or "auto"), True
    if not tools:
        raise BadParameter("tool_choice", "needs tools to choose from")
    if given == "required":
        return tools, ToolChoice.REQUIRED, True
    if isinstance(given, dict) and given.get("type") == "function":
        return (_named("tool_choice", given, tools),), ToolChoice.REQUIRED, False
    if isinstance(given, dict) and given.get("type") == "allowed_tools":
        allowed = convert(given.get("allowed_tools"), AllowedTools, "tool_choice.allowed_tools")
        if not allowed.tools or allowed.mode not in ("auto", "required"):
            raise BadParameter("tool_choice.allowed_tools", "has a mode (auto or required) and a list of tools")
        named = [_named("tool_choice.allowed_tools.tools", item, tools) for item in allowed.tools]
        return tuple(tool for tool in tools if tool in named), ToolChoice(allowed.mode), True
    raise BadParameter("tool_choice", "allowed are none, auto, required, and objects of type function or allowed_tools")


def _named(where: str, item: JSON, tools: tuple[ToolSpec, ...]) -> ToolSpec:
    function = item.get("function") if isinstance(item, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    for tool in tools:
        if tool.name == name:
            return tool
    raise BadParameter(where, f"names {name!r}, which is none of the tools: {', '.join(tool.name for tool in tools)}")
