"""The tools of an OpenAI request, and which of them are to be called. Pure."""

from __future__ import annotations

import re
from typing import Any

from msgspec import Struct

from edged.completions.request import ToolChoice
from edged.types import JSON, ToolSpec
from edged.wire.dialogue import BadParameter, convert

MAX_TOOLS = 128  # as OpenAI bounds them; the grammar's size bounds what they may hold
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # OpenAI's, and the dot that edged's own tools may have


class Function(Struct, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: dict[str, JSON] | None = None
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True):
    type: str
    function: Function | None = None
    custom: Any = None


class AllowedTools(Struct, forbid_unknown_fields=True):
    mode: str
    tools: list[JSON]


def tools(raw: list[Any]) -> tuple[ToolSpec, ...]:
    if len(raw) > MAX_TOOLS:
        raise BadParameter("tools", f"{len(raw)} of them; at most {MAX_TOOLS} are taken")
    specs: dict[str, ToolSpec] = {}
    for i, item in enumerate(raw):
        tool = convert(item, Tool, f"tools[{i}]")
        if tool.type != "function":
            raise BadParameter(f"tools[{i}].type", f"{tool.type!r}; allowed is function")
        if tool.function is None:
            raise BadParameter(f"tools[{i}].function", "is required")
        name = tool.function.name
        if not TOOL_NAME.fullmatch(name) or name in specs:
            raise BadParameter(
                f"tools[{i}].function.name", f"{name!r}; 1 to 64 letters, digits, _, - or ., each name once"
            )
        parameters = _parameters(f"tools[{i}].function.parameters", tool.function.parameters)
        specs[name] = ToolSpec(name, tool.function.description or "", parameters)
    return tuple(specs.values())


def _parameters(where: str, given: dict[str, JSON] | None) -> dict[str, JSON]:
    """The schema of the arguments. Without properties of its own it is one for an object of any shape, as JSON Schema
    has it; no schema at all is no arguments, as OpenAI has it."""
    if given is None:
        return {"type": "object", "properties": {}}
    if given.get("type", "object") != "object" or not isinstance(given.get("properties", {}), dict):
        raise BadParameter(where, "is a JSON Schema of type object, with a map of properties")
    if "properties" not in given:
        return {"type": "object", "properties": {}, "additionalProperties": True, **given}
    return {"type": "object", **given}


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
