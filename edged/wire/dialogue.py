"""Messages in OpenAI's shape as a dialogue: one parser for every API that takes them. Pure.

https://platform.openai.com/docs/api-reference/chat/create#chat_create-messages
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from edged.errors import BadRequest, TooLarge
from edged.types import JSON, Message, ToolCall
from edged.wire import thinking
from edged.wire.values import ALLOWED, MAX_DEPTH, depth, is_json

T = TypeVar("T")
ROLES = ("system", "developer", "user", "assistant", "tool")  # a developer's message is the system's, by its new name
# of a part: a breakpoint only concerns OpenAI's cache
PART_FIELDS = {"type", "text", "refusal", "prompt_cache_breakpoint"}


class BadParameter(BadRequest):
    """A parameter is wrong. param: its name, with the path to it."""

    def __init__(self, param: str, problem: str) -> None:
        super().__init__(f"{param}: {problem}")
        self.param = param


class TooDeep(TooLarge, BadParameter):
    """A parameter is nested too deep."""


def convert(value: object, kind: type[T], where: str) -> T:
    """A part of the request, found at `where`, as a Struct. Raises BadParameter."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), kind, where) from None


class _Function(Struct, forbid_unknown_fields=True):
    name: str
    arguments: str | dict[str, JSON] = ""
    parsed_arguments: Any = None  # what the SDK's helpers add


class _Call(Struct):
    id: str | None = None
    function: _Function | None = None
    type: str = "function"
    custom: Any = None
    index: int | None = None  # of a stream's chunks, which clients put together and send back


class _Message(Struct, forbid_unknown_fields=True):
    """Of any role. What only a server or the SDK writes may come back as it was."""

    role: str
    content: str | list[dict[str, JSON]] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    audio: Any = None
    function_call: Any = None
    annotations: list[Any] | None = None
    parsed: Any = None


def read(raw: list[Any], *, strict: bool = False) -> tuple[Message, ...]:
    """The dialogue that a list of messages is.

    Args:
        strict: as OpenAI has it: calls have ids, each is answered by a message right after it, messages have content,
            and what is not known is refused. The results of calls come in the order of the calls then, because chat
            templates know no ids. Else messages stay as they are: edged's own API takes whatever has a meaning.

    Raises:
        BadParameter: with the parameter, as "messages[0].content", and what is allowed.
    """
    given = [convert(message, _Message, f"messages[{i}]") for i, message in enumerate(raw)]
    messages = [_message(f"messages[{i}]", message) for i, message in enumerate(given)]
    if not strict:
        return tuple(messages)
    if not given:
        raise BadParameter("messages", "at least one is needed")
    for i, message in enumerate(given):
        _check_strictly(f"messages[{i}]", message, raw[i])
    ordered: list[Message] = []
    at = 0
    while at < len(given):
        if given[at].role == "tool":
            raise BadParameter(f"messages[{at}].role", "a tool's message follows the assistant's that called it")
        ordered.append(messages[at])
        order = _results(given, at) if given[at].tool_calls else []
        ordered += [messages[result] for result in order]
        at += 1 + len(order)
    return tuple(ordered)


def _results(given: list[_Message], at: int) -> list[int]:
    """Where the results of the calls in message `at` are, in the order of the calls."""
    where = f"messages[{at}].tool_calls"
    ids = [str(call.id) for call in given[at].tool_calls or ()]
    if len(set(ids)) < len(ids):
        raise BadParameter(where, "two calls have the same id")
    results: dict[str, int] = {}
    for place in range(at + 1, len(given)):
        if given[place].role != "tool":
            break
        id = given[place].tool_call_id
        if id not in ids or id in results:
            raise BadParameter(
                f"messages[{place}].tool_call_id", f"{id!r}; expected is one of {', '.join(ids)}, each once"
            )
        results[id] = place
    if missing := [id for id in ids if id not in results]:
        raise BadParameter(where, f"no message of role tool answers {', '.join(missing)}")
    return [results[id] for id in ids]


