"""Tools that a client brings along, whatever API it speaks. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from edged.types import JSON, ToolSpec
from edged.wire.dialogue import BadParameter

MAX_TOOLS = 128  # as OpenAI bounds them; the grammar's size bounds what they may hold
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # OpenAI's, and the dot that edged's own tools may have


class Function(Struct, forbid_unknown_fields=True):
    """A function as OpenAI describes one, and everybody after it."""

    name: str
    description: str | None = None
    parameters: dict[str, JSON] | None = None
    strict: bool | None = None


def check_count(tools: Sequence[JSON]) -> None:
    """Raises BadParameter for too many."""
    if len(tools) > MAX_TOOLS:
        raise BadParameter("tools", f"{len(tools)} of them; at most {MAX_TOOLS} are taken")


def specs(functions: Sequence[tuple[str, Function]]) -> tuple[ToolSpec, ...]:
    """The tools that functions are, each with where in the request it stands. Raises BadParameter."""
    found: dict[str, ToolSpec] = {}
    for where, function in functions:
        name = function.name
        if not TOOL_NAME.fullmatch(name) or name in found:
            raise BadParameter(f"{where}.name", f"{name!r}; 1 to 64 letters, digits, _, - or ., each name once")
        parameters = _parameters(f"{where}.parameters", function.parameters)
        found[name] = ToolSpec(name, function.description or "", parameters)
    return tuple(found.values())


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
