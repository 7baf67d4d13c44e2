"""Bytes to requests, replies to bytes. Pure: no socket, no clock but for the rid. All transports speak through here,
so a request means the same whichever way it came (CONTRACT section 3)."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import sys
import time
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from edged.errors import BadRequest, EdgedError, TooLarge
from edged.types import JSON, Fault, Format, Message, Preference, Priority, Privacy, Reply, Request, Status
from edged.wire import dialogue
from edged.wire.dialogue import BadParameter
from edged.wire.values import MAX_DEPTH, checked, depth, is_json

__all__ = ["MAX_DEPTH", "BadParameter", "depth", "is_json"]  # what is imported here for everybody

MAX_REQUEST_BYTES = 256 * 1024  # CONTRACT section 4; about 60,000 tokens, beyond what a board's model reads
MAX_NAME_BYTES = 128  # CONTRACT section 3: ids; conversations are names of the same kind
MAX_DEADLINE_S = 7 * 86400.0  # the retention of the store: a longer wait could not be answered from it
MAX_TOKENS = 2**20  # of one generation: beyond any context
MAX_STOPS = 16  # each is looked for in every token's text
MAX_SEED = 2**32 - 1  # llama.cpp's seeds are 32 bits wide; its largest means "random"
LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,4}")  # BCP 47, and POSIX's "_"
MAX_MESSAGE_CHARS = 4096  # of an error: it may quote what was sent, and brokers take a reply of so much only

CONTENT_TYPES = {Format.JSON: "application/json", Format.MSGPACK: "application/msgpack", Format.TEXT: "text/plain"}
FORMATS = {  # by content type
    **{name: fmt for fmt, name in CONTENT_TYPES.items()},
    "application/x-msgpack": Format.MSGPACK,  # names from before its registration
    "application/vnd.msgpack": Format.MSGPACK,
}


class _Body(Struct, forbid_unknown_fields=True):
    """The request as it may be written; `Request` is what it means."""

    input: str | None = None
    messages: list[Any] | None = None  # see dialogue
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
    language: str | None = None


def new_rid() -> str:
    """A unique name for a request: 12 hex digits of milliseconds, so that rids sort by age, and 40 random bits."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(5)}"


def named_rid(client: str, id: str) -> str:
    """The rid of what a client does under its own name: the same name is the same rid."""
    _name("id", id)
    return hashlib.sha256(f"{client}\0{id}".encode(errors="surrogatepass")).hexdigest()[:22]


def decode_request(payload: bytes, *, agent: str | None, content_type: str | None) -> tuple[Request, Format]:
    """A request from its bytes. Without a content type: first non-space byte `{` is JSON, else valid UTF-8 is text,
    else a msgpack map. A byte order mark in front is skipped.

    Args:
        agent: the agent the topic or path names; None where the body must.

    Raises:
        TooLarge: more than MAX_REQUEST_BYTES, or nested deeper than MAX_DEPTH.
        BadRequest: names the field and what is allowed.
    """
    if len(payload) > MAX_REQUEST_BYTES:
        raise TooLarge(f"the request has {len(payload)} bytes; at most {MAX_REQUEST_BYTES} are taken")
    payload = payload.removeprefix(BOM_UTF8)
    fmt = _format(payload, content_type)
    if fmt is Format.MSGPACK and content_type is None:
        body = _map_or_foreign_text(payload)
    else:
        body = {"input": _text(payload)} if fmt is Format.TEXT else decode(payload, fmt)
    return request_from_map(body, agent=agent), fmt


def decode(payload: bytes, fmt: Format) -> JSON:
    """A payload as the values it holds, of which nothing is checked yet (see values.checked).

    A byte order mark in front of JSON is skipped (RFC 8259, 8.1).

    Raises:
        TooLarge: it is nested too deep to be read.
        BadRequest: it is not what its format says.
    """
    try:
        if fmt is Format.JSON:
            return msgspec.json.decode(payload.removeprefix(BOM_UTF8))
        return msgspec.msgpack.decode(payload)
    except RecursionError:
        raise TooLarge(f"the request is nested deeper than {MAX_DEPTH} levels") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        why = (_not_utf8(payload) if fmt is Format.JSON else None) or error
        raise BadRequest(f"the request is not valid {fmt}: {why}") from None


