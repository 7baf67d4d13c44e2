"""The compact dialect: tools as signatures, calls as Python writes them, several a turn. Pure.

    set_valve(valve: north|south, position: open|closed): Open or close a valve.
    level(tank: text, unit?: litres|percent): How full a tank is.
    reply(): Talk: greetings, thanks, general knowledge.

A signature takes about 35 tokens where a model's own template takes 150 to 250 for the JSON Schema of the same tool.
No model was born with this dialect: an adapter teaches it (`scripts/adapter`), and the texts here are what it was
taught, to the byte. Who changes one trains again.

The grammar leaves a number's range open: a grammar that keeps it bends what was asked ("up to three hundred fifty"
becomes 300). Ranges are checked afterwards, where what was meant is still to be seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edged.agent import times
from edged.agent.grammars import kept
from edged.types import JSON, Message, ToolCall, ToolSpec

NAME = "compact"
REPLY, UNABLE, ESCALATE = "reply", "unable", "escalate"
# What the model chooses where none of the tools is right, and how it was taught when.
PSEUDO = {
    REPLY: "Talk: greetings, thanks, general knowledge.",
    UNABLE: "About this place, but no tool above can do or tell it.",
    ESCALATE: "Long texts, plans, analyses: for a larger model.",
}
INTRODUCTION = "Answer with calls, one a line:"
RESULT = "Result: "

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # a name that can stand in front of "=" or "("
PLAIN = re.compile(r"[^|\"(){}\[\],?\n]+")  # a choice that needs no quotes beside the others
CLOCK, DATE = "HH:MM", "YYYY-MM-DD"
NUMBERS = {"integer": "int", "number": "number"}
BOUNDS_BELOW, BOUNDS_ABOVE = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
# As they are where values are absolute; else as `times.signed` has them.
SAID_FORMATS = {*times.FORMS, *(form.signature for form in times.FORMS.values())}
LEVELS = 4  # that a signature shows of nested values; what lies deeper is an `object`
# Schemas looked at for one signature: references side by side multiply with each level, and clients send any schema.
MOST_LOOKED = 300
MOST_COPIED = 50  # definitions, copied into the grammars of a tool's arguments; with more these are one object
# as json.dumps writes it; the same spaces that all other grammars of calls have
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
DEFINITIONS = ("$defs", "definitions")  # words that schemas stand under, to be referred to
DEFINED = tuple(f"#/{word}/" for word in DEFINITIONS)
HIDDEN = ("default", "description", "title", "examples")  # of a parameter, where its grammar is made


def system(text: str, tools: Sequence[ToolSpec], *, escalates: bool) -> str:
    """The system text with the tools' signatures and the pseudo-calls.

    Args:
        escalates: whether `escalate` is among them.
    """
    lines = [signature(tool) for tool in tools]
    lines += [f"{name}(): {said}" for name, said in PSEUDO.items() if escalates or name != ESCALATE]
    return f"{text}\n\n{INTRODUCTION}\n".lstrip() + "\n".join(lines)


def signature(tool: ToolSpec) -> str:
    """One line: name, parameters (required ones first, "?" behind the others) and what the tool does."""
    described = " ".join(tool.description.split()).rstrip(".")
    return f"{tool.name}({_parameters(tool)}): {described}."


def write(call: ToolCall, tool: ToolSpec | None) -> str:
    """A call as the model writes it. Optional arguments that equal their default are left out.

    Args:
        tool: its declaration; None: nothing is known of it any more.
    """
    properties, required = _declared(tool) if tool and _is_flat(tool) else ({}, [])
    if tool is not None and not _is_flat(tool):
        return f"{call.name}({_json(call.arguments)})"
    names = [name for name in _order(properties, required) if name in call.arguments]
    names += [name for name in call.arguments if name not in properties]
    said = [
        f"{name}={_json(call.arguments[name])}"
        for name in names
        if name in required or not _is_default(properties.get(name), call.arguments[name])
    ]
    return f"{call.name}({', '.join(said)})"


def grammar(
    tools: Sequence[ToolSpec], *, most: int, escalates: bool, must_call: bool = False, in_range: bool = False
) -> str:
    """Up to `most` calls, each on a line, or one pseudo-call; as llguidance takes it.

    Args:
        tools: with their parameters as grammars take them (`grammars.kept`).
        escalates: whether `escalate` may be chosen.
        must_call: a call is made in any case: there is no pseudo-call.
        in_range: numbers keep to their ranges: for who cannot say afterwards that one is not allowed.
    """
    pseudo = [_text(f"{name}()") for name in PSEUDO if not must_call and (escalates or name != ESCALATE)]
    bodies = [_body(tool, in_range=in_range) for tool in tools]
    heads = [
        f"call_{i}: {_text(tool.name + '(')} {body} {_text(')')}"
        for i, (tool, body) in enumerate(zip(tools, bodies, strict=True))
    ]
    if not tools:
        return f"start: {' | '.join(pseudo)}"
    more = f' ("\\n" call){{0,{most - 1}}}' if most > 1 else ""
    choice = f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"
    return "\n".join([f"start: {' | '.join([f'call{more}', *pseudo])}", choice, *heads])


def parse(text: str) -> tuple[ToolCall, ...]:
    """The calls in a text that followed the grammar, pseudo-calls among them. ValueError: it was cut off."""
    calls = []
    rest = text.strip("\n")
    while True:
        call, rest = _first_call(rest)
        calls.append(call)
        if not rest:
            return tuple(calls)
        rest = _after(rest, "\n")


def as_talk(messages: Sequence[Message], tools: Mapping[str, ToolSpec]) -> list[Message]:
    """Calls and results as the plain text that this dialect writes; other messages as they are."""
    return [_talk(message, tools) for message in messages]


# -- signatures --------------------------------------------------------------------------------------------------------


class _Looking:
    """One schema being shown. Where more was looked at than a signature may cost, the rest is "any"."""

    def __init__(self, root: dict[str, JSON]) -> None:
        self.root = root
        self.left = MOST_LOOKED

    def members(self, schema: dict[str, JSON], levels: int) -> str:
        """Parameters, or an object's properties."""
        properties = schema.get("properties", {})
        required = [name for name in schema.get("required", []) if name in properties]
        return ", ".join(
            f"{name}{'' if name in required else '?'}: {self._member(properties[name], levels)}"
            for name in _order(properties, required)
        )

    def kind(self, schema: JSON, levels: int) -> str:
        """What a value may be, in a few letters."""
        self.left -= 1
        if not isinstance(schema, dict) or self.left < 0:
            return "any"
        schema = _resolved(schema, self.root)
        if "enum" in schema:
            return "|".join(choice(value) for value in schema["enum"])
        if "const" in schema:
            return choice(schema["const"])
        for joined in ("anyOf", "oneOf"):
            if joined in schema and "properties" not in schema:
                return " or ".join(dict.fromkeys(self.kind(way, levels) for way in schema[joined]))
        if len(schema.get("allOf", ())) == 1 and isinstance(schema["allOf"][0], dict):
            return self.kind({**schema["allOf"][0], **{k: v for k, v in schema.items() if k != "allOf"}}, levels)
        kind = schema.get("type", "object" if "properties" in schema else "any")
        if isinstance(kind, list):
            return " or ".join(self.kind({**schema, "type": each}, levels) for each in kind)
        if kind in NUMBERS:
            low, high = (_bound(schema, inner, outer) for inner, outer in (BOUNDS_BELOW, BOUNDS_ABOVE))
            return f"{NUMBERS[kind]} {low}..{high}" if low or high else NUMBERS[kind]
        if kind == "boolean":
            return "true|false"
        if kind == "string":
            return _string(schema)
        if kind == "array":
            return f"[{self.kind(schema.get('items', {}), levels - 1) if levels else 'any'}]"
        if kind == "object":
            return f"{{{self.members(schema, levels - 1)}}}" if levels and schema.get("properties") else "object"
        return str(kind)

    def _member(self, schema: JSON, levels: int) -> str:
        described = schema.get("description") if isinstance(schema, dict) else None
        kind = self.kind(schema, levels)
        return f"{kind} ({' '.join(str(described).split()).rstrip('.')})" if described else kind


