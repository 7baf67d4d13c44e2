"""What servers and models write: taken apart the same however it comes, and whatever it is, an answer or one error."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edged.agent import answers
from edged.agent.dialects.chat_template import GENERIC, HERMES, parse_call, write_json
from edged.agent.grammars import cost
from edged.agent.privacy import detect
from edged.agent.privacy.masking import Masking
from edged.agent.privacy.vault import Restorer, Vault
from edged.completions.calls import CallReader, joined
from edged.completions.output import Output
from edged.config import PythonTool
from edged.tools import check
from edged.types import Chat, ChatAnswer, Message, RawCall, ToolCall, ToolSpec
from edged.upstreams import answers as answer
from edged.upstreams import failures
from edged.upstreams.answers import Assembly, Events
from edged.upstreams.failures import Complaint, ExchangeFailed
from tests.support.fuzz import (
    anything,
    cpu_s,
    cut,
    damaged,
    json_values,
    maps,
    peak_bytes,
    pieces,
    texts,
    written,
)

# -- streams of events -------------------------------------------------------------------------------------------------

lines = st.sampled_from(
    [b"data: {}", b"data:", b"data", b": x", b"", b"\r", b"id: 1", b"data: \xc3", b"\xbc", b"data: a"]
)
streams = st.one_of(
    st.binary(max_size=80), st.lists(lines, max_size=12).map(b"\n".join), damaged(b"data: a\n\ndata: b\r\n\r\n")
)


def events(parts: list[bytes]) -> list[str] | None:
    """The data of all events; None where it is not UTF-8."""
    reader = Events()
    try:
        return [data for part in parts for data in reader.feed(part)] + reader.end()
    except UnicodeDecodeError:
        return None


@given(st.data(), streams)
def test_events_are_the_same_however_they_are_cut(data: st.DataObject, stream: bytes) -> None:
    """Whole, in pieces, and byte by byte."""
    found = events([stream])
    assert events(cut(stream, data.draw(pieces(len(stream))))) == found
    assert events([bytes([byte]) for byte in stream]) == found


@pytest.mark.parametrize(
    "stream",
    [b"data: " + b"x" * 2**20, b"data: x\n" * 2**17, b"\n" * 2**20, b":" * 2**20 + b"\n\n"],
    ids=["one line", "one event", "empty lines", "a comment"],
)
@pytest.mark.parametrize("size", [16, 4096])
def test_events_take_time_in_proportion_however_small_their_pieces(stream: bytes, size: int) -> None:
    """A megabyte in reads of a few bytes."""
    parts = cut(stream, range(size, len(stream), size))
    assert cpu_s(lambda: events(parts)) < 3
    assert peak_bytes(lambda: events(parts)) < 64 * len(stream)


# -- answers -----------------------------------------------------------------------------------------------------------

calls = st.lists(
    maps(
        ("index", "id", "type", "function"),
        {
            "index": st.integers(-1, 2),
            "id": texts,
            "function": maps(("name", "arguments"), {"name": texts, "arguments": texts | json_values}),
        },
    ),
    max_size=3,
)
said = maps(("role", "content", "tool_calls", "refusal"), {"content": texts, "tool_calls": calls})
likely: st.SearchStrategy[Any] = st.recursive(
    st.just([]),
    lambda below: st.lists(
        maps(
            ("token", "logprob", "bytes", "top_logprobs"),
            {
                "token": texts,
                "logprob": st.floats(-9, 0),
                "bytes": st.lists(st.integers(-1, 256), max_size=3),
                "top_logprobs": below,
            },
        ),
        max_size=3,
    ),
    max_leaves=4,
)
choice = maps(
    ("message", "delta", "finish_reason", "logprobs"),
    {
        "message": said,
        "delta": said,
        "finish_reason": st.sampled_from(["stop", "length", "tool_calls", "error", "?"]),
        "logprobs": st.fixed_dictionaries({"content": likely}),
    },
)
usage = maps(("prompt_tokens", "completion_tokens", "prompt_tokens_details"))
documents = maps(
    ("choices", "usage", "error"),
    {"choices": st.lists(choice, max_size=2), "usage": usage, "error": maps(("message", "code", "type", "detail"))},
)
WHOLE = written({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}})
NESTED = b'{"choices":[{"message":{"content":"x"},"logprobs":{"content":' + (
    b'[{"token":"x","logprob":0,"top_logprobs":' * 300 + b"[]" + b"}]" * 300 + b"}}]}"
)  # fmt: skip
bodies = documents.map(written) | anything(WHOLE) | damaged(documents.map(written))


def meaning(error: ExchangeFailed | Complaint) -> None:
    told = error.meaning() if isinstance(error, Complaint) else error
    assert told.reason.strip()
    assert len(told.reason) < 2000
    assert told.reason.isprintable()


@given(bodies)
@example(NESTED)
@example(b'{"error":{"code":"0400' + b"9" * 5000 + b'"}}')
@example(b'{"error":{"code":"0400"}}')
@example(b'{"error":{"code":4000000}}')
@example(b'{"choices":[{"message":{"tool_calls":[{"function":{"name":"x","arguments":{"a":' + b"9" * 4200 + b"}}}]}}]}")
@example(b'{"choices":[{"message":{"content":1}}]}')
@example(b'{"choices":[{"message":{"' + b"x" * 5000 + b'":1,"content":"\x1b[2J"}}]}')
@example(b"[" * 5000)
@example(b'"\xff"')
def test_whole_answer_is_one_or_trouble(body: bytes) -> None:
    """With a reason that fits a line of the log."""
    try:
        parsed = answer.whole(body, secret="sk-key")
    except (ExchangeFailed, Complaint) as error:
        meaning(error)
    else:
        shown(parsed)
    try:
        names = answer.listed(body)
    except ExchangeFailed as error:
        meaning(error)
    else:
        assert names is None or all(isinstance(name, str) for name in names)


def shown(parsed: answer.Parsed) -> None:
    assert parsed.finish in ("stop", "length", "tool_calls", "content_filter")
    for count in (parsed.prompt_tokens, parsed.cached_tokens, parsed.completion_tokens):
        assert count is None or 0 <= count <= answer.MAX_TOKENS
    assert all(call.name for call in parsed.calls)
    msgspec.json.encode(parsed)


@given(st.lists(bodies.map(lambda body: body.decode(errors="replace")) | st.just("[DONE]") | texts, max_size=5))
@example(["[" * 5000])
def test_streamed_answer_is_one_or_trouble(chunks: list[str]) -> None:
    """What was given out as it came is the answer's text."""
    assembly = Assembly(secret=None)
    given_out = ""
    try:
        for chunk in chunks:
            given_out += assembly.take(chunk)
        parsed = assembly.parsed()
    except (ExchangeFailed, Complaint) as error:
        meaning(error)
    else:
        shown(parsed)
        assert parsed.text == given_out


