"""Bytes to requests, replies to bytes. Pure: no socket, no clock but for the rid. All transports speak through here,
so a request means the same whichever way it came (CONTRACT section 3)."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import sys
import time
from typing import Any

import msgspec
from msgspec import Struct

from edged.errors import BadRequest, EdgedError, TooLarge
from edged.types import JSON, Fault, Format, Message, Preference, Priority, Privacy, Reply, Request, Status, ToolCall

MAX_REQUEST_BYTES = 256 * 1024  # CONTRACT section 4; about 60,000 tokens, beyond what a board's model reads
MAX_NAME_BYTES = 128  # CONTRACT section 3: ids; conversations are names of the same kind
MAX_DEADLINE_S = 7 * 86400.0  # the retention of the store: a longer wait could not be answered from it
MAX_STOPS = 16  # each is looked for in every token's text
MAX_SEED = 2**32 - 1  # llama.cpp's seeds are 32 bits wide; its largest means "random"
MAX_DEPTH = 32  # CONTRACT section 5; deeper nesting has no use here and costs stack in whoever walks it
MAX_INT_BITS = 1024  # of an integer: beyond it nobody who reads numbers as floats, as most of the world, has one for it
MAX_MESSAGE_CHARS = 4096  # of an error: it may quote what was sent, and brokers take a reply of so much only

# What is checked by `is_json`, in words.
ALLOWED = (
    "holds maps with text keys, lists, text, numbers, booleans and null, nothing else; numbers are finite and integers "
    f"have at most {MAX_INT_BITS} bits, text has no halves of surrogate pairs"
)

CONTENT_TYPES = {Format.JSON: "application/json", Format.MSGPACK: "application/msgpack", Format.TEXT: "text/plain"}
FORMATS = {  # by content type
    **{name: fmt for fmt, name in CONTENT_TYPES.items()},
    "application/x-msgpack": Format.MSGPACK,  # names from before its registration
    "application/vnd.msgpack": Format.MSGPACK,
}


class _Function(Struct, forbid_unknown_fields=True):
    name: str
    arguments: str | dict[str, JSON] = ""


class _Call(Struct):
    function: _Function


class _Part(Struct):
    type: str
    text: str = ""


class _Message(Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] = msgspec.field(default_factory=list)
    tool_call_id: str | None = None
    name: str | None = None


class _Body(Struct, forbid_unknown_fields=True):
    """The request as it may be written; `Request` is what it means."""

    input: str | None = None
    messages: list[_Message] | None = None
    id: str | None = None
    agent: str | None = None
    conversation: str | None = None
    priority: Priority | None = None
    deadline_s: float | None = None
    route: Preference | None = None
    privacy: Privacy | None = None
    stream: bool = False
    reply_to: str | None = None
    response_schema: dict[str, JSON] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


def new_rid() -> str:
    """A unique name for a request: 12 hex digits of milliseconds, so that rids sort by age, and 40 random bits."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(5)}"


def named_rid(client: str, id: str) -> str:
    """The rid of what a client does under its own name: the same name is the same rid."""
    _name("id", id)
    return hashlib.sha256(f"{client}\0{id}".encode(errors="surrogatepass")).hexdigest()[:22]


def decode_request(payload: bytes, *, agent: str | None, content_type: str | None) -> tuple[Request, Format]:
    """A request from its bytes. Without a content type: first non-space byte `{` is JSON, else valid UTF-8 is text,
    else a msgpack map.

    Args:
        agent: the agent the topic or path names; None where the body must.

    Raises:
        TooLarge: more than MAX_REQUEST_BYTES, or nested deeper than MAX_DEPTH.
        BadRequest: names the field and what is allowed.
    """
    if len(payload) > MAX_REQUEST_BYTES:
        raise TooLarge(f"the request has {len(payload)} bytes; at most {MAX_REQUEST_BYTES} are taken")
    fmt = _format(payload, content_type)
    if fmt is Format.TEXT:
        return request_from_map({"input": _text(payload)}, agent=agent), fmt
    try:
        decode = msgspec.json.decode if fmt is Format.JSON else msgspec.msgpack.decode
        body = decode(payload)
    except RecursionError:
        raise TooLarge(f"the request is nested deeper than {MAX_DEPTH} levels") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the request is not valid {fmt}: {error}") from None
    return request_from_map(body, agent=agent), fmt