def _parameters(tool: ToolSpec) -> str:
    shown = _Looking(tool.parameters)
    return shown.members(tool.parameters, LEVELS) if _is_flat(tool) else shown.kind(tool.parameters, LEVELS)


def _bound(schema: dict[str, JSON], inner: str, outer: str) -> str:
    value = schema.get(inner, schema.get(outer))
    return "" if value is None or isinstance(value, bool) else _json(value)


def _string(schema: dict[str, JSON]) -> str:
    pattern, form = schema.get("pattern", ""), schema.get("format", "")
    if "[0-5]" in pattern and ":" in pattern:
        return CLOCK
    if "{4}-" in pattern:
        return DATE
    return form if form in SAID_FORMATS else "text"


def choice(value: JSON) -> str:
    """One of several values, as a signature has it."""
    return value if isinstance(value, str) and PLAIN.fullmatch(value) else _json(value)


def _resolved(schema: dict[str, JSON], root: dict[str, JSON]) -> dict[str, JSON]:
    """Follows references within the schema; one that leads nowhere, or in a circle, is anything."""
    for _ in range(LEVELS):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        found: Any = root
        for part in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, dict) else None
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**found, **rest} if isinstance(found, dict) else {"type": "any", **rest}
    return {"type": "any"}


# -- what calls are made of --------------------------------------------------------------------------------------------


def _declared(tool: ToolSpec) -> tuple[dict[str, JSON], list[str]]:
    properties = tool.parameters.get("properties", {})
    return properties, [name for name in tool.parameters.get("required", []) if name in properties]


