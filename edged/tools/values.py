"""Arguments into places: schemas, defaults, topics, payloads, sentences, SQL results. Pure.

A parameter that has a `default` or is `optional` may be left out of a call. A default stands in for what was left out.
Of an optional parameter nothing does: an SQL statement binds NULL, and a text is made without it.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping

from edged.config import PLACEHOLDER, value_lists
from edged.errors import ToolFailed
from edged.types import JSON

Parameters = Mapping[str, Mapping[str, JSON]]  # as a tool declares them, by name
Arguments = Mapping[str, JSON]

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def schema(parameters: Parameters) -> dict[str, JSON]:
    """The JSON Schema of a tool's arguments: a missing type follows from `enum`; what may be left out is not required.
    What is no word of JSON Schema (`optional`, `values_sql` and its `database`) is not in it."""
    left_out = optional(parameters)
    return {
        "type": "object",
        "properties": {name: _typed(dict(parameter)) for name, parameter in parameters.items()},
        "required": [n for n, parameter in parameters.items() if "default" not in parameter and n not in left_out],
    }


def optional(parameters: Parameters) -> set[str]:
    """Names of the parameters that may be left out and have no default."""
    return {name for name, parameter in parameters.items() if parameter.get("optional") is True}


def _typed(parameter: dict[str, JSON]) -> dict[str, JSON]:
    parameter.pop("optional", None)
    if parameter.pop(value_lists.SQL, None) is not None:
        del parameter[value_lists.DATABASE]
    if "type" in parameter or any(key in parameter for key in ("anyOf", "oneOf", "allOf", "$ref", "const")):
        return parameter
    kinds = {JSON_TYPES.get(type(value), "string") for value in parameter.get("enum", [])} or {"string"}
    return {"type": kinds.pop() if len(kinds) == 1 else sorted(kinds), **parameter}


ROUNDING = 1e-9  # of a number of steps: 0.3 / 0.1 is not 3
SAMPLES: dict[str, JSON] = {"boolean": True, "integer": 1, "number": 1, "string": "..."}


def sample(parameters: Parameters) -> dict[str, JSON]:
    """Arguments that the schema allows, the first that come to mind, without the optional ones; LookupError where none
    do."""
    left_out = optional(parameters)
    return {name: _sample(_typed(dict(parameter))) for name, parameter in parameters.items() if name not in left_out}


def _sample(parameter: dict[str, JSON]) -> JSON:
    for key in ("default", "const", "minimum"):
        if key in parameter:
            return parameter[key]
    if "enum" in parameter:
        return parameter["enum"][0]
    kind = parameter["type"]
    return SAMPLES[kind[0] if isinstance(kind, list) else str(kind)]


def outside(parameters: Parameters, arguments: Arguments) -> tuple[str, JSON] | None:
    """The first number that is out of its parameter's range, with the parameter's name; None: there is none."""
    for name, value in arguments.items():
        parameter = parameters.get(name, {})
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high = parameter.get("minimum", -math.inf), parameter.get("maximum", math.inf)
        above, below = parameter.get("exclusiveMinimum", -math.inf), parameter.get("exclusiveMaximum", math.inf)
        step = parameter.get("multipleOf")
        between = step is not None and abs(value / step - round(value / step)) > ROUNDING
        if not (low <= value <= high and above < value < below) or between:
            return name, value
    return None


def given(parameters: Parameters, arguments: Arguments) -> dict[str, JSON]:
    """The arguments without optional ones that are null: that is the same as leaving them out."""
    left_out = optional(parameters)
    return {name: value for name, value in arguments.items() if value is not None or name not in left_out}


def without_nulls(schema: dict[str, JSON], arguments: Arguments) -> dict[str, JSON]:
    """The arguments without those that are null where the schema says that they may be left out and are never null. So
    many models write what they leave out."""
    properties, required = schema.get("properties", {}), schema.get("required", ())
    return {
        name: value
        for name, value in arguments.items()
        if value is not None or name in required or "null" in properties.get(name, {}).get("type", "null")
    }


def complete(parameters: Parameters, arguments: Arguments) -> dict[str, JSON]:
    """The arguments with defaults filled in, in the order of the parameters; optional ones only where they were given.

    Raises:
        ToolFailed: one is missing or unknown (a grammar prevents that; a call by hand may not).
    """
    left_out = optional(parameters)
    known = given(parameters, arguments)
    unknown = [name for name in known if name not in parameters]
    missing = [n for n, p in parameters.items() if n not in known and "default" not in p and n not in left_out]
    if unknown or missing:
        raise ToolFailed(
            f"arguments: {_listed('unknown', unknown)}{_listed('missing', missing)}allowed are "
            f"{', '.join(parameters) or 'none'}"
        )
    there = {name: parameter for name, parameter in parameters.items() if name in known or name not in left_out}
    return {name: known.get(name, parameter.get("default")) for name, parameter in there.items()}


def _listed(what: str, names: list[str]) -> str:
    return f"{what} {', '.join(names)}; " if names else ""


# -- texts -------------------------------------------------------------------------------------------------------------
#
# Only declared parameters are replaced: other braces stay. One pass: a value that looks like {x} is not replaced.
# `arguments` are complete: of the parameters, those that are not among them were left out.


def topic(template: str, parameters: Parameters, arguments: Arguments) -> str:
    """An MQTT topic; ToolFailed where a value would change its levels."""

    def level(value: JSON) -> str:
        text = _plain(value)
        if not text or any(bad in text for bad in "/+#\0"):
            raise ToolFailed(f"{text!r} cannot be part of a topic: it is empty or holds one of / + #")
        return text

    return _fill(template, parameters, arguments, level)


def payload(template: str, parameters: Parameters, arguments: Arguments) -> bytes:
    """What is published. A payload that is JSON stays JSON: a value inside quotes is escaped, one outside is written as
    JSON, and a member (or an item of an array) with a parameter that was left out is left out, too."""
    if not _is_json(template):
        return _fill(template, parameters, arguments, _plain).encode()
    containers = [_Container()]  # the outermost one stands around the whole
    for piece in JSON_TOKEN.findall(template):
        here = containers[-1]
        if piece in ("{", "["):
            containers.append(_Container(piece))
        elif piece in ("}", "]"):
            containers.pop()
            containers[-1].member += here.closed(piece)
        elif piece == ",":
            here.end_member()
        else:
            here.is_missing |= any(n in parameters and n not in arguments for n in PLACEHOLDER.findall(piece))
            here.member += _fill(piece, parameters, arguments, _quoted if piece.startswith('"') else _json)
    return containers[0].member.encode()


# Of a template that is JSON once its placeholders are replaced: strings, placeholders, what makes containers, and the
# rest (numbers, words, colons, white space).
JSON_TOKEN = re.compile(rf'"(?:\\.|[^"\\])*"|{PLACEHOLDER.pattern.replace("(", "(?:")}|[{{}}\[\],]|[^"{{}}\[\],]+')


class _Container:
    """An object or an array while its text is made. member: the text of the one that is being made."""

    def __init__(self, opening: str = "") -> None:
        self.member = ""
        self.is_missing = False
        self._opening = opening
        self._members: list[str] = []

    def end_member(self) -> None:
        """The next text belongs to another member."""
        if not self.is_missing:
            self._members.append(self.member)
        self.member, self.is_missing = "", False

    def closed(self, closing: str) -> str:
        """The text of the whole."""
        self.end_member()
        return self._opening + ",".join(self._members) + closing


def _is_json(template: str) -> bool:
    """JSON as it stands ("{x}" inside a string), or with a number in the placeholder's place."""
    return any(_parses(PLACEHOLDER.sub(stand_in, template)) for stand_in in ("0", "x"))


