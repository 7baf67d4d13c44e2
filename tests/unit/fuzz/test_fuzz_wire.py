"""Requests from anywhere: whatever the bytes, a request within its limits, or a refusal that says what is wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edged import wire
from edged.errors import BadRequest, CallerError, TooLarge
from edged.transport.unix.server import MAX_FRAME_BYTES, MAX_ITEMS, _call, _Frames
from edged.types import Format, Request
from tests.support.fuzz import (
    MIB,
    anything,
    cpu_s,
    cut,
    damaged,
    is_finite,
    json_values,
    maps,
    peak_bytes,
    pieces,
    texts,
    values,
    written,
)

CONTENT_TYPES = st.one_of(
    st.none(),
    st.sampled_from([*wire.FORMATS, "application/json; charset=x", "TEXT/PLAIN", "", ";", "image/png", "\udcff"]),
    texts,
)
messages = st.lists(
    maps(
        ("role", "content", "tool_calls", "tool_call_id", "name"),
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "content": texts | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=2),
            "tool_calls": st.lists(
                st.fixed_dictionaries(
                    {
                        "function": st.fixed_dictionaries(
                            {"name": texts, "arguments": st.one_of(json_values, json_values.map(json.dumps))}
                        )
                    }
                ),
                max_size=2,
            ),
        },
    ),
    max_size=3,
)
bodies = maps(
    tuple(field.name for field in msgspec.structs.fields(wire._Body)),
    {
        "input": st.just("hi") | texts,
        "messages": messages,
        "agent": st.just("house"),
        "priority": st.sampled_from(["batch", "interactive"]),
        "deadline_s": st.floats(),
        "temperature": st.floats(),
        "stop": texts | st.lists(texts, max_size=20),
        "response_schema": st.dictionaries(texts, json_values, max_size=3),
    },
)
# What MessagePack has beyond JSON: bytes, dates, extensions, keys of any kind.
strange = values(
    st.one_of(st.binary(max_size=4), st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8)), texts)
)


def packed(value: Any) -> bytes:
    """As MessagePack; JSON's own bytes where a number is too large for it."""
    try:
        return bytes(msgpack.packb(value))
    except OverflowError:
        return written(value)


WHOLE = packed({"input": "hi", "id": "q1", "messages": [{"role": "user", "content": "x"}], "seed": 1})
payloads = st.one_of(
    anything(WHOLE, written({"input": "h\u00fc", "temperature": 0.5, "stop": ["a"]})),
    bodies.map(written),
    bodies.map(packed),
    damaged(bodies.map(packed)),
    damaged(bodies.map(written)),
    strange.map(packed),
    json_values.map(written),
)


@given(payloads, CONTENT_TYPES, st.sampled_from([None, "house"]))
@example(packed({"input": "x", "response_schema": {"a": math.nan}}), None, "house")
@example(packed({"input": "x", "response_schema": {"a": [-math.inf]}}), None, "house")
@example(b'{"input":"x","seed":' + b"9" * 4299 + b"}", None, "house")
@example(b'{"input":"x","response_schema":{"a":' + b"9" * 4299 + b"}}", None, "house")
@example(b'{"input":"x","id":"\\ud800"}', None, "house")
@example(b"\xdd\xff\xff\xff\xff" * 100, "application/msgpack", "house")
@example(b"[" * 1000, "application/json", None)
@example(b"\x81\x80\x01", None, None)
def test_request_is_within_its_limits_or_refused_in_words(
    payload: bytes, content_type: str | None, agent: str | None
) -> None:
    """Nothing but its own two errors comes out; what is taken can be stored, and is the same when it is read again."""
    try:
        request, fmt = wire.decode_request(payload, agent=agent, content_type=content_type)
    except (BadRequest, TooLarge) as error:
        refusal = json.loads(wire.refusal(error, id=None))
        assert refusal["error"]["message"].strip()
        assert len(refusal["error"]["message"]) <= wire.MAX_MESSAGE_CHARS
        return
    assert fmt in Format
    check(request)


