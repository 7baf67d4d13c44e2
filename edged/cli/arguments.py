"""`key=value` on a command line into a tool's arguments, by the types of its schema. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edged.cli.outcome import Stop
from edged.wire import MAX_DEPTH, depth

INTEGER = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")  # not nan and inf, which JSON does not have


def parse(pairs: Sequence[str], base: str | None, tool: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call.

    Args:
        pairs: "name=value", each parsed by the type of its parameter.
        base: a JSON object with further arguments, or None.
        tool: as `tools.list` shows it: name, and parameters as a JSON Schema.

    Raises:
        Stop: says which argument is wrong and what is allowed.
    """
    arguments = {} if base is None else _object(base)
    properties: Mapping[str, Any] = tool["parameters"].get("properties", {})
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise Stop("usage", f"{pair!r}: arguments are written name=value, for example {_example(properties)}")
        if name in arguments:
            raise Stop("bad_request", f"{name}: is given twice")
        if name not in properties:
            known = ", ".join(properties) or "none"
            raise Stop("bad_request", f"{name}: tool {tool['name']!r} has no such parameter; it has {known}")
        arguments[name] = _value(name, text, properties[name])
    return arguments


def _object(text: str) -> dict[str, Any]:
    try:
        value = _json(text)
    except ValueError as error:
        raise Stop("bad_request", f"--arguments: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Stop("bad_request", '--arguments: is a JSON object, for example \'{"valve": "north"}\'')
    return value


def _value(name: str, text: str, schema: Mapping[str, Any]) -> Any:
    """A text as the first of the parameter's types that it can be; text last, since it can always be that."""
    types = _types(schema)
    if not types:  # a schema that only the daemon understands
        return _any(text)
    for kind in sorted(types, key=lambda kind: kind == "string"):
        try:
            return PARSERS[kind](text)
        except ValueError:
            continue
    wanted = " or ".join(WORDS[kind] for kind in types)
    raise Stop("bad_request", f"{name}: {text!r} is not {wanted}")


def _types(schema: Mapping[str, Any]) -> list[str]:
    """The JSON types a schema names; none where it says it in another way."""
    if "type" in schema:
        kinds = schema["type"]
        return [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind in PARSERS]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            found = [_types(choice) for choice in schema[key]]
            return list(dict.fromkeys(kind for kinds in found for kind in kinds)) if all(found) else []
    return []


def _integer(text: str) -> int:
    if not INTEGER.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float | int:
    if INTEGER.fullmatch(text):
        return int(text)
    if not NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text)


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text] if text in ("true", "false") else _no(text)


def _null(text: str) -> None:
    if text != "null":
        raise ValueError(text)


def _array(text: str) -> list[Any]:
    value = _json(text)
    return value if isinstance(value, list) else _no(text)


def _map(text: str) -> dict[str, Any]:
    value = _json(text)
    return value if isinstance(value, dict) else _no(text)


def _any(text: str) -> Any:
    try:
        return _json(text)
    except ValueError:
        return text


def _json(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_no)  # Python would take NaN and Infinity
    except RecursionError:
        raise ValueError("nested too deep") from None
    if depth(value) > MAX_DEPTH:
        raise ValueError("nested too deep")
    return value


def _no(text: str) -> Any:
    raise ValueError(text)


def _example(properties: Mapping[str, Any]) -> str:
    for name, schema in properties.items():
        return f"{name}={schema['enum'][0] if schema.get('enum') else '...'}"
    return "valve=north"


PARSERS: Mapping[str, Callable[[str], Any]] = {
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "null": _null,
    "array": _array,
    "object": _map,
    "string": str,
}
WORDS = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "a JSON array",
    "object": "a JSON object",
    "string": "a text",
}
