"""Bytes to requests and replies to bytes: what every transport relies on."""

from __future__ import annotations

import json
import re
from typing import Any

import msgpack
import pytest

from edged import wire
from edged.errors import BadRequest, Busy, NoLink, TooLarge
from edged.types import Format, Message, Preference, Priority, Privacy, Reply, Request, Status, ToolCall, ToolRecord

JSON_TYPE, MSGPACK_TYPE = "application/json", "application/msgpack"


def decode(body: object, *, agent: str | None = "house") -> Request:
    """The request of a map that arrives as JSON."""
    return wire.decode_request(json.dumps(body).encode(), agent=agent, content_type=JSON_TYPE)[0]


def called(arguments: object) -> dict[str, Any]:
    """A dialogue in which the assistant called a tool."""
    call = {"id": "c1", "type": "function", "function": {"name": "lamp", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "light"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "{}", "tool_call_id": "c1"},
            {"role": "user", "content": "thanks"},
        ]
    }


@pytest.mark.parametrize(
    ("payload", "content_type", "format"),
    [
        (b'{"input": "hi"}', None, Format.JSON),
        (b' \r\n\t{"input": "hi"}', None, Format.JSON),
        (b"hi", None, Format.TEXT),
        (b"hi", "text/plain; charset=utf-8", Format.TEXT),
        (b'{"input": "hi"}', "Application/JSON; charset=utf-8", Format.JSON),
        (msgpack.packb({"input": "hi"}), MSGPACK_TYPE, Format.MSGPACK),
        (msgpack.packb({"input": "hi"}), "application/x-msgpack", Format.MSGPACK),
        (msgpack.packb({"input": "hi", "temperature": 1.0}), None, Format.MSGPACK),
    ],
    ids=["json", "json-after-space", "text", "text-typed", "json-typed", "msgpack", "msgpack-old-name", "msgpack-bare"],
)
def test_decode_finds_the_format_and_the_question(payload: bytes, content_type: str | None, format: Format) -> None:
    """A content type decides; without one the first byte and UTF-8 do."""
    request, found = wire.decode_request(payload, agent="house", content_type=content_type)
    assert found is format
    assert request.messages == (Message("user", "hi"),)


@pytest.mark.parametrize("content_type", [None, JSON_TYPE])
def test_decode_skips_a_byte_order_mark_in_front_of_json(content_type: str | None) -> None:
    """Windows' editors, PowerShell and .NET's UTF-8 writers put one there; the id is not lost to a text."""
    payload = b'\xef\xbb\xbf{"input": "hi", "id": "a"}'
    request, found = wire.decode_request(payload, agent="house", content_type=content_type)
    assert (found, request.id, request.messages) == (Format.JSON, "a", (Message("user", "hi"),))
    assert wire.decode(payload, Format.JSON) == {"input": "hi", "id": "a"}


def test_decode_skips_a_byte_order_mark_in_front_of_a_text_and_of_arguments() -> None:
    """It is no character of what was said, and a call's arguments are JSON in a text."""
    assert wire.decode_request(b"\xef\xbb\xbfhi", agent="house", content_type=None)[0].messages[0].content == "hi"
    assert decode(called('\ufeff{"on": true}')).messages[1].tool_calls[0].arguments == {"on": True}


def test_decode_text_keeps_every_character() -> None:
    """A bare text is the question as it stands, spaces and all."""
    request, _ = wire.decode_request("  Grüße 🌱\n".encode(), agent="house", content_type=None)
    assert request.messages[0].content == "  Grüße 🌱\n"