def _is_flat(tool: ToolSpec) -> bool:
    """Whether the arguments can be written one by one: all are declared, each under a plain name."""
    schema = tool.parameters
    other = set(schema) & {"anyOf", "oneOf", "allOf", "$ref", "patternProperties", "if", "not", "minProperties"}
    if other or schema.get("additionalProperties") not in (None, False):
        return False
    properties = schema.get("properties", {})
    if not all(WORD.fullmatch(name) for name in properties):
        return False
    named = [_references(parameter) for parameter in properties.values()]
    if not all(reference.startswith(DEFINED) for references in named for reference in references):
        return False  # to another part of the whole
    return sum(len(_definitions(parameter, schema)) for parameter in properties.values()) <= MOST_COPIED


def _order(properties: Mapping[str, JSON], required: Sequence[str]) -> list[str]:
    """Required ones first, else as they are declared."""
    return [name for name in properties if name in required] + [name for name in properties if name not in required]


def _is_default(parameter: JSON, value: JSON) -> bool:
    return isinstance(parameter, dict) and "default" in parameter and parameter["default"] == value


def _body(tool: ToolSpec, *, in_range: bool) -> str:
    """What stands between the parentheses, as a rule."""
    if not _is_flat(tool):
        return f"%json {json.dumps({'type': 'object', **tool.parameters, 'x-guidance': SPACES})}"
    properties, required = _declared(tool)
    names = _order(properties, required)
    schemas = {name: _value(properties[name], tool, in_range=in_range) for name in names}
    values = {name: f"{_text(name + '=')} %json {json.dumps(schemas[name])}" for name in names}
    fixed = [values[name] for name in names if name in required]
    free = [values[name] for name in names if name not in required]
    if fixed:
        return ' ", " '.join(fixed) + "".join(f' (", " {value})?' for value in free)
    ways = [" ".join([value, *(f'(", " {later})?' for later in free[i + 1 :])]) for i, value in enumerate(free)]
    return f"({' | '.join(ways)})?" if ways else ""


def _value(parameter: JSON, tool: ToolSpec, *, in_range: bool) -> dict[str, JSON]:
    schema = {k: v for k, v in parameter.items() if k not in HIDDEN} if isinstance(parameter, dict) else {}
    named = _definitions(parameter, tool.parameters)
    definitions = {
        key: {name: value for name, value in tool.parameters[key].items() if (key, name) in named}
        for key in DEFINITIONS
        if any(key == where for where, _ in named)
    }
    return {**definitions, **(schema if in_range else kept.wide(schema)), "x-guidance": SPACES}


def _definitions(parameter: JSON, root: dict[str, JSON]) -> set[tuple[str, str]]:
    """The definitions that a parameter's schema leads to, as (the word they stand under, name)."""
    found: set[tuple[str, str]] = set()
    rest = [parameter]
    while rest:
        for reference in _references(rest.pop()):
            where, _, path = reference.removeprefix("#/").partition("/")
            name = path.split("/")[0].replace("~1", "/").replace("~0", "~")
            defined = root.get(where)
            if isinstance(defined, dict) and name in defined and (where, name) not in found:
                found.add((where, name))
                rest.append(defined[name])
    return found


def _references(schema: JSON) -> list[str]:
    """All that a schema refers to."""
    found: list[str] = []
    rest = [schema]
    while rest:
        match rest.pop():
            case dict() as part:
                if isinstance(reference := part.get("$ref"), str):
                    found.append(reference)
                rest += part.values()
            case list() as items:
                rest += items
    return found


def _first_call(text: str) -> tuple[ToolCall, str]:
    """(the call that the text begins with, what follows it)."""
    head = WORD.match(text)
    if head is None:
        raise ValueError("it is no call")
    rest = _after(text[head.end() :], "(")
    arguments: dict[str, JSON] = {}
    if rest.startswith("{"):
        arguments, rest = _first_json(rest)
        return ToolCall(head[0], arguments), _after(rest, ")")
    for name, value, left in _assignments(rest):
        arguments[name], rest = value, left
    return ToolCall(head[0], arguments), _after(rest, ")")


def _assignments(text: str) -> Iterator[tuple[str, JSON, str]]:
    while (name := WORD.match(text)) is not None:
        value, text = _first_json(_after(text[name.end() :], "="))
        yield name[0], value, text
        if not text.startswith(", "):
            return
        text = text[2:]


def _first_json(text: str) -> tuple[Any, str]:
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except RecursionError:
        raise ValueError("its arguments are nested without end") from None
    return value, text[end:]


def _after(text: str, what: str) -> str:
    if not text.startswith(what):
        raise ValueError(f"it breaks off before {what!r}")
    return text[len(what) :]


def _talk(message: Message, tools: Mapping[str, ToolSpec]) -> Message:
    if message.tool_calls:
        calls = "\n".join(write(call, tools.get(call.name)) for call in message.tool_calls)
        return Message("assistant", f"{message.content}\n{calls}".strip())
    if message.role == "tool":
        return Message("user", f"{RESULT}{message.content}")
    return message


def _json(value: JSON) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(text: str) -> str:
    return json.dumps(text)