@given(st.none() | st.integers(400, 599), bodies | json_values.map(written))
@example(None, b'{"error":{"code":"0400' + b"9" * 5000 + b'"}}')
def test_complaint_is_told_in_a_line(status: int | None, body: bytes) -> None:
    """Without the key, without what acts on a terminal."""
    told = failures.complaint(status, body + b"", secret="sk-key")
    meaning(told)
    assert told.status is None or 400 <= told.status < 600


@given(st.text(max_size=30) | texts | st.just("Wed, 21 Oct 2015 07:28:00 GMT"), st.none() | texts)
@example("9" * 5000, None)
@example("\u0661\u0662", None)
@example("Mon, 01 Jan 0001 00:00:00 +9999", None)
@example("Mon, 99 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 -0000")
@example("1 Jan 2024 00:00:00 " + "9" * 4400, None)
def test_retry_after_is_a_time_or_nothing(value: str, date: str | None) -> None:
    """Whatever a server writes into its headers."""
    pause_s = failures.retry_after_s(value, date, 1.7e9)
    assert pause_s is None or 0 <= pause_s < 1e12


# -- calls in what a model writes --------------------------------------------------------------------------------------

names = st.sampled_from(["set", "get.it", "a-b"])
arguments = st.dictionaries(texts, json_values.filter(lambda value: len(repr(value)) < 4000), max_size=3)
layouts = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"separators": (" , ", " : ")}])
marks = st.sampled_from(["{}", "<tool_call>\n{}\n</tool_call>", "```json\n{}\n```", " {}\n"])


