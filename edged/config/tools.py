"""[tools.NAME]: the table of each kind of tool, and what can be wrong in one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from edged.config.convert import convert, entries
from edged.config.values import (
    Key,
    Mistakes,
    Strict,
    Wrong,
    choice_mistakes,
    parse_bytes,
    range_mistakes,
    size_mistakes,
)
from edged.types import JSON

FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)  # a module and a function in it
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
TOOL_MEMORY = (32 * 2**20, 2**40)  # bytes a Python tool may be given; the interpreter alone takes a third of the least
RESERVED_TOOLS = {"reply", "escalate"}  # what the model may choose beside the tools; a tool of that name would hide it


class Example(Strict, frozen=True):
    """A request and the arguments it means."""

    input: str
    arguments: dict[str, JSON] = field(default_factory=dict)


# Of a tool: names of result columns and of parameters whose values no upstream ever sees; true: none of it, and an
# upstream's model is not offered the tool.
Private = tuple[str, ...] | bool


class SqlTool(Strict, frozen=True):
    """A tool that is one SQL statement with bound parameters."""

    description: str
    database: str
    sql: str
    effect: str = "read"
    say: str | None = None
    parameters: dict[str, dict[str, JSON]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    timeout_s: float = 10.0
    private: Private = ()


class Publish(Strict, frozen=True):
    """What an MQTT tool publishes; {parameter} is replaced in topic and payload."""

    topic: str
    payload: str
    qos: int = 1
    retain: bool = False


class PublishTool(Strict, frozen=True):
    """A tool that publishes to another device."""

    description: str
    publish: Publish
    say: str | None = None
    parameters: dict[str, dict[str, JSON]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    timeout_s: float = 10.0
    on_uncertain: str = "retry"
    private: Private = ()


class PythonTool(Strict, frozen=True):
    """A tool that is a function, "module:function", of a module in the folder `tools/` beside the configuration.

    Only a child process may import it. So what is not written here is filled in at the start, from the function
    (tools/signatures): an empty description by its docstring, and below `parameters` what its signature says.
    memory bounds the private memory of the tool's process, file_size each file it writes.
    """

    python: str
    description: str = ""
    effect: str = "write"
    say: str | None = None
    parameters: dict[str, dict[str, JSON]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    timeout_s: float = 10.0
    memory: str = "128MiB"
    file_size: str = "256MiB"
    on_uncertain: str = "report"
    private: Private = ()


Tool = SqlTool | PublishTool | PythonTool
KINDS: Mapping[str, type[Tool]] = {"sql": SqlTool, "publish": PublishTool, "python": PythonTool}  # by their own key


class Around(Struct, frozen=True):
    """What the other tables have that a tool may use: databases with their modes, and whether there is a broker."""

    databases: Mapping[str, str]
    has_broker: bool


def parse(tables: dict[str, Any]) -> dict[str, Tool]:
    """All of [tools].

    Raises:
        Wrong: the first thing that is wrong in a table by itself.
    """
    tools: dict[str, Tool] = {}
    for name, value in entries("tools", tables):
        kinds = [kind for key, kind in KINDS.items() if key in value]
        if len(kinds) != 1:
            raise Wrong(("tools", name), "a tool has exactly one of `sql`, `publish` and `python`")
        tools[name] = convert(value, kinds[0], ("tools", name))
        for key in ("parameters", "examples"):
            if problem := no_json(value.get(key)):
                raise Wrong(("tools", name, key), problem)
        for parameter, schema in tools[name].parameters.items():
            if not isinstance(schema.get("enum", [None]), list) or not schema.get("enum", [None]):
                raise Wrong(("tools", name, "parameters", parameter, "enum"), "is a list of at least one value")
    return tools


def mistakes(name: str, tool: Tool, around: Around) -> Mistakes:
    """What is wrong in a tool's table beside the others."""
    at = ("tools", name)
    if name in RESERVED_TOOLS:
        yield at, f"{name!r} is a choice edged itself offers the model; choose another name"
    yield from range_mistakes((*at, "timeout_s"), tool.timeout_s, 0.01, 3600)
    yield from _private(at, tool)
    if isinstance(tool, PythonTool):  # its description and parameters are known, and checked, when it was read
        yield from _python_tool(at, tool)
        return
    for key, problem in words_that_fail(tool):
        yield (*at, *key), problem
    if isinstance(tool, SqlTool):
        yield from _sql_tool(at, tool, around)
    else:
        yield from _publish_tool(at, tool, around)


