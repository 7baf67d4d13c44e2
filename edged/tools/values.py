"""Arguments into places: schemas, defaults, topics, payloads, sentences, SQL results. Pure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from edged.config import PLACEHOLDER
from edged.errors import ToolFailed
from edged.types import JSON

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def schema(parameters: Mapping[str, Mapping[str, JSON]]) -> dict[str, JSON]:
    """The JSON Schema of a tool's arguments: what has no default is required, a missing type follows from `enum`."""
    return {
        "type": "object",
        "properties": {name: _typed(dict(parameter)) for name, parameter in parameters.items()},
        "required": [name for name, parameter in parameters.items() if "default" not in parameter],
    }


def _typed(parameter: dict[str, JSON]) -> dict[str, JSON]:
    if "type" in parameter or any(key in parameter for key in ("anyOf", "oneOf", "allOf", "$ref", "const")):
        return parameter
    kinds = {JSON_TYPES.get(type(value), "string") for value in parameter.get("enum", [])} or {"string"}
    return {"type": kinds.pop() if len(kinds) == 1 else sorted(kinds), **parameter}


SAMPLES: dict[str, JSON] = {"boolean": True, "integer": 1, "number": 1, "string": "..."}


def sample(parameters: Mapping[str, Mapping[str, JSON]]) -> dict[str, JSON]:
    """Arguments the schema allows, the first that come to mind; LookupError where none does."""
    return {name: _sample(_typed(dict(parameter))) for name, parameter in parameters.items()}


def _sample(parameter: dict[str, JSON]) -> JSON:
    for key in ("default", "const", "minimum"):
        if key in parameter:
            return parameter[key]
    if "enum" in parameter:
        return parameter["enum"][0]
    kind = parameter["type"]
    return SAMPLES[kind[0] if isinstance(kind, list) else str(kind)]


def complete(parameters: Mapping[str, Mapping[str, JSON]], arguments: Mapping[str, JSON]) -> dict[str, JSON]:
    """The arguments with defaults filled in.

    Raises:
        ToolFailed: one is missing or unknown (a grammar prevents that; a call by hand may not).
    """
    unknown = [name for name in arguments if name not in parameters]
    missing = [name for name, p in parameters.items() if name not in arguments and "default" not in p]
    if unknown or missing:
        raise ToolFailed(
            f"arguments: {_listed('unknown', unknown)}{_listed('missing', missing)}allowed are "
            f"{', '.join(parameters) or 'none'}"
        )
    return {name: arguments.get(name, parameter.get("default")) for name, parameter in parameters.items()}


def _listed(what: str, names: list[str]) -> str:
    return f"{what} {', '.join(names)}; " if names else ""


def sentence(template: str, arguments: Mapping[str, JSON]) -> str:
    """`say` with its {parameters} replaced."""
    return _fill(template, arguments, _plain)


def topic(template: str, arguments: Mapping[str, JSON]) -> str:
    """An MQTT topic; ToolFailed where a value would change its levels."""

    def level(value: JSON) -> str:
        text = _plain(value)
        if not text or any(bad in text for bad in "/+#\0"):
            raise ToolFailed(f"{text!r} cannot be part of a topic: it is empty or holds one of / + #")
        return text

    return _fill(template, arguments, level)


def payload(template: str, arguments: Mapping[str, JSON]) -> bytes:
    """What is published. A payload that is JSON stays JSON: a value inside quotes is escaped, one outside is written
    as JSON."""
    if not _is_json(template):
        return _fill(template, arguments, _plain).encode()

    def placed(match: re.Match[str]) -> str:
        if match[1] not in arguments:
            return match[0]
        value = arguments[match[1]]
        if _in_quotes(template[: match.start()]):
            return json.dumps(_plain(value), ensure_ascii=False)[1:-1]
        return json.dumps(value, ensure_ascii=False)

    return PLACEHOLDER.sub(placed, template).encode()


def _in_quotes(before: str) -> bool:
    """Whether JSON that begins so is inside a string."""
    return re.sub(r"\\.", "", before).count('"') % 2 == 1


def _is_json(template: str) -> bool:
    """JSON as it stands ("{x}" inside a string), or with a number in the placeholder's place."""
    return any(_parses(PLACEHOLDER.sub(stand_in, template)) for stand_in in ("0", "x"))


def _parses(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _plain(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _fill(template: str, arguments: Mapping[str, JSON], render: Any) -> str:
    """Replaces only declared parameters: other braces stay. One pass: a value that looks like {x} is not replaced."""
    return PLACEHOLDER.sub(lambda m: render(arguments[m[1]]) if m[1] in arguments else m[0], template)


def sql_value(value: JSON) -> JSON:
    """An argument as SQLite takes it: lists and maps as JSON text, booleans as 0 and 1."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return int(value) if isinstance(value, bool) else value


def json_value(value: object) -> JSON:
    """A column as JSON takes it: BLOBs are base64 (CONTRACT section 3)."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