def test_decode_takes_every_field_of_the_contract() -> None:
    """Each optional field reaches the request under its own name."""
    body = {
        "input": "hi", "id": "a", "agent": "house", "conversation": "c", "priority": "batch", "deadline_s": 2.5,
        "route": "local", "privacy": "any", "stream": True, "reply_to": "r/t", "response_schema": {"type": "object"},
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"],
    }  # fmt: skip
    request = decode(body, agent=None)
    assert request == Request(
        agent="house",
        messages=(Message("user", "hi"),),
        id="a",
        conversation="c",
        priority=Priority.BATCH,
        deadline_s=2.5,
        route=Preference.LOCAL,
        privacy=Privacy.ANY,
        stream=True,
        reply_to="r/t",
        response_schema={"type": "object"},
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop=("x",),
    )


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "input"),
        ({"input": "a", "messages": []}, "either"),
        ({"input": " \n"}, "input"),
        ({"messages": []}, "last one must be the user's"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "last one must be the user's"),
        ({"messages": [{"role": "user", "content": ""}]}, "with text"),
        ({"messages": [{"role": "robot", "content": "a"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only parts of type text"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "x"}}]}]}, "assistant"),
        (called("not json"), "not JSON"),
        (called("[1]"), "not a JSON object"),
        (called("null"), "not a JSON object"),
        ({"input": "a", "max_tokens": "5"}, "max_tokens"),
        ({"input": "a", "max_tokens": True}, "max_tokens"),
        ({"input": "a", "max_tokens": 0}, "max_tokens: 0 is outside 1"),
        ({"input": "a", "temperature": 2.1}, "temperature"),
        ({"input": "a", "temperature": float("nan")}, "valid json"),
        ({"input": "a", "top_p": -0.1}, "top_p"),
        ({"input": "a", "seed": 2**32}, "seed"),
        ({"input": "a", "deadline_s": -1}, "deadline_s"),
        ({"input": "a", "deadline_s": 8 * 86400}, "deadline_s"),
        ({"input": "a", "priority": "urgent"}, "priority"),
        ({"input": "a", "route": "mars"}, "route"),
        ({"input": "a", "id": ""}, "id: 1 to 128 bytes"),
        ({"input": "a", "id": "ä" * 65}, "id: 1 to 128 bytes, not 130"),
        ({"input": "a", "conversation": "x" * 129}, "conversation"),
        ({"input": "a", "stop": ["x"] * 17}, "stop"),
        ({"input": "a", "stop": ""}, "stop"),
        ({"input": "a", "sparkle": 1}, "sparkle.*allowed are input, messages"),
        ({"input": "a", "agent": "garden"}, "sent to 'house' and names 'garden'"),
        ({"input": "a", "response_schema": ["x"]}, "response_schema"),
        ([1], "not a list"),
        ("text", "not a text"),
        (None, "not nothing"),
        (5, "not int"),
    ],
)
def test_decode_refuses_what_is_wrong_and_names_it(body: object, names: str) -> None:
    """A bad field is a bad_request whose message says which one and what is allowed."""
    with pytest.raises(BadRequest, match=names):
        decode(body)


def test_decode_without_an_agent_anywhere_is_refused() -> None:
    """Neither topic nor body names the agent."""
    with pytest.raises(BadRequest, match="agent"):
        decode({"input": "a"}, agent=None)


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (b"", None),
        (b"{", None),
        (b'{"input": "\\ud800"}', None),
        (b'{"input": "\xff"}', JSON_TYPE),
        (b"\xff\xfe", "text/plain"),
        (b"\xc1", MSGPACK_TYPE),
        (b"\x81\xa5input\xa1\xff", MSGPACK_TYPE),
        (b"\x81\x80\x01", MSGPACK_TYPE),
        (b"\xff", None),
        (b"<a/>", "application/xml"),
    ],
)
def test_decode_refuses_bytes_that_are_no_request(payload: bytes, content_type: str | None) -> None:
    """Broken bytes are a bad_request, never another exception."""
    with pytest.raises(BadRequest):
        wire.decode_request(payload, agent="house", content_type=content_type)


@pytest.mark.parametrize("format", [Format.JSON, Format.MSGPACK])
def test_decode_refuses_every_cut_of_a_request(format: Format) -> None:
    """A payload cut anywhere is refused: half a request is never taken for a whole one."""
    body = called({"lamp": "desk", "level": 1.5})
    whole = msgpack.packb(body) if format is Format.MSGPACK else json.dumps(body).encode()
    for length in range(len(whole)):
        with pytest.raises(BadRequest):
            wire.decode_request(whole[:length], agent="house", content_type=wire.CONTENT_TYPES[format])


@pytest.mark.parametrize(
    "value",
    [
        msgpack.ExtType(5, b"x"),
        msgpack.Timestamp(1, 2),
        b"\xff",
        {1: 2},
        {"a": {b"k": 1}},
        [[{None: 1}]],
    ],
    ids=["ext", "timestamp", "bytes", "int-key", "bytes-key", "null-key"],
)
def test_decode_refuses_msgpack_that_json_cannot_say(value: object) -> None:
    """The store keeps requests as JSON, so what has no JSON form is refused at the door."""
    payload = msgpack.packb({"input": "a", "response_schema": {"x": value}})
    with pytest.raises(BadRequest, match="text keys"):
        wire.decode_request(payload, agent="house", content_type=MSGPACK_TYPE)