def _private(at: Key, tool: Tool) -> Mistakes:
    """What can be known without a look at the database or the function."""
    if isinstance(tool.private, bool):
        return
    for name in tool.private:
        if not name.strip() or "" in name.split("."):
            yield (*at, "private"), f"{name!r} is no name; write a column's, or a parameter's"
        if isinstance(tool, PublishTool) and name not in tool.parameters:
            declared = ", ".join(tool.parameters) or "none"
            yield (*at, "private"), f"{name!r} is no parameter; declared are {declared}"


def _sql_tool(at: Key, tool: SqlTool, around: Around) -> Mistakes:
    if tool.database not in around.databases:
        known = ", ".join(around.databases) or "none: write a [databases.NAME] table"
        yield (*at, "database"), f"no database {tool.database!r}; defined are {known}"
        return
    yield from choice_mistakes((*at, "effect"), tool.effect, "read", "write")
    if tool.effect == "write" and around.databases[tool.database] == "ro":
        yield (*at, "effect"), f'database {tool.database!r} is opened read-only; set its mode to "rw"'


def _publish_tool(at: Key, tool: PublishTool, around: Around) -> Mistakes:
    for found in PLACEHOLDER.findall(tool.publish.topic):  # in a payload other braces stay as they are
        if found not in tool.parameters:
            declared = ", ".join(tool.parameters) or "none"
            yield (*at, "publish", "topic"), f"{{{found}}} is no parameter; declared are {declared}"
    if not tool.publish.topic or "+" in tool.publish.topic or "#" in tool.publish.topic:
        yield (*at, "publish", "topic"), "a topic to publish to has no wildcards and is not empty"
    if tool.publish.qos not in (0, 1, 2):
        yield (*at, "publish", "qos"), f"{tool.publish.qos}; allowed are 0, 1, 2"
    yield from choice_mistakes((*at, "on_uncertain"), tool.on_uncertain, "retry", "report")
    if not around.has_broker:
        yield (*at, "publish"), "needs a broker: write an [mqtt] table"


def _python_tool(at: Key, tool: PythonTool) -> Mistakes:
    if not FUNCTION.fullmatch(tool.python):
        yield (*at, "python"), f'{tool.python!r}; write "module:function", a module of the folder tools/'
    yield from choice_mistakes((*at, "effect"), tool.effect, "read", "write")
    yield from choice_mistakes((*at, "on_uncertain"), tool.on_uncertain, "retry", "report")
    if wrong := list(size_mistakes((*at, "memory"), tool.memory)):
        yield from wrong
        return
    least, most = TOOL_MEMORY
    if not least <= parse_bytes(tool.memory) <= most:
        yield (*at, "memory"), f"{tool.memory!r} is outside 32MiB to 1024GiB"
    yield from size_mistakes((*at, "file_size"), tool.file_size)


def words_that_fail(tool: Tool) -> Mistakes:
    """(key below the tool, what is wrong) of what a tool says about itself: description, names of its parameters, and
    what refers to them."""
    if not tool.description.strip():
        yield ("description",), "is empty; the model chooses by it"
    for parameter in tool.parameters:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", parameter):
            yield ("parameters", parameter), "a parameter's name has letters, digits and `_` only"
    declared = ", ".join(tool.parameters) or "none"
    for found in PLACEHOLDER.findall(tool.say or ""):
        if found not in tool.parameters:
            yield ("say",), f"{{{found}}} is no parameter; declared are {declared}"
    for i, example in enumerate(tool.examples):
        for argument in example.arguments:
            if argument not in tool.parameters:
                yield (f"examples[{i}]",), f"{argument!r} is no parameter of the tool"


def no_json(value: Any) -> str | None:
    """Why a value of TOML is none of JSON's, which models and tools are given; None where it is one."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict | list):
            rest += item.values() if isinstance(item, dict) else item
        elif isinstance(item, float) and not math.isfinite(item):
            return f"{item} is no number of JSON"
        elif isinstance(item, int) and not -(2**63) <= item < 2**64:
            return "a number has more than 64 bits"
        elif not isinstance(item, str | int | float | None):
            return f"{item} is no value of JSON: write dates and times as text"
    return None