def request_from_map(body: object, *, agent: str | None) -> Request:
    """A request from a decoded map; the same checks for every transport. Raises as decode_request."""
    if not isinstance(body, dict):
        raise BadRequest(f"a request is a map with `input` or `messages`, not {_kind(body)}")
    if depth(body) > MAX_DEPTH:
        raise TooLarge(f"the request is nested deeper than {MAX_DEPTH} levels")
    if not is_json(body):
        raise BadRequest(f"a request {ALLOWED}")
    try:
        raw = msgspec.convert(body, _Body)
    except msgspec.ValidationError as error:
        raise BadRequest(_readable(error)) from None
    if raw.agent is not None and agent is not None and raw.agent != agent:
        raise BadRequest(f"agent: the request was sent to {agent!r} and names {raw.agent!r}; name one or the other")
    chosen = agent or raw.agent
    if not chosen:
        raise BadRequest("agent: which agent is meant? Name one of those that are configured")
    _check_numbers(raw)
    return Request(
        agent=chosen,
        messages=_messages(raw),
        id=_name("id", raw.id),
        conversation=_name("conversation", raw.conversation),
        priority=raw.priority,
        deadline_s=raw.deadline_s,
        route=raw.route,
        privacy=raw.privacy,
        stream=raw.stream,
        reply_to=raw.reply_to,
        response_schema=raw.response_schema,
        max_tokens=raw.max_tokens,
        temperature=raw.temperature,
        top_p=raw.top_p,
        seed=raw.seed,
        stop=_stops(raw.stop),
    )


def digest(request: Request) -> bytes:
    """What makes two requests the same content: everything but how they are named, timed and carried."""
    plain = msgspec.structs.replace(request, id=None, deadline_s=None, stream=False, reply_to=None, priority=None)
    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).digest()


def reply_bytes(reply: Reply) -> bytes:
    """The canonical form that is stored and sent: compact JSON."""
    return msgspec.json.encode(reply)


def encode_reply(body: bytes, fmt: Format) -> bytes:
    """A stored reply in the format of its request; the same bytes every time. A bare text is answered in JSON."""
    if fmt is not Format.MSGPACK:
        return body
    try:
        return msgspec.msgpack.encode(msgspec.json.decode(body))
    except OverflowError:  # a model may write more digits than the 64 bits MessagePack has: rounded, not lost
        return msgspec.msgpack.encode(json.loads(body, parse_int=_int_64))


def refusal(error: EdgedError, *, id: str | None, rid: str | None = None) -> bytes:
    """The reply of a request that was never taken in."""
    return reply_bytes(Reply(id=id, rid=rid or new_rid(), status=Status.REFUSED, error=fault(error)))


def fault(error: EdgedError) -> Fault:
    """An error as replies carry it."""
    return Fault(error.code, _spelled(error.message), error.retryable, error.retry_after_s)


def content_type(fmt: Format) -> str:
    """Content type of a reply to a request of that format."""
    return CONTENT_TYPES[Format.MSGPACK if fmt is Format.MSGPACK else Format.JSON]


def depth(value: object, limit: int = MAX_DEPTH + 1) -> int:
    """Levels of maps and lists in a value, counted at most to `limit`; no recursion, so no stack to overflow."""
    level, row = 0, [value]
    while row and level < limit:
        nested = [item for item in row if isinstance(item, dict | list | tuple)]
        if not nested:
            break
        level += 1
        row = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]
    return level


def is_json(value: object) -> bool:
    """Whether a value can be written as JSON, and read by everybody: MessagePack also has bytes, dates, extensions,
    keys of any kind and numbers that are none; headers of HTTP have bytes that are no text."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            if not all(isinstance(key, str) and _is_text(key) for key in item):
                return False
            rest += item.values()
        elif isinstance(item, list | tuple):
            rest += item
        elif not _is_plain(item):
            return False
    return True


def _is_plain(value: object) -> bool:
    """Whether a value without others in it is JSON's."""
    match value:
        case str():
            return _is_text(value)
        case float():
            return math.isfinite(value)
        case int():
            return value.bit_length() <= MAX_INT_BITS
        case _:
            return value is None


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _spelled(message: str) -> str:
    """A message as replies carry it: what is no character is spelled, and quotes do not go on for ever."""
    text = message.encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[: MAX_MESSAGE_CHARS - 3]}..."


def _int_64(digits: str) -> int | float:
    number = int(digits)
    if -(2**63) <= number < 2**64:
        return number
    return max(-sys.float_info.max, min(sys.float_info.max, float(digits)))  # beyond it float makes an infinity