def test_decode_takes_a_request_of_the_largest_size_and_refuses_one_byte_more() -> None:
    """256 KiB is the bound."""
    assert wire.decode_request(b"x" * wire.MAX_REQUEST_BYTES, agent="a", content_type=None)
    with pytest.raises(TooLarge, match=str(wire.MAX_REQUEST_BYTES)):
        wire.decode_request(b"x" * (wire.MAX_REQUEST_BYTES + 1), agent="a", content_type=None)


def nested(levels: int) -> Any:
    """A map of that many levels."""
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def test_decode_takes_32_levels_and_refuses_33() -> None:
    """The body itself is the first level."""
    assert decode({"input": "a", "response_schema": nested(31)}).response_schema == nested(31)
    with pytest.raises(TooLarge, match="32 levels"):
        decode({"input": "a", "response_schema": nested(32)})


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [(b'{"a":' + b"[" * 200_000, JSON_TYPE), (b"\x91" * 200_000, MSGPACK_TYPE)],
    ids=["json", "msgpack"],
)
def test_decode_answers_bottomless_nesting_as_too_large(payload: bytes, content_type: str) -> None:
    """No nesting reaches the end of the stack."""
    with pytest.raises(TooLarge):
        wire.decode_request(payload, agent="house", content_type=content_type)


@pytest.mark.parametrize("levels", [33, 20_000])
def test_decode_counts_the_levels_inside_the_text_of_a_calls_arguments(levels: int) -> None:
    """Arguments may be a text of JSON, which is bounded like the rest."""
    assert decode(called('{"a":' * 32 + "1" + "}" * 32)).messages[1].tool_calls
    with pytest.raises(TooLarge, match="tool_calls"):
        decode(called('{"a":' * levels + "1" + "}" * levels if levels < 99 else '{"a":' * levels))


@pytest.mark.parametrize("arguments", ['{"lamp": "desk"}', {"lamp": "desk"}], ids=["text", "map"])
def test_decode_reads_a_calls_arguments_as_text_and_as_map(arguments: object) -> None:
    """OpenAI clients send a text, others a map; both mean the same."""
    assert decode(called(arguments)).messages[1] == Message("assistant", "", (ToolCall("lamp", {"lamp": "desk"}),))


