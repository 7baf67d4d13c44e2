"""The messages of an OpenAI request as a dialogue. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from edged.transport.http.openai.checks import Wrong, convert
from edged.types import JSON, Message, ToolCall
from edged.wire import ALLOWED, MAX_DEPTH, depth, is_json


class CallFunction(Struct, forbid_unknown_fields=True):
    name: str
    arguments: str = ""
    parsed_arguments: Any = None  # what the SDK's helpers add


class OpenAICall(Struct, forbid_unknown_fields=True):
    id: str
    function: CallFunction | None = None
    type: str = "function"
    custom: Any = None
    index: int | None = None  # of a stream's chunks, which clients put together and send back


class ChatMessage(Struct, forbid_unknown_fields=True):
    """Of any role. What only a server or the SDK writes may come back as it was."""

    role: str
    content: str | list[dict[str, JSON]] | None = None
    name: str | None = None
    tool_calls: list[OpenAICall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    audio: Any = None
    function_call: Any = None
    annotations: list[Any] | None = None
    parsed: Any = None


def dialogue(raw: list[Any]) -> tuple[Message, ...]:
    """The dialogue, the results of calls in the order of the calls: templates know no ids."""
    if not raw:
        raise Wrong("messages", "at least one is needed")
    given = [convert(message, ChatMessage, f"messages[{i}]") for i, message in enumerate(raw)]
    messages: list[Message] = []
    at = 0
    while at < len(given):
        message = _message(f"messages[{at}]", given[at])
        messages.append(message)
        at += 1
        if message.role == "tool":
            raise Wrong(f"messages[{at - 1}].role", "a tool's message follows the assistant's that called it")
        if message.tool_calls:
            results, at = _results(given, at)
            messages += results
    return tuple(messages)


def _results(given: list[ChatMessage], at: int) -> tuple[list[Message], int]:
    """The results of the calls in the message before `at`, and where the dialogue goes on."""
    where = f"messages[{at - 1}].tool_calls"
    ids = [call.id for call in given[at - 1].tool_calls or ()]
    if len(set(ids)) < len(ids):
        raise Wrong(where, "two calls have the same id")
    results: dict[str, Message] = {}
    while at < len(given) and given[at].role == "tool":
        id = given[at].tool_call_id
        if id not in ids or id in results:
            raise Wrong(f"messages[{at}].tool_call_id", f"{id!r}; expected is one of {', '.join(ids)}, each once")
        results[id] = _message(f"messages[{at}]", given[at])
        at += 1
    if missing := [id for id in ids if id not in results]:
        raise Wrong(where, f"no message of role tool answers {', '.join(missing)}")
    return [results[id] for id in ids], at


def _message(where: str, raw: ChatMessage) -> Message:
    roles = ("system", "developer", "user", "assistant", "tool")
    if raw.role not in roles:
        raise Wrong(f"{where}.role", f"{raw.role!r}; allowed are {', '.join(roles)}")
    if raw.function_call is not None or raw.audio is not None:
        name = "audio" if raw.function_call is None else "function_call"
        raise Wrong(f"{where}.{name}", "is not supported; allowed are content and tool_calls")
    if raw.tool_calls and raw.role != "assistant":
        raise Wrong(f"{where}.tool_calls", "only the assistant calls tools")
    if (raw.role == "tool") != (raw.tool_call_id is not None):
        raise Wrong(f"{where}.tool_call_id", "belongs to a message of role tool, and only there")
    calls = tuple(_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(raw.tool_calls or ()))
    content = _content(f"{where}.content", raw.content) if raw.content is not None else raw.refusal
    if content is None and not calls:
        raise Wrong(f"{where}.content", "is required")
    return Message("system" if raw.role == "developer" else raw.role, content or "", calls)


def _content(where: str, content: str | list[dict[str, JSON]]) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            raise Wrong(f"{where}[{i}].type", f"{kind!r} is not supported: the models read text; allowed is text")
        text = part.get(kind)
        if not isinstance(text, str):
            raise Wrong(f"{where}[{i}].{kind}", "is required, a text")
        # a breakpoint only concerns OpenAI's cache
        if unknown := set(part) - {"type", kind, "prompt_cache_breakpoint"}:
            raise Wrong(f"{where}[{i}].{min(unknown)}", "is not known")
        texts.append(text)
    return "".join(texts)


def _call(where: str, raw: OpenAICall) -> ToolCall:
    if raw.type != "function" or raw.function is None:
        raise Wrong(f"{where}.type", f"{raw.type!r}; allowed is function, with its name and arguments")
    try:
        arguments = msgspec.json.decode(raw.function.arguments or "{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise Wrong(f"{where}.function.arguments", f"are not JSON: {error}") from None
    if not isinstance(arguments, dict) or depth(arguments) > MAX_DEPTH:
        raise Wrong(f"{where}.function.arguments", f"are a JSON object of at most {MAX_DEPTH} levels, as text")
    if not is_json(arguments):
        raise Wrong(f"{where}.function.arguments", f"are refused: a request {ALLOWED}")
    return ToolCall(raw.function.name, arguments)