def _format(payload: bytes, content_type: str | None) -> Format:
    if content_type is not None:
        if (fmt := FORMATS.get(content_type.split(";")[0].strip().lower())) is not None:
            return fmt
        raise BadRequest(f"content type {content_type!r}: allowed are {', '.join(CONTENT_TYPES.values())}")
    if payload.lstrip()[:1] == b"{":
        return Format.JSON
    try:
        payload.decode()
    except UnicodeDecodeError:
        return Format.MSGPACK
    return Format.TEXT


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise BadRequest("the request is text by its content type and not valid UTF-8") from None


def _messages(raw: _Body) -> tuple[Message, ...]:
    if (raw.input is None) == (raw.messages is None):
        raise BadRequest("a request has either `input` (text) or `messages` (OpenAI shape)")
    if raw.input is not None:
        if not raw.input.strip():
            raise BadRequest("input: is empty")
        return (Message("user", raw.input),)
    messages = tuple(_message(i, m) for i, m in enumerate(raw.messages or ()))
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise BadRequest("messages: the last one must be the user's, with text")
    return messages


def _message(index: int, raw: _Message) -> Message:
    where = f"messages[{index}]"
    if raw.role not in ("system", "user", "assistant", "tool"):
        raise BadRequest(f"{where}.role: {raw.role!r}; allowed are system, user, assistant, tool")
    if raw.tool_calls and raw.role != "assistant":
        raise BadRequest(f"{where}.tool_calls: only the assistant calls tools")
    return Message(raw.role, _content(where, raw.content), tuple(_call(where, call) for call in raw.tool_calls))


def _content(where: str, content: str | list[_Part] | None) -> str:
    if isinstance(content, list):
        if any(part.type != "text" for part in content):
            raise BadRequest(f"{where}.content: only parts of type text are understood")
        return "".join(part.text for part in content)
    return content or ""


def _call(where: str, raw: _Call) -> ToolCall:
    arguments: object = raw.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}")
        except msgspec.DecodeError as error:
            raise BadRequest(f"{where}.tool_calls: arguments of {raw.function.name!r} are not JSON: {error}") from None
        except RecursionError:
            raise TooLarge(f"{where}.tool_calls: arguments are nested deeper than {MAX_DEPTH} levels") from None
        if depth(arguments) > MAX_DEPTH:  # a text in the request: its depth is not yet counted
            raise TooLarge(f"{where}.tool_calls: arguments are nested deeper than {MAX_DEPTH} levels")
        if not is_json(arguments):
            raise BadRequest(f"{where}.tool_calls: a call of {raw.function.name!r} {ALLOWED}")
    if not isinstance(arguments, dict):
        raise BadRequest(f"{where}.tool_calls: arguments of {raw.function.name!r} are not a JSON object")
    return ToolCall(raw.function.name, arguments)


def _check_numbers(raw: _Body) -> None:
    bounds: tuple[tuple[str, float | None, float, float], ...] = (
        ("max_tokens", raw.max_tokens, 1, 2**20),
        ("temperature", raw.temperature, 0, 2),
        ("top_p", raw.top_p, 0, 1),
        ("seed", raw.seed, 0, MAX_SEED),
        ("deadline_s", raw.deadline_s, 0, MAX_DEADLINE_S),
    )
    for name, value, low, high in bounds:
        if value is not None and not low <= value <= high:
            raise BadRequest(f"{name}: {value} is outside {low} to {high}")


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS or any(not s for s in stops):
        raise BadRequest(f"stop: at most {MAX_STOPS} strings, none of them empty")
    return stops


def _name(field: str, value: str | None) -> str | None:
    if value is not None and not 1 <= len(value.encode(errors="surrogatepass")) <= MAX_NAME_BYTES:
        raise BadRequest(f"{field}: 1 to {MAX_NAME_BYTES} bytes, not {len(value.encode(errors='surrogatepass'))}")
    return value


def _readable(error: msgspec.ValidationError) -> str:
    """msgspec's message with the field in front: 'max_tokens: expected `int`, got `str`'."""
    text, _, path = str(error).partition(" - at ")
    if "unknown field" in text:
        allowed = ", ".join(field.name for field in msgspec.structs.fields(_Body))
        where = path.strip("`$.")
        return f"{where + ': ' if where else ''}{text}" + ("" if where else f"; allowed are {allowed}")
    where = path.strip("`").removeprefix("$.").removeprefix("$")
    return f"{where}: {text[:1].lower()}{text[1:]}" if where else text


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), type(value).__name__)