@given(st.data(), st.lists(st.tuples(names, arguments, layouts, marks), min_size=1, max_size=3), st.booleans())
def test_calls_are_read_however_they_are_written_and_cut(
    data: st.DataObject, wanted: list[tuple[str, dict[str, Any], dict[str, Any], str]], by_character: bool
) -> None:
    """What is told of arguments is never taken back, and is what was written."""
    made = [mark.replace("{}", json.dumps({"name": n, "arguments": a}, **how)) for n, a, how, mark in wanted]
    text = "\n".join(made)
    reader = CallReader()
    parts = list(text) if by_character else cut(text, data.draw(pieces(len(text))))
    told = [piece for part in parts for piece in reader.feed(part)]
    assert [(call.name, call.value(), call.whole) for call in reader.calls()] == [(n, a, True) for n, a, _, _ in wanted]
    for i, call in enumerate(reader.calls()):
        assert "".join(piece.arguments for piece in joined(told) if piece.index == i) == call.arguments


SCRAPS = (
    *('{"name": "set", "arguments": ', '{"name":"get.it","arguments":{', "}", "{", "<tool_call>", "</tool_call>", '"'),
    *("```json", "```", "\n", " ", "\\", "STOP", "ST", "words", ":", '{"name": "\\q', "\ud7ff", "\u00fc", '{"na'),
)
generations = st.lists(st.sampled_from(SCRAPS) | texts, max_size=12).map("".join)


def read(output: Output, parts: list[str]) -> tuple[str, list[Any]]:
    words = ""
    told: list[Any] = []
    for part in parts:
        words += output.feed(part)
        told += output.call_pieces()
    words += output.finish()
    assert words == output.text
    return words, [(call.name, call.arguments, call.whole) for call in output.calls()]


@given(
    st.data(),
    generations,
    st.booleans(),
    st.sampled_from([HERMES, GENERIC]),
    st.sampled_from([(), ("STOP",), ("\n", "a")]),
)
@example(None, '{"name":"set","arguments":{"a":1}}{"name":"\\x","arguments":{', True, GENERIC, ())
@example(None, '<tool_call>{"name":"\n","arguments":{', True, HERMES, ())
def test_output_is_the_same_however_it_is_cut(
    data: st.DataObject | None, text: str, mixed: bool, calls: Any, stops: tuple[str, ...]
) -> None:
    """Also where it follows no grammar: a stand-in of a model, or a fault of ours, must not end the engine."""
    found = read(Output(["set", "get.it"], calls, stops, mixed=mixed), [text])
    assert read(Output(["set", "get.it"], calls, stops, mixed=mixed), list(text)) == found
    if data:
        places = data.draw(pieces(len(text)))
        assert read(Output(["set", "get.it"], calls, stops, mixed=mixed), cut(text, places)) == found


@given(generations)
def test_call_in_a_generation_is_one_or_a_value_error(text: str) -> None:
    """What was cut off is no call."""
    for way in (HERMES, GENERIC):
        try:
            call = parse_call(text, way)
        except ValueError:
            continue
        assert isinstance(call, ToolCall)


@pytest.mark.parametrize(
    "text",
    [
        "{" * 40_000,
        '{"name":"' + "x" * 40_000,
        '{"name": "set", "arguments": {"a":"' + "\\" * 40_000,
        " " * 40_000,
        "<tool_cal" * 5_000,
        "```json" + "\n" * 40_000,
    ],
    ids=["braces", "name", "backslashes", "spaces", "marks", "fence"],
)
def test_output_of_a_long_generation_takes_little_time(text: str) -> None:
    """As many tokens as a board's context holds, three characters each."""
    parts = cut(text, range(3, len(text), 3))
    for calls in (HERMES, GENERIC):
        assert cpu_s(lambda calls=calls: read(Output(["set"], calls, ("\n\n\n",), mixed=True), parts)) < 4  # type: ignore[misc]


tools = {"set": ToolSpec("set", "", {"type": "object", "properties": {"v": {"type": "integer"}}, "required": ["v"]})}
raw_calls = st.lists(
    st.builds(RawCall, names | texts, texts | json_values.map(json.dumps) | st.just('{"v": 1}')), max_size=20
)


@given(raw_calls, st.integers(0, 20))
@example([RawCall("set", "[" * 5000)], 3)
@example([RawCall("set", '{"v":' + "9" * 4200 + "}")], 3)
@example([RawCall("set", '{"v":1e400}')], 3)
@example([RawCall("set", '"' + "\\ud800" + '"')], 3)
def test_calls_of_an_upstream_are_made_or_told_back(raw: list[RawCall], left: int) -> None:
    """Those that are made fit their schema; what goes back can be sent."""
    made = asyncio.run(answers.checked(tools, tuple(raw), left))
    if isinstance(made, answers.Wrong):
        msgspec.json.encode(made.messages)
        return
    assert len(made) <= min(left, answers.MAX_CALLS)
    for call in made:
        assert check.problem_now(tools[call.name].parameters, call.arguments) is None