def request_from_map(body: object, *, agent: str | None) -> Request:
    """A request from a decoded map; the same checks for every transport. Raises as decode_request."""
    body = checked(body, "a map with `input` or `messages`")
    raw = dialogue.convert(body, _Body, "")
    if raw.agent is not None and agent is not None and raw.agent != agent:
        raise BadParameter("agent", f"the request was sent to {agent!r} and names {raw.agent!r}; name one or the other")
    chosen = agent or raw.agent
    if not chosen:
        raise BadParameter("agent", "which agent is meant? Name one of those that are configured")
    check_numbers(raw, BOUNDS)
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
        stop=stops(raw.stop),
        language=_language(raw.language),
    )


def _language(tag: str | None) -> str | None:
    """Any tag of a language is taken: one that edged has no sentences in is answered as if there were none."""
    if tag is not None and not LANGUAGE.fullmatch(tag):
        raise BadParameter("language", f'{tag[:40]!r} is no tag of a language, as "de" or "de-AT"')
    return tag


def request_schema() -> dict[str, JSON]:
    """JSON Schemas of what a request may hold, by name."""
    properties: dict[str, JSON] = msgspec.json.schema(_Body)["$defs"]["_Body"]["properties"]
    return properties


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
    if (why := _not_utf8(payload)) is not None:
        raise BadRequest(f"the request is text by its content type, and {why}")
    return payload.decode()


def _map_or_foreign_text(payload: bytes) -> JSON:
    """The msgpack map in a payload that is no UTF-8. What is none is text in another encoding, more likely than not:
    its sender knows nothing of msgpack."""
    try:
        body = decode(payload, Format.MSGPACK)
    except BadRequest:
        body = None
    if isinstance(body, dict):
        return body
    raise BadRequest(f"the request is neither UTF-8 (text or JSON) nor a msgpack map: {_not_utf8(payload)}")


def _not_utf8(payload: bytes) -> str | None:
    """Where bytes are no UTF-8, and what to do; None: they are."""
    if payload.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "it begins with the byte order mark of UTF-16; send UTF-8"
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        at = error.start
        return f"byte 0x{payload[at]:02x} at offset {at} is no UTF-8; send UTF-8, not Latin-1 or another code"
    return None


def _messages(raw: _Body) -> tuple[Message, ...]:
    if (raw.input is None) == (raw.messages is None):
        raise BadRequest("a request has either `input` (text) or `messages` (OpenAI shape)")
    if raw.input is not None:
        if not raw.input.strip():
            raise BadParameter("input", "is empty")
        return (Message("user", raw.input),)
    return question(dialogue.read(raw.messages or []))


def question(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A dialogue that ends with what is asked, as an agent's request has to. Raises BadParameter."""
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise BadParameter("messages", "the last one must be the user's, with text")
    return messages


# What numbers may be, on every API that takes them.
BOUNDS: dict[str, tuple[float, float]] = {
    "max_tokens": (1, MAX_TOKENS),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "seed": (0, MAX_SEED),
    "deadline_s": (0, MAX_DEADLINE_S),
}


def check_numbers(body: Struct, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Raises BadParameter for a field whose number is out of bounds."""
    for name, (low, high) in bounds.items():
        value = getattr(body, name)
        if value is not None and not low <= value <= high:
            raise BadParameter(name, f"{value} is outside {low} to {high}")


def stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings, one or several. Raises BadParameter."""
    made = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(made) > MAX_STOPS or any(not s for s in made):
        raise BadParameter("stop", f"at most {MAX_STOPS} strings, none of them empty")
    return made


def _name(field: str, value: str | None) -> str | None:
    if value is not None and not 1 <= len(value.encode(errors="surrogatepass")) <= MAX_NAME_BYTES:
        raise BadParameter(field, f"1 to {MAX_NAME_BYTES} bytes, not {len(value.encode(errors='surrogatepass'))}")
    return value