def check(request: Request) -> None:
    stored = msgspec.json.encode(request)
    assert msgspec.json.decode(stored, type=Request) == request
    assert wire.digest(request) == wire.digest(msgspec.json.decode(stored, type=Request))
    assert request.messages
    assert request.messages[-1].content.strip()
    assert is_finite(msgspec.to_builtins(request))
    assert len(request.stop) <= wire.MAX_STOPS
    assert all(request.stop)
    assert request.seed is None or 0 <= request.seed <= wire.MAX_SEED
    assert request.max_tokens is None or 1 <= request.max_tokens <= 2**20
    assert request.temperature is None or 0 <= request.temperature <= 2
    assert request.deadline_s is None or 0 <= request.deadline_s <= wire.MAX_DEADLINE_S
    for name in (request.id, request.conversation):
        assert name is None or 1 <= len(name.encode()) <= wire.MAX_NAME_BYTES
    for message in request.messages:
        assert all(wire.depth(call.arguments) <= wire.MAX_DEPTH for call in message.tool_calls)
    assert wire.depth(request.response_schema) <= wire.MAX_DEPTH


# A text of a Python program's, or of an HTTP header, may hold halves of surrogate pairs; bytes on a wire cannot.
half = st.text(alphabet=st.characters(categories=["Cs", "Lu"]), max_size=5)


@given(st.builds(lambda body, name, text: {**body, name: text}, bodies, st.sampled_from(["id", "input", "stop"]), half))
@example({"input": "x", "id": "\udcff"})
@example({"input": "\udcff"})
@example({"input": "x", "seed": 10**5000})
@example({"input": "x", "response_schema": {"n": 10**5000}})
@example({"input": "x", "response_schema": {"n": -math.inf}})
@example({"input": "x", "response_schema": {"\udc00": 1}})
def test_map_is_checked_like_bytes(body: dict[str, Any]) -> None:
    """Maps come from the Unix socket and from the OpenAI API, with what headers say put in."""
    try:
        check(wire.request_from_map(body, agent="house"))
    except (BadRequest, TooLarge) as error:
        assert json.loads(wire.refusal(error, id=None))["error"]["message"]


@given(st.one_of(json_values, st.integers(), st.sampled_from([10**400, -(10**400), [10**400]])))
def test_reply_means_the_same_in_both_formats(value: Any) -> None:
    """Numbers that MessagePack has no room for are rounded, and never become what is no number."""
    body = msgspec.json.encode(value)
    assert wire.encode_reply(body, Format.JSON) == body
    unpacked = msgpack.unpackb(wire.encode_reply(body, Format.MSGPACK), strict_map_key=False)
    assert is_finite(unpacked)
    assert json.loads(json.dumps(unpacked), parse_int=float) == json.loads(body, parse_int=_as_float)


def _as_float(digits: str) -> float:
    return max(-1.7976931348623157e308, min(1.7976931348623157e308, float(digits)))


@given(texts | half | st.just("\udcff" * 3000))
def test_refusal_can_always_be_said(text: str) -> None:
    """Whatever a message quotes: it is shortened, and what is no character is spelled."""
    told = json.loads(wire.refusal(BadRequest(f"x {text}"), id="q"))["error"]["message"]
    assert told.startswith("x")
    assert len(told) <= wire.MAX_MESSAGE_CHARS


# -- frames of MessagePack-RPC -----------------------------------------------------------------------------------------

CALL = packed([0, 7, "agent.ask", [{"input": "hi"}]])
frames = st.one_of(
    anything(CALL),
    damaged(st.lists(json_values.map(packed), max_size=3).map(b"".join)),
    damaged(st.builds(lambda n, m, p: packed([n, m, p]), json_values, texts, st.lists(json_values, max_size=2))),
    st.lists(st.just(CALL) | damaged(CALL), max_size=4).map(b"".join),
    strange.map(packed),
)