def _parses(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def sentence(template: str, parameters: Parameters, arguments: Arguments) -> str:
    """`say` with its {parameters} replaced.

    "Open[ for {minutes} minutes]." has a part that is said only where the optional parameter in it was given; its
    brackets are never said. Brackets without an optional parameter stay as they are. Where brackets stand in brackets,
    a parameter belongs to the innermost ones around it.
    """
    left_out = optional(parameters)
    parts = [_SentencePart()]
    for piece in SENTENCE_TOKEN.findall(template):
        if piece == "[":
            parts.append(_SentencePart())
        elif piece == "]" and len(parts) > 1:
            part = parts.pop()
            parts[-1].text += part.closed()
        else:
            names = PLACEHOLDER.findall(piece)
            parts[-1].is_optional |= any(name in left_out for name in names)
            parts[-1].is_missing |= any(name in left_out and name not in arguments for name in names)
            parts[-1].text += _fill(piece, parameters, arguments, _plain)
    return "[".join(part.text for part in parts)  # brackets that nothing closes stay, too


SENTENCE_TOKEN = re.compile(rf"[\[\]]|{PLACEHOLDER.pattern.replace('(', '(?:')}|[^\[\]{{]+|{{")


class _SentencePart:
    """A part of a sentence between brackets, while its text is made."""

    def __init__(self) -> None:
        self.text = ""
        self.is_optional = False
        self.is_missing = False

    def closed(self) -> str:
        """What is said of it."""
        if self.is_missing:
            return ""
        return self.text if self.is_optional else f"[{self.text}]"


def _fill(template: str, parameters: Parameters, arguments: Arguments, render: Callable[[JSON], str]) -> str:
    def placed(match: re.Match[str]) -> str:
        if match[1] not in parameters:
            return match[0]
        return render(arguments[match[1]]) if match[1] in arguments else ""

    return PLACEHOLDER.sub(placed, template)


def _plain(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(value: JSON) -> str:
    return json.dumps(value, ensure_ascii=False)


def _quoted(value: JSON) -> str:
    return json.dumps(_plain(value), ensure_ascii=False)[1:-1]


# -- SQL ---------------------------------------------------------------------------------------------------------------


def sql_value(value: JSON) -> JSON:
    """An argument as SQLite takes it: lists and maps as JSON text, booleans as 0 and 1."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return int(value) if isinstance(value, bool) else value


def sql_values(arguments: Arguments) -> dict[str, JSON]:
    """Arguments as SQLite takes them.

    Raises:
        ToolFailed: names the one that it cannot hold.
    """
    made = {name: sql_value(value) for name, value in arguments.items()}
    for name, value in made.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            shown = f"{value:e}" if abs(value) < 10**300 else "a number of more than 300 digits"
            raise ToolFailed(f"argument {name!r}: {shown} is outside SQLite's integers, -2^63 to 2^63-1")
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ToolFailed(f"argument {name!r}: the text holds half a surrogate pair, which is no character")
    return made


def json_value(value: object) -> JSON:
    """A column as JSON takes it (CONTRACT section 3): BLOBs are base64, and infinite numbers, for which JSON has no
    word, are the texts "Infinity" and "-Infinity", as PostgreSQL and Protocol Buffers write them."""
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