json_schemas = maps(
    (
        *("type", "properties", "required", "enum", "const", "minimum", "maximum", "multipleOf", "items", "anyOf"),
        *(
            "oneOf",
            "allOf",
            "$ref",
            "minItems",
            "maxLength",
            "format",
            "additionalProperties",
            "$defs",
            "minProperties",
        ),
        *("prefixItems", "not", "$schema", "$id", "dependentRequired", "uniqueItems", "propertyNames", "minContains"),
    ),
    {
        "type": st.sampled_from(["object", "string", "integer", "number", "array", "null", "boolean"]),
        "$ref": st.sampled_from(["#", "#/$defs/a", "http://x/y", "#/%"]),
        "$defs": st.fixed_dictionaries({"a": st.fixed_dictionaries({"$ref": st.just("#/$defs/a")})}),
        "$schema": st.sampled_from(sorted(check.DRAFTS)),
    },
)


@given(json_schemas, json_values)
@example({"type": "object", "$ref": "#"}, {})
@example({"multipleOf": 1e-320}, 5)
@example({"multipleOf": 0}, 5)
@example({"multipleOf": 10**4000}, 1.5)
@example({"multipleOf": 1e308}, 10**4000)
@example({"enum": [[[]] * 3]}, [[[]] * 3])
@example({"minLength": "x"}, "y")
@example({"$id": "http://[", "$ref": "x"}, 1)
@example({"minimum": 10**4299}, 1)
@example({"properties": {"a": {"$ref": "#/properties/a"}}}, {"a": 1})
@example({"required": 5}, {})
@example({"type": 7}, {})
@example({"enum": [], "type": ""}, None)
@example({"$id": []}, None)
@example({"$id": [], "$schema": "http://json-schema.org/draft-06/schema"}, None)
def test_any_schema_is_looked_at_and_any_value_checked(schema: dict[str, Any], value: Any) -> None:
    """A schema that is none is told so, at once, and nothing of it is fetched."""
    looked = cost.look(schema)
    assert looked.problem is None or looked.problem
    assert looked.ms >= 0
    wrong = check.problem_now(schema, value)
    assert wrong is None or 0 < len(wrong) <= check.MAX_PROBLEM


BRANCHES = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
COSTLY: dict[str, tuple[dict[str, Any], Any]] = {
    "branches": ({"$defs": BRANCHES | {"a40": {}}, "$ref": "#/$defs/a0"}, 1),
    "levels": (
        {"$defs": {"a": {"allOf": [{"properties": {"x": {"$ref": "#/$defs/a"}}}] * 2}}, "$ref": "#/$defs/a"},
        json.loads('{"x":' * 60 + "1" + "}" * 60),
    ),
    "errors": ({"items": {"type": "string"}}, [1] * 300_000),
    "enum": ({"items": {"enum": list(range(100))}}, [100] * 20_000),
    "old": (
        {"$schema": "http://json-schema.org/draft-04/schema", "definitions": BRANCHES, "$ref": "#/definitions/a0"},
        1,
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_schema_and_value_that_multiply_are_checked_within_bounds(name: str) -> None:
    """An answer of a stranger's against a schema of a stranger's, on the event loop."""
    schema, value = COSTLY[name]
    assert cpu_s(lambda: check.problem_now(schema, value)) < 4


# -- masking -----------------------------------------------------------------------------------------------------------

PERSONAL = (
    *("a@example.org", "b.c+d@mail.example.com", "+43 664 1234567", "(415) 555-2671", "4111 1111 1111 1111"),
    *("AT61 1904 3002 3457 3201", "192.168.1.20", "2001:db8::1", "00:1B:44:11:3A:B7", "[EMAIL_1]", "PHONE_2"),
    "\\[IP\\_3]",
    *("tel 0664 123", "0043 1 5", ":::", "@", "2x.png", "....", "[", "[EM", "_1"),
)  # fmt: skip
prose = st.lists(st.sampled_from(PERSONAL) | texts, max_size=8).map(" ".join) | st.lists(
    st.sampled_from(PERSONAL) | texts, max_size=6
).map("".join)


@given(prose)
@example("\\+43 664 1234567")
@example("\\a@example.org\\")
def test_what_is_personal_is_hidden_and_comes_back(text: str) -> None:
    """Found parts do not overlap; masked and restored, a text is what it was, and masking is done once for all."""
    found = detect.find(text)
    assert all(one.start < one.end <= len(text) for one in found)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))
    vault = Vault()
    vault.avoid([text])
    masked = vault.mask(text)
    assert vault.restore(masked) == text
    assert vault.mask(text) == masked
    for value, times in Counter(text[one.start : one.end] for one in found).items():
        assert masked.count(value) <= text.count(value) - times  # what stands in the middle of a word is none