def test_decode_joins_the_text_parts_of_a_message() -> None:
    """Content may be a list of parts."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert decode({"messages": [{"role": "user", "content": parts}]}).messages == (Message("user", "ab"),)


SAME = {"id": "other", "deadline_s": 5, "stream": True, "reply_to": "x", "priority": "batch"}
OTHER = {
    "input": "ho", "conversation": "c", "route": "local", "privacy": "any", "response_schema": {}, "max_tokens": 5,
    "temperature": 0.5, "top_p": 0.5, "seed": 1, "stop": "x",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), SAME.items(), ids=SAME)
def test_digest_ignores_how_a_request_is_named_timed_and_carried(name: str, value: object) -> None:
    """A retry with another deadline is the same request."""
    assert wire.digest(decode({"input": "hi", name: value})) == wire.digest(decode({"input": "hi"}))


@pytest.mark.parametrize(("name", "value"), OTHER.items(), ids=OTHER)
def test_digest_tells_contents_apart(name: str, value: object) -> None:
    """Whatever changes the answer changes the digest."""
    assert wire.digest(decode({"input": "hi", name: value})) != wire.digest(decode({"input": "hi"}))


def test_digest_does_not_depend_on_the_order_of_keys_or_the_format() -> None:
    """A client may write its maps in any order and any encoding."""
    body = {"input": "hi", "response_schema": {"b": 1, "a": {"d": 2, "c": 3}}}
    turned = {"response_schema": {"a": {"c": 3, "d": 2}, "b": 1}, "input": "hi"}
    packed, _ = wire.decode_request(msgpack.packb(turned), agent="house", content_type=None)
    assert wire.digest(decode(body)) == wire.digest(packed)


def test_rid_is_unique_and_sorts_by_age() -> None:
    """12 hex digits of time, then chance."""
    rids = [wire.new_rid() for _ in range(1000)]
    assert len(set(rids)) == 1000
    assert all(re.fullmatch("[0-9a-f]{22}", rid) for rid in rids)
    assert [rid[:12] for rid in rids] == sorted(rid[:12] for rid in rids)


def test_reply_has_the_fields_of_the_contract_in_their_order() -> None:
    """Absent things are null, not left out."""
    body = json.loads(wire.reply_bytes(Reply(id=None, rid="r", status=Status.DONE, output="ä")))
    assert list(body) == [
        "id", "rid", "status", "output", "finish", "outcome", "tool_calls", "route", "usage", "timing", "degraded",
        "error",
    ]  # fmt: skip
    assert body["id"] is None
    assert body["error"] is None
    assert list(body["usage"]) == ["prompt_tokens", "cached_tokens", "completion_tokens", "decode_steps"]
    assert list(body["timing"]) == [
        "queue_ms", "load_ms", "prefill_ms", "first_token_ms", "decode_ms", "tools_ms", "other_ms",
        "total_ms",
    ]  # fmt: skip


@pytest.mark.parametrize("format", list(Format))
def test_encode_reply_says_the_same_in_every_format(format: Format) -> None:
    """A text request is answered in JSON."""
    body = wire.reply_bytes(Reply(id="a", rid="r", status=Status.DONE, output="Grüße"))
    encoded = wire.encode_reply(body, format)
    read = msgpack.unpackb(encoded) if format is Format.MSGPACK else json.loads(encoded)
    assert read == json.loads(body)
    assert wire.content_type(format) == (MSGPACK_TYPE if format is Format.MSGPACK else JSON_TYPE)
    assert wire.encode_reply(body, format) == encoded


def test_encode_reply_with_a_number_beyond_64_bits_rounds_it() -> None:
    """A model may write any number of digits; MessagePack must not lose the reply over it."""
    record = ToolRecord("t", {"n": 10**30, "small": 2**63}, {}, True)
    body = wire.reply_bytes(Reply(id="a", rid="r", status=Status.DONE, tool_calls=(record,)))
    read = msgpack.unpackb(wire.encode_reply(body, Format.MSGPACK))
    assert read["tool_calls"][0]["arguments"] == {"n": 1e30, "small": 2**63}


@pytest.mark.parametrize(
    ("error", "code", "retryable", "after"),
    [
        (Busy("full", retry_after_s=2.0), "busy", True, 2.0),
        (NoLink("gone"), "no_link", True, None),
        (BadRequest("no"), "bad_request", False, None),
    ],
)
def test_refusal_tells_the_code_and_whether_to_ask_again(
    error: BadRequest, code: str, retryable: bool, after: float | None
) -> None:
    """What a client needs to decide is in the reply."""
    body = json.loads(wire.refusal(error, id="mine"))
    assert body["status"] == "refused"
    assert body["id"] == "mine"
    assert body["rid"]
    fault = body["error"]
    assert (fault["code"], fault["retryable"], fault["retry_after_s"]) == (code, retryable, after)


@pytest.mark.parametrize(
    ("value", "levels"), [(1, 0), ("x", 0), ({}, 1), ([[]], 2), ({"a": [{"b": ()}]}, 4), ([1, [2], {"a": {}}], 3)]
)
def test_depth_counts_the_levels_of_maps_and_lists(value: object, levels: int) -> None:
    """The deepest branch counts."""
    assert wire.depth(value) == levels


def test_depth_stops_at_its_limit() -> None:
    """A deep value costs no more than the limit, and no stack."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert wire.depth(value) == wire.MAX_DEPTH + 1
    while value:  # taken apart by hand: freeing it would recurse
        value = value.pop()


@pytest.mark.parametrize(
    ("payload", "content_type", "says"),
    [
        ("Küche".encode("latin-1"), None, r"neither UTF-8 \(text or JSON\) nor a msgpack map: byte 0xfc at offset 1"),
        ("20 °C in der Küche".encode("cp1252"), None, "byte 0xb0 at offset 3 is no UTF-8; send UTF-8, not Latin-1"),
        ("ä".encode("latin-1"), None, "byte 0xe4 at offset 0"),
        ("wie warm?".encode("utf-16"), None, "byte order mark of UTF-16; send UTF-8"),
        ('{"input": "Küche"}'.encode("latin-1"), None, "not valid json: byte 0xfc at offset 12 is no UTF-8"),
        ('{"input": "Küche"}'.encode("latin-1"), JSON_TYPE, "not valid json: byte 0xfc at offset 12 is no UTF-8"),
        ("Küche".encode("latin-1"), "text/plain", "text by its content type, and byte 0xfc at offset 1 is no UTF-8"),
        (b"\xfc", MSGPACK_TYPE, "is a map with `input`|not valid msgpack"),
    ],
)
def test_text_in_another_encoding_is_told_where_it_is_none_of_ours(
    payload: bytes, content_type: str | None, says: str
) -> None:
    """Its sender knows nothing of msgpack, which has bytes of that kind."""
    with pytest.raises(BadRequest, match=says):
        wire.decode_request(payload, agent="house", content_type=content_type)