def _message(where: str, raw: _Message) -> Message:
    if raw.role not in ROLES:
        raise BadParameter(f"{where}.role", f"{raw.role!r}; allowed are {', '.join(ROLES)}")
    if raw.function_call is not None or raw.audio is not None:
        name = "audio" if raw.function_call is None else "function_call"
        raise BadParameter(f"{where}.{name}", "is not supported; allowed are content and tool_calls")
    if raw.tool_calls and raw.role != "assistant":
        raise BadParameter(f"{where}.tool_calls", "only the assistant calls tools")
    calls = tuple(_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(raw.tool_calls or ()))
    content = _content(f"{where}.content", raw.content) if raw.content is not None else raw.refusal
    if raw.role == "assistant" and content:
        content = thinking.without(content)  # of a server that left it in: no model is to read it as its own words
    return Message("system" if raw.role == "developer" else raw.role, content or "", calls)


def _check_strictly(where: str, raw: _Message, given: dict[str, JSON]) -> None:
    """What OpenAI asks of a message beyond what gives it a meaning."""
    if (raw.role == "tool") != (raw.tool_call_id is not None):
        raise BadParameter(f"{where}.tool_call_id", "belongs to a message of role tool, and only there")
    if raw.content is None and raw.refusal is None and not raw.tool_calls:
        raise BadParameter(f"{where}.content", "is required")
    for i, part in enumerate(raw.content if isinstance(raw.content, list) else ()):
        kind = str(part["type"])
        if not isinstance(part.get(kind), str):
            raise BadParameter(f"{where}.content[{i}].{kind}", "is required, a text")
        if unknown := set(part) - (PART_FIELDS - {"text", "refusal"} | {kind}):
            raise BadParameter(f"{where}.content[{i}].{min(unknown)}", "is not known")
    for i, call in enumerate(given.get("tool_calls") or ()):
        if unknown := set(call) - set(_Call.__struct_fields__):
            raise BadParameter(f"{where}.tool_calls[{i}].{min(unknown)}", "is not a parameter that is known here")
        if call.get("id") is None:
            raise BadParameter(f"{where}.tool_calls[{i}].id", "is required")


def _content(where: str, content: str | list[dict[str, JSON]]) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            problem = f"{kind!r} is not supported: the models read text; only parts of type text are understood"
            raise BadParameter(f"{where}[{i}].type", problem)
        text = part.get(kind, "")
        if not isinstance(text, str):
            raise BadParameter(f"{where}[{i}].{kind}", "is required, a text")
        texts.append(text)
    return "".join(texts)


def _call(where: str, raw: _Call) -> ToolCall:
    if raw.type != "function" or raw.function is None:
        raise BadParameter(f"{where}.type", f"{raw.type!r}; allowed is function, with its name and arguments")
    where = f"{where}.function.arguments"
    arguments: object = raw.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}") or "{}")
        except msgspec.DecodeError as error:
            raise BadParameter(where, f"are not JSON: {error}") from None
        except RecursionError:
            raise TooDeep(where, f"are nested deeper than {MAX_DEPTH} levels") from None
        if depth(arguments) > MAX_DEPTH:  # a text in the request: its depth is not yet counted
            raise TooDeep(where, f"are nested deeper than {MAX_DEPTH} levels")
        if not is_json(arguments):
            raise BadParameter(where, f"are refused: a request {ALLOWED}")
    if not isinstance(arguments, dict):
        raise BadParameter(where, "are not a JSON object")
    return ToolCall(raw.function.name, arguments)


def _wrong(error: str, kind: type[Any], where: str) -> BadParameter:
    """msgspec's message, with the parameter in front."""
    text, _, path = error.partition(" - at ")
    at = where + path.strip("`").removeprefix("$")
    if named := re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", text):
        problem = "is required"
        if named[1] == "contains unknown":
            names = "" if path else f"; allowed are {', '.join(kind.__struct_fields__)}"
            problem = f"is not a parameter that is known here{names}"
        return BadParameter(f"{at}.{named[2]}".strip("."), problem)
    return BadParameter(at.strip(".") or "request", text[:1].lower() + text[1:])