@given(st.data(), prose, prose)
def test_restorer_gives_the_same_however_it_is_cut(data: st.DataObject, hidden: str, text: str) -> None:
    """An answer that comes in pieces is the one that comes whole."""
    vault = Vault()
    vault.mask(hidden)
    heard: list[str] = []
    restorer = Restorer(vault, heard.append)
    for part in cut(text, data.draw(pieces(len(text)))):
        restorer.piece(part)
    restorer.end()
    assert "".join(heard) == vault.restore(text)


secret = st.one_of(texts, prose, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())


@given(
    st.recursive(
        secret, lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3), max_leaves=6
    ),
    prose,
)
@example({"pin": 10**4200}, "x")
@example({"pin": [1, {"x": "a@example.org"}]}, "[PRIVATE_1] [PRIVATE_1]")
def test_result_of_a_tool_crosses_the_border_and_comes_back(value: Any, text: str) -> None:
    """What leaves is JSON without private values; a call with placeholders in it gets the values."""
    tool = PythonTool(python="m:f", description="d", parameters={"v": {"type": "string"}}, private=("pin",))
    masking = Masking({"t": tool})
    asked = Message("assistant", tool_calls=(ToolCall("t", {"v": text}),))
    chat = Chat(
        key="", messages=(asked, Message("tool", write_json({"pin": value})), Message("user", text)), max_tokens=9
    )
    out = masking.mask(chat)
    json.loads(out.messages[1].content)
    sent = json.dumps(out.messages[0].tool_calls[0].arguments)
    answered = ChatAnswer(
        text=out.messages[2].content, calls=(RawCall("t", sent),), finish="stop", prompt_tokens=1, cached_tokens=0,
        completion_tokens=1, first_token_ms=0.0, total_ms=0.0,
    )  # fmt: skip
    back = masking.restore(answered, shaped=False)
    assert back.text == text
    assert json.loads(back.calls[0].arguments) == {"v": text}


LONG = 64 * 1024  # characters; a request holds four times as many
TROUBLESOME = {
    "digits": "1",
    "digits and spaces": "1 ",
    "phone": "+1 ",
    "phones": "0043 664 ",
    "brackets": "(0",
    "dashes": "1-",
    "at": "a@",
    "letters": "a",
    "dots": "a.",
    "mail": "a.b@c.d-",
    "hosts": "x@" + "a." * 7,
    "iban": "AT61",
    "ibans": "AT61 1904 3002 3457 320 ",
    "card": "4111 ",
    "colons": "a:",
    "addresses": "1.2.",
    "words": "phone ",
    "told": "tel: 1 2 3 ",
    "placeholders": "[EMAIL_",
    "half": "[EMAIL_1",
    "backslashes": "\\[",
    "underlines": "EMAIL_1_",
    "quotes": "'",
    "plus": "a+",
}


@pytest.mark.parametrize("name", TROUBLESOME)
def test_patterns_take_time_in_proportion(name: str) -> None:
    """No expression goes back over what it has seen: each text is of what another one of them nearly matches."""
    unit = TROUBLESOME[name]
    text = (unit * (LONG // len(unit) + 1))[:LONG] + "@ +"
    vault = Vault()
    vault.avoid([text])
    vault.mask("a@example.org")

    def whole() -> None:
        assert vault.restore(vault.mask(text)) == text

    def streamed() -> None:
        restorer = Restorer(vault, lambda _: None)
        for part in cut(text, range(4, len(text), 4)):
            restorer.piece(part)
        restorer.end()

    assert cpu_s(whole) < 4
    assert cpu_s(streamed) < 4


def test_many_values_take_time_in_proportion() -> None:
    """A result of twenty thousand addresses, each another one."""
    text = " ".join(f"u{n}@example.org" for n in range(16_000))
    vault = Vault()
    assert cpu_s(lambda: vault.mask(text)) < 6
    assert len(re.findall(r"\[EMAIL_\d+\]", vault.mask(text))) == 16_000
