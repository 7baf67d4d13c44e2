"""[tools.NAME]: the table of each kind of tool, and what can be wrong in one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct, field

from edged.config import placeholders, value_lists
from edged.config.convert import convert, entries, no_json
from edged.config.placeholders import PLACEHOLDER, WORD
from edged.config.values import (
    Key,
    Mistakes,
    Size,
    Strict,
    Wrong,
    size_mistakes,
    whole,
)
from edged.types import JSON

FUNCTION = rf"{WORD}(?:\.{WORD})*:{WORD}"  # a module and a function in it
TOOL_MEMORY = ("32MiB", "1024GiB")  # that a Python tool may be given; the interpreter alone takes a third of the least
# What the model may choose beside the tools; a tool of that name would hide it.
RESERVED_TOOLS = {"reply", "escalate", "unable"}


class Example(Strict, frozen=True):
    """A request, and the arguments of the tool that it means.

    input: what somebody asks.
    arguments: values of the parameters.
    """

    input: str
    arguments: dict[str, JSON] = field(default_factory=dict)


# Of a tool: names of result columns and of parameters whose values no upstream ever sees; true: none of it, and an
# upstream's model is not offered the tool.
Private = tuple[str, ...] | bool
Effect = Literal["read", "write"]
# What is done with a call of which a crash leaves unknown whether it was made.
OnUncertain = Annotated[Literal["retry", "report"], Meta(extra={"problem": "{}; allowed are retry, report"})]


class Around(Struct, frozen=True):
    """What the other tables have that a tool may use: databases with their modes, whether there is a broker, and names
    of MCP servers."""

    databases: Mapping[str, str]
    has_broker: bool
    servers: Collection[str] = ()


class Tool(Strict, frozen=True, kw_only=True):
    """What the tables of all tools have. Each kind of tool derives its own table from it (`TABLES`).

    A class says of its kind: `key`, the key that a table of this kind has and no other, by which kinds are told apart;
    and with `is_described_later` that description and parameters may be missing here, because the kind fills them in at
    the start. They are checked then (`tools.toolbox.resolve`).

    description: what the tool does, in a sentence; the model chooses by it.
    say: the answer after a call, without another generation. `{parameter}` is replaced; a part in `[brackets]` is left
        out if an optional parameter in it is.
    say_none: the answer where a call that reads found nothing (no rows, columns that are all NULL, an empty result),
        without another generation. `{parameter}` is replaced as in `say`. Default: a sentence in the language of the
        agent.
    parameters: each a property of JSON Schema. It is required unless it has a `default` or `optional = true`; its
        `type` follows from `enum`, or else is string. Of an optional one that is left out SQL binds NULL. With
        `values_sql` and `database` it is one of the values that a statement reads: the first column of its rows, up to
        5,000 texts or numbers, as they are at each request.
    examples: requests and what they mean; they help small models to choose.
    timeout_s: seconds a call may take.
    private: names of result columns and of parameters whose values no upstream ever sees. With `true` upstreams see
        nothing of the tool and are not offered it.
    """

    key: ClassVar[str]
    is_described_later: ClassVar[bool] = False

    description: str
    say: str | None = None
    say_none: str | None = None
    parameters: dict[str, dict[str, JSON]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    timeout_s: Annotated[float, Meta(ge=0.01, le=3600)] = 10.0
    private: Private = ()

    @property
    def is_write(self) -> bool:
        """Whether a call changes something. The intent of a write is on the medium before it runs."""
        return True

    @property
    def is_repeatable(self) -> bool:
        """Whether a call is made again after a crash, where nobody knows whether it was made (`on_uncertain`)."""
        return not self.is_write

    def mistakes(self, around: Around) -> Mistakes:
        """(key below the tool, what is wrong and what is allowed) of what only this kind has."""
        yield from ()

    def defects(self) -> Mistakes:
        """(key below the tool, problem) of what keeps every call from doing what it says. The tool is left out."""
        yield from ()

    def doubts(self) -> Mistakes:
        """(key below the tool, problem) of what lets a call be made and its outcome be wrong."""
        for key, text in (("say", self.say), ("say_none", self.say_none)):
            for problem in placeholders.in_jinja(text or "", self.parameters):
                yield (key,), problem

    def shown(self, result: JSON, write: Callable[[JSON], str]) -> str:
        """A result as a model reads it that words the answer. write: makes text of JSON."""
        if self.is_nothing(result):
            return "nothing found"
        return "done" if result is None else write(result)

    def is_nothing(self, result: JSON) -> bool:
        """Whether a result of a call that reads holds nothing: there is nothing that a model could word."""
        return False


class SqlTool(Tool, frozen=True, kw_only=True):
    """A tool that is one SQL statement.

    database: name of a [databases.NAME] table.
    sql: the statement; `:name` stands for the parameter of that name.
    effect: "write" if it changes the database, which then has to be opened with mode "rw".
    """

    key = "sql"

    database: str
    sql: str
    effect: Effect = "read"

    @property
    def is_write(self) -> bool:
        """See Tool."""
        return self.effect == "write"

    @property
    def is_repeatable(self) -> bool:
        """See Tool. A write made again finds the row of the first time beside its effect, and changes nothing."""
        return True

    def mistakes(self, around: Around) -> Mistakes:
        """See Tool."""
        if self.database not in around.databases:
            known = ", ".join(around.databases) or "none: write a [databases.NAME] table"
            yield ("database",), f"no database {self.database!r}; defined are {known}"
        elif self.is_write and around.databases[self.database] == "ro":
            yield ("effect",), f'database {self.database!r} is opened read-only; set its mode to "rw"'

    def defects(self) -> Mistakes:
        """See Tool."""
        for problem in placeholders.unbound(self.sql, self.parameters):
            yield ("sql",), problem

    def doubts(self) -> Mistakes:
        """See Tool."""
        yield from super().doubts()
        yield from _unused(self.parameters, placeholders.bound(self.sql), "the statement", "use it there as :{}")

    def shown(self, result: JSON, write: Callable[[JSON], str]) -> str:
        """See Tool. Rows alone, without what stands around them."""
        if not isinstance(result, dict) or "rows" not in result:  # stored when the tool was of another kind
            return super().shown(result, write)
        if self.is_nothing(result):
            return "nothing found"
        return write(result["rows"]) if result["rows"] else "done"

    def is_nothing(self, result: JSON) -> bool:
        """See Tool. No rows, or none with a value."""
        if not isinstance(result, dict) or "rows" not in result or "changes" in result:
            return False
        return all(value is None for row in result["rows"] for value in row.values())


class Publish(Strict, frozen=True):
    """What the tool publishes.

    topic: topic without wildcards; `{parameter}` is replaced by a value without `/`, `+` and `#`.
    payload: text of the message; `{parameter}` is replaced, and escaped if the payload is JSON. Other braces stay.
    qos: quality of service: 0 at most once, 1 at least once, 2 exactly once.
    retain: whether the broker keeps the message for later subscribers.
    """

    topic: str
    payload: str
    qos: Literal[0, 1, 2] = 1
    retain: bool = False


class PublishTool(Tool, frozen=True, kw_only=True):
    """A tool that publishes an MQTT message to another device. It needs an [mqtt] table.

    publish: the message.
    on_uncertain: what follows if the daemon died while it published: "retry" publishes again, "report" says so.
    """

    key = "publish"

    publish: Publish
    on_uncertain: OnUncertain = "retry"

    @property
    def is_repeatable(self) -> bool:
        """See Tool."""
        return self.on_uncertain == "retry"

    def mistakes(self, around: Around) -> Mistakes:
        """See Tool."""
        declared = ", ".join(self.parameters) or "none"
        for name in () if isinstance(self.private, bool) else self.private:
            if name not in self.parameters:  # the result holds nothing else that could be named
                yield ("private",), f"{name!r} is no parameter; declared are {declared}"
        for name in PLACEHOLDER.findall(self.publish.topic):  # in a payload other braces stay as they are
            if name not in self.parameters:
                yield ("publish", "topic"), f"{{{name}}} is no parameter; declared are {declared}"
            elif self.parameters[name].get("optional"):
                problem = f"{{{name}}} may be left out (`optional`), and a topic has a text on every level"
                yield ("publish", "topic"), f"{problem}: give the parameter a default, or keep it out of the topic"
        if not self.publish.topic or "+" in self.publish.topic or "#" in self.publish.topic:
            yield ("publish", "topic"), "a topic to publish to has no wildcards and is not empty"
        if not around.has_broker:
            yield ("publish",), "needs a broker: write an [mqtt] table"

    def defects(self) -> Mistakes:
        """See Tool."""
        for key, text in (("topic", self.publish.topic), ("payload", self.publish.payload)):
            for problem in placeholders.in_jinja(text, self.parameters):
                yield ("publish", key), problem

    def doubts(self) -> Mistakes:
        """See Tool."""
        yield from super().doubts()
        declared = ", ".join(self.parameters) or "none"
        for name in placeholders.unknown(self.publish.payload, self.parameters):
            yield (
                ("publish", "payload"),
                f"{{{name}}} is no parameter and is sent as it stands; declared are {declared}",
            )
        used = set(PLACEHOLDER.findall(self.publish.topic + self.publish.payload))
        yield from _unused(self.parameters, used, "topic and payload", "use it there as {{{}}}")

    def shown(self, result: JSON, write: Callable[[JSON], str]) -> str:
        """See Tool. The result says only that it happened."""
        return "done"


class PythonTool(Tool, frozen=True, kw_only=True):
    """A tool that is a Python function of a module in the folder `tools` beside the configuration.

    Only a child process may import it. So what is not written here is filled in at the start, from the function
    (`tools/python/signatures`).

    python: the function, as "module:function".
    description: what the tool does. Default: the function's docstring.
    parameters: each a property of JSON Schema, in addition to what the function's signature says of it.
    effect: "read" if a call changes nothing.
    memory: largest private memory of the tool's process, 32MiB to 1024GiB.
    file_size: largest size of a file that it writes.
    on_uncertain: what follows if the daemon died during a call: "report" says so, "retry" calls again.
    """

    key = "python"
    is_described_later = True

    python: Annotated[
        str,
        Meta(
            pattern=whole(FUNCTION),
            extra={"problem": '{}; write "module:function", a module of the folder tools/'},
        ),
    ]
    description: str = ""
    effect: Effect = "write"
    memory: Size = "128MiB"
    file_size: Size = "256MiB"
    on_uncertain: OnUncertain = "report"

    @property
    def is_write(self) -> bool:
        """See Tool."""
        return self.effect == "write"

    @property
    def is_repeatable(self) -> bool:
        """See Tool."""
        return not self.is_write or self.on_uncertain == "retry"

    def mistakes(self, around: Around) -> Mistakes:
        """See Tool."""
        yield from size_mistakes(("memory",), self.memory, *TOOL_MEMORY)
        yield from size_mistakes(("file_size",), self.file_size)

    def is_nothing(self, result: JSON) -> bool:
        """See Tool. What a write returns tells of what it did."""
        return not self.is_write and (result is None or result in ([], {}))


class McpTool(Tool, frozen=True, kw_only=True):
    """A tool of an MCP server under a name of its own. What is not written here is the server's word.

    mcp: the tool, as "SERVER.TOOL"; SERVER is the name of a [mcp.NAME] table.
    description: what the tool does. Default: as the server says.
    parameters: each a property of JSON Schema, in addition to what the server says of it.
    effect: "read" if a call changes nothing. Default: as `read` of the server's table says.
    on_uncertain: what follows if the daemon died during a call: "report" says so, "retry" calls again. Default: as the
        server's table says.
    """

    key = "mcp"
    is_described_later = True

    mcp: Annotated[str, Meta(pattern=whole(r"[^.]+\..+"), extra={"problem": '{}; write "SERVER.TOOL"'})]
    description: str = ""
    effect: Effect | None = None
    on_uncertain: OnUncertain | None = None

    @property
    def is_write(self) -> bool:
        """See Tool."""
        return self.effect != "read"

    @property
    def is_repeatable(self) -> bool:
        """See Tool."""
        return not self.is_write or self.on_uncertain == "retry"

    def mistakes(self, around: Around) -> Mistakes:
        """See Tool."""
        server = self.mcp.partition(".")[0]
        if server not in around.servers:
            known = ", ".join(around.servers) or "none: write a [mcp.NAME] table"
            yield ("mcp",), f"no MCP server {server!r}; defined are {known}"

    def is_nothing(self, result: JSON) -> bool:
        """See Tool."""
        return not self.is_write and (result is None or result in ("", [], {}))


# The table of each kind of tool. They are all here and not with what runs the tools, so that every command and program
# reads a configuration alike, and none carries SQLite or the rest of `edged.tools` for it. A kind from elsewhere joins
# with `tools.toolbox.add_kind`.
TABLES: list[type[Tool]] = [SqlTool, PublishTool, PythonTool, McpTool]


def parse(tables: dict[str, Any]) -> dict[str, Tool]:
    """All of [tools].

    Raises:
        Wrong: the first thing that is wrong in a table by itself.
    """
    tools: dict[str, Tool] = {}
    known = dict.fromkeys(key for table in TABLES for key in table.__struct_encode_fields__)
    for name, value in entries("tools", tables, known):
        kinds = [table for table in TABLES if table.key in value]
        if len(kinds) != 1:
            *keys, last = (f"`{table.key}`" for table in TABLES)
            raise Wrong(("tools", name), f"a tool has exactly one of {', '.join(keys)} and {last}")
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
    yield from _private(at, tool)
    for key, problem in value_lists.mistakes(tool.parameters, around.databases):
        yield (*at, *key), problem
    for key, problem in () if tool.is_described_later else words_that_fail(tool):
        yield (*at, *key), problem
    for key, problem in tool.mistakes(around):
        yield (*at, *key), problem


def _private(at: Key, tool: Tool) -> Mistakes:
    """What can be known without a look at the database or the function."""
    if isinstance(tool.private, bool):
        return
    for name in tool.private:
        if not name.strip() or "" in name.split("."):
            yield (*at, "private"), f"{name!r} is no name; write a column's, or a parameter's"


def words_that_fail(tool: Tool) -> Mistakes:
    """(key below the tool, what is wrong) of what a tool says about itself: description, names of its parameters, and
    what refers to them."""
    if not tool.description.strip():
        yield ("description",), "is empty; the model chooses by it"
    for parameter, schema in tool.parameters.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", parameter):
            yield ("parameters", parameter), "a parameter's name has letters, digits and `_` only"
        if not isinstance(schema.get("optional", False), bool):
            yield ("parameters", parameter, "optional"), f"{schema['optional']!r}; allowed are true, false"
        elif schema.get("optional") and "default" in schema:
            yield (
                ("parameters", parameter, "optional"),
                "what has a default may be left out already: take one of them out",
            )
    declared = ", ".join(tool.parameters) or "none"
    for key, text in (("say", tool.say), ("say_none", tool.say_none)):
        for found in PLACEHOLDER.findall(text or ""):
            if found not in tool.parameters:
                yield (key,), f"{{{found}}} is no parameter; declared are {declared}"
    for i, example in enumerate(tool.examples):
        for argument in example.arguments:
            if argument not in tool.parameters:
                yield (f"examples[{i}]",), f"{argument!r} is no parameter of the tool"


def _unused(parameters: Mapping[str, Any], used: set[str], where: str, do: str) -> Mistakes:
    """Parameters that a call does not depend on. do: with {} in place of the name."""
    for name in parameters:
        if name not in used:
            problem = f"is not used by {where}, so its value changes nothing: {do.format(name)}, or take it out"
            yield ("parameters", name), problem