def read(parts: list[bytes]) -> tuple[list[Any], str | None]:
    """Frames that came before the first refusal, and whether there was one."""
    reader, found = _Frames(), []
    try:
        for part in parts:
            found += reader.whole(part)
    except CallerError as error:
        assert error.message
        return found, error.code
    return found, None


@given(st.data(), frames)
@example(None, b"\xc1")
@example(None, b"\x81\x90\x01")
@example(None, b"\x91" * 2000)
def test_frames_are_the_same_however_they_are_cut(data: st.DataObject | None, stream: bytes) -> None:
    """And each is a call, or a refusal."""
    found, refused = read([stream])
    places = data.draw(pieces(len(stream))) if data else list(range(len(stream)))
    again, refused_again = read(cut(stream, places))
    assert refused_again == refused
    assert repr(again[: len(found)]) == repr(found)  # repr: NaN equals nothing
    for frame in again:
        try:
            msgid, method, params = _call(frame)
        except CallerError as error:
            assert error.message
        else:
            assert msgid is None or isinstance(msgid, int)
            assert isinstance(method, str)
            assert wire.depth(params) <= wire.MAX_DEPTH


NESTED = {
    "lists": b"\xdd" + (MAX_ITEMS - 1).to_bytes(4),
    "short-lists": b"\xdc\xff\xff",
    "maps": b"\xdf" + (MAX_ITEMS - 1).to_bytes(4) + b"\x01",
    "texts": b"\xdb\x00\x3f\xff\xff",
    "extensions": b"\xc9\x00\x3f\xff\xff\x01",
}


@pytest.mark.parametrize("kind", NESTED)
def test_frame_that_announces_much_takes_no_memory_for_it(kind: str) -> None:
    """Lists in lists, each of which says that it is long: what was not sent takes no room."""
    stream = b"\x94" + NESTED[kind] * 500
    assert peak_bytes(lambda: read([stream])) < MIB


def test_largest_frame_takes_memory_in_proportion() -> None:
    """The most items that bytes can say, and lists that are nested as deep as may be."""
    items = b"\xc0" * (MAX_ITEMS - 1)
    stream = (b"\xdd" + (MAX_ITEMS - 1).to_bytes(4) + items) * 31
    stream = b"\xdc" + (31).to_bytes(2) + stream  # a list in the long form
    assert len(stream) < MAX_FRAME_BYTES
    assert peak_bytes(lambda: read(cut(stream, range(0, len(stream), 65536)))) < 16 * len(stream)


def test_long_frames_in_small_pieces_take_time_in_proportion() -> None:
    """The longest frame in reads of a kilobyte."""
    stream = packed([0, 1, "x", [{"input": "x" * (MAX_FRAME_BYTES - 100)}]])
    places = range(1024, len(stream), 1024)
    assert cpu_s(lambda: read(cut(stream, places))) < 3


@pytest.mark.parametrize(
    "payload",
    [
        b"{" + b'"a":{' * 50_000,
        b'{"input":"x","response_schema":{' + b",".join(b'"%d":[]' % n for n in range(25_000)) + b"}}",
        b'{"input":"' + b"\\u0041" * 43_000 + b'"}',
        b'{"messages":[' + b",".join([b'{"role":"user","content":"x"}'] * 8_000) + b"]}",
        b"\xdd\x00\x03\xff\x00" + b"\x90" * 260_000,
        b"9" * 262_000,
        b" " * 262_144,
        b'{"input":"x","seed":' + b"9" * 262_000 + b"}",
    ],
    ids=["deep", "wide", "escapes", "messages", "lists", "digits", "spaces", "number"],
)
@pytest.mark.parametrize("content_type", [None, "application/json", "application/msgpack"])
def test_largest_request_takes_little(payload: bytes, content_type: str | None) -> None:
    """Time and memory for what may be sent at most."""

    def work() -> None:
        try:
            wire.digest(wire.decode_request(payload, agent="house", content_type=content_type)[0])
        except CallerError as error:
            assert len(wire.refusal(error, id=None)) < 64 * 1024

    assert cpu_s(work) < 2
    assert peak_bytes(work) < 128 * len(payload)
