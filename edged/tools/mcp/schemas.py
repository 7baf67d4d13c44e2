"""Tools as an MCP server describes them, as tools of edged: name, description, parameters, what it says of their
effect. Pure. What cannot be used has a reason; it is one tool that is left out, not the server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from edged.types import JSON
from edged.wire import MAX_DEPTH, depth, mcp

TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MAX_SCHEMA_BYTES = 32 * 1024  # of one tool: ten times the largest that a small model can follow
MAX_NODES = 2000  # of a schema with its references followed: two of them side by side double the work with every level
MAX_DESCRIPTION = 1000  # characters: what is longer costs a small model more than it tells
HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
HEADER_TYPES = ("string", "integer", "boolean")


class Unusable(Exception):
    """A tool that no model could be told of; the message says why."""


class RemoteTool(Struct, frozen=True, omit_defaults=True):
    """A tool as the server describes it, as it is kept and compared.

    hints: readOnlyHint and so on, as far as they are true or false.
    """

    name: str
    description: str = ""
    schema: dict[str, Any] = {}
    output: dict[str, Any] | None = None
    hints: dict[str, bool] = {}


def remote(told: JSON) -> RemoteTool | None:
    """A tool of a server's list; None for what is none."""
    if not isinstance(told, dict) or not isinstance(name := told.get("name"), str) or not TOOL_NAME.fullmatch(name):
        return None
    schema, output, hints = (told.get(key) for key in ("inputSchema", "outputSchema", "annotations"))
    said = told.get("description")
    return RemoteTool(
        name=name,
        description=" ".join(said.split())[:MAX_DESCRIPTION] if isinstance(said, str) else "",
        schema=schema if isinstance(schema, dict) else {"type": "no object"},
        output=output if isinstance(output, dict) else None,
        hints={k: v for k, v in hints.items() if isinstance(v, bool)} if isinstance(hints, dict) else {},
    )


def parameters(tool: RemoteTool) -> dict[str, dict[str, JSON]]:
    """Its parameters as edged has them: without references, with `optional` for those that are not required.

    Raises:
        Unusable: there is no such thing.
    """
    schema = tool.schema
    if schema.get("type", "object") != "object":
        raise Unusable('its inputSchema is not of type "object"')
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES or depth(schema) > MAX_DEPTH:
        raise Unusable(f"its inputSchema has more than {MAX_SCHEMA_BYTES} bytes, or {MAX_DEPTH} levels")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise Unusable("its inputSchema is none")
    if problem := next(_wrong_headers(schema), None):
        raise Unusable(problem)
    names = own_names(tool)
    if missing := [name for name in required if name not in names]:
        raise Unusable(f"its inputSchema requires {missing[0]!r:.80} and does not describe it")
    left = [MAX_NODES]
    found: dict[str, dict[str, JSON]] = {}
    for theirs, own in names.items():
        one = _inlined(properties[theirs], schema, (), left)
        if not isinstance(one, dict):
            raise Unusable(f"parameter {theirs!r:.80} may be any value")
        one.pop("optional", None)
        if theirs not in required and "default" not in one:
            one["optional"] = True
        found[own] = one
    return found


def own_names(tool: RemoteTool) -> dict[str, str]:
    """What edged calls the parameters, by the server's names: letters, digits and `_`."""
    properties = tool.schema.get("properties", {})
    names: dict[str, str] = {}
    for theirs in properties if isinstance(properties, dict) else ():
        own = re.sub(r"\W", "_", theirs, flags=re.ASCII)[:60] or "_"
        own = own if PARAMETER.fullmatch(own) else f"_{own}"
        while own in names.values():
            own += "_"
        names[theirs] = own
    return names


def given(tool: RemoteTool, arguments: Mapping[str, JSON]) -> dict[str, JSON]:
    """Arguments by the server's names."""
    theirs = {own: name for name, own in own_names(tool).items()}
    return {theirs[own]: value for own, value in arguments.items()}


def headers_of(schema: Mapping[str, Any], arguments: Mapping[str, JSON]) -> dict[str, str]:
    """The headers that repeat arguments, as `x-mcp-header` of their schemas says."""
    found: dict[str, str] = {}
    properties = schema.get("properties")
    for name, one in properties.items() if isinstance(properties, dict) else ():
        value = arguments.get(name)
        if not isinstance(one, dict) or value is None:
            continue
        if isinstance(value, dict):
            found |= headers_of(one, value)
        elif mcp.PARAMETER_OF in one and isinstance(value, str | int):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            found[mcp.PARAMETER + one[mcp.PARAMETER_OF]] = mcp.in_header(text)
    return found


def _wrong_headers(schema: Mapping[str, Any]) -> Iterator[str]:
    """Why a client has to leave a tool out that says `x-mcp-header` where, or of what, it may not."""
    seen: set[str] = set()
    rest: list[tuple[Any, bool, bool]] = [(schema, True, True)]  # a schema, whether it is reached by `properties` alone
    while rest:
        node, reached, is_root = rest.pop()
        if not isinstance(node, dict):
            continue
        if mcp.PARAMETER_OF in node:
            name = node[mcp.PARAMETER_OF]
            fits = isinstance(name, str) and HEADER_NAME.fullmatch(name) and name.lower() not in seen
            if not fits or not reached or is_root or node.get("type") not in HEADER_TYPES:
                yield f"its inputSchema has an {mcp.PARAMETER_OF} that clients must not follow"
                return
            seen.add(name.lower())
        for key, value in node.items():
            if key == "properties" and isinstance(value, dict):
                rest += [(one, reached, False) for one in value.values()]
            elif key in ("default", "examples", "const", "enum"):
                continue
            elif isinstance(value, dict):
                # `$defs` and the like are maps of schemas, the others are schemas: a key of a map does no harm here
                rest += [(value, False, False), *((one, False, False) for one in value.values())]
            elif isinstance(value, list):
                rest += [(one, False, False) for one in value]


def _inlined(node: Any, root: Mapping[str, Any], within: tuple[str, ...], left: list[int]) -> Any:
    """A schema with its references followed, and without what a model need not read. Nothing is fetched."""
    left[0] -= 1
    if left[0] < 0:
        raise Unusable(f"its inputSchema has more than {MAX_NODES} parts, with its references followed")
    if isinstance(node, list):
        return [_inlined(item, root, within, left) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = node["$ref"]
        beside = {key: item for key, item in node.items() if key != "$ref"}
        if name in within:
            raise Unusable("its inputSchema refers to itself; a model needs an end")
        target = _found(name, root)
        joined = {**target, **beside} if isinstance(target, dict) else target
        return _inlined(joined, root, (*within, name), left)
    made: dict[str, Any] = {}
    for key, item in node.items():
        if key in ("title", "$schema", "$comment", "$defs", "definitions", mcp.PARAMETER_OF):
            continue
        if key in ("enum", "default", "const", "examples"):
            made[key] = item
        elif key == "properties" and isinstance(item, dict):
            made[key] = {name: _inlined(one, root, within, left) for name, one in item.items()}
        else:
            made[key] = _inlined(item, root, within, left)
    return made


def _found(name: Any, root: Mapping[str, Any]) -> Any:
    """What a reference names. Raises Unusable: it leads out of the schema, or nowhere."""
    if not isinstance(name, str) or not name.startswith("#/"):
        raise Unusable(f"its inputSchema refers to {str(name)[:80]!r}, which is not in it: nothing is fetched")
    at: Any = root
    for part in name[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(at, dict) or key not in at:
            raise Unusable(f"its inputSchema refers to {name[:80]!r}, which is not there")
        at = at[key]
    return at
