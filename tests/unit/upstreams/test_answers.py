"""What servers answer, into one shape; and what is no answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.types import RawCall
from edged.upstreams import answers
from edged.upstreams.answers import Assembly, Events, Parsed
from edged.upstreams.failures import Complaint, ExchangeFailed
from edged.upstreams.link import Sign


def whole(value: Any) -> Parsed:
    return answers.whole(value if isinstance(value, bytes) else json.dumps(value).encode(), secret=None)


def said(message: Any, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": finish}], **more}


def call(arguments: Any, name: str = "f", **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **more}


def streamed(*deltas: Any, finish: str | None = "stop") -> Parsed:
    assembly = Assembly(secret=None)
    for delta in deltas:
        assembly.take(json.dumps({"choices": [{"delta": delta, "finish_reason": None}]}))
    if finish:
        assembly.take(json.dumps({"choices": [{"delta": {}, "finish_reason": finish}]}))
    return assembly.parsed()


@pytest.mark.parametrize(
    ("body", "parsed"),
    [
        (said({"content": "hi"}), Parsed(text="hi", calls=(), finish="stop")),
        (said({"content": None}, "length"), Parsed(text="", calls=(), finish="length")),
        (said({"content": ""}, "content_filter"), Parsed(text="", calls=(), finish="content_filter")),
        (said({"content": "hi"}, "end_turn"), Parsed(text="hi", calls=(), finish="stop")),
        (said({"content": "hi"}, "max_tokens"), Parsed(text="hi", calls=(), finish="length")),
        (said({"content": "hi"}, None), Parsed(text="hi", calls=(), finish="stop")),
        (
            said({"tool_calls": [call('{"a": 1}'), call("{not json", "g")]}, "tool_calls"),
            Parsed(text="", calls=(RawCall("f", '{"a": 1}'), RawCall("g", "{not json")), finish="tool_calls"),
        ),
        (
            said({"content": "Sure.", "tool_calls": [call({"a": 1})]}, "stop"),
            Parsed(text="Sure.", calls=(RawCall("f", '{"a":1}'),), finish="tool_calls"),
        ),
        (
            said({"content": "hi", "reasoning_content": "hm"}, usage={"prompt_tokens": 5, "completion_tokens": 2}),
            Parsed(text="hi", calls=(), finish="stop", prompt_tokens=5, completion_tokens=2, reasoning="hm"),
        ),
        (
            said({"content": "hi", "reasoning": "hm"}),
            Parsed(text="hi", calls=(), finish="stop", reasoning="hm"),
        ),
        (
            said({"content": "hm</think>\n\nhi", "reasoning": {"effort": "low"}}),
            Parsed(text="hi", calls=(), finish="stop", reasoning="hm", unopened=True),
        ),
        (
            said({"content": "hi"}, usage={"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}),
            Parsed(text="hi", calls=(), finish="stop", prompt_tokens=5, cached_tokens=3),
        ),
        (
            said({"content": "hi"}, usage={"prompt_tokens": -5, "completion_tokens": 10**18}),
            Parsed(text="hi", calls=(), finish="stop"),
        ),
    ],
    ids=[
        "text", "cut-at-max-tokens", "filtered", "another-word-for-stop", "another-word-for-length", "no-finish-reason",
        "calls", "ollama-text-and-call", "usage-and-thoughts", "thoughts-by-another-name", "thought-unopened",
        "cached", "impossible-usage",
    ],
)  # fmt: skip
def test_whole_answers_of_many_servers_come_into_one_shape(body: Any, parsed: Parsed) -> None:
    """Finish reasons are four words, calls are unchecked text, counts that cannot be are none."""
    assert whole(body) == parsed


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "an empty one"),
        (b"  <html>log in</html>", "an HTML page"),
        (b"hello", "no JSON"),
        (b'{"choices": [', "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"error": ' + b"[" * 100_000, "no JSON"),
        ({}, "no choices"),
        ({"choices": []}, "no choices"),
        ([1], "Expected `object"),
        ({"choices": {"0": 1}}, "choices"),
        ({"choices": [{"finish_reason": "stop"}]}, "message"),
        (said({"content": 5}), "content"),
        (said({"content": "x"}, 5), "finish_reason"),
        (said({"content": "x"}, usage={"prompt_tokens": "many"}), "prompt_tokens"),
        (said({"tool_calls": [{"function": {"arguments": "{}"}}]}), "without a name"),
        (said({"tool_calls": "f()"}), "tool_calls"),
        (said({"content": "x"}, "error"), "error"),
    ],
)
def test_whole_what_is_no_answer_is_weak_and_named(body: Any, words: str) -> None:
    """Never an exception of the parser, never taken for an answer."""
    with pytest.raises(ExchangeFailed, match=words) as caught:
        whole(body)
    assert caught.value.sign is Sign.WEAK


def test_whole_error_object_with_status_200_is_a_complaint() -> None:
    """Gateways do that when their own upstream fails."""
    with pytest.raises(Complaint) as caught:
        whole({"error": {"message": "overloaded", "code": 529}})
    assert (caught.value.status, caught.value.words) == (529, "overloaded")


@pytest.mark.parametrize("unopened", [False, True])
def test_assembly_keeps_thoughts_apart(unopened: bool) -> None:
    """Those that a server splits off, and those in the text; also where only the tag that closes tells of them."""
    assembly = Assembly(secret=None, names=("f",), unopened=unopened)
    deltas: list[Any] = [{"reasoning_content": "a"}, {"reasoning": "b", "content": ""}, {"content": "c</th"}]
    deltas += [{"content": 'ink>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'}]
    thoughts = []
    for delta in deltas:
        assembly.take(json.dumps({"choices": [{"delta": delta, "finish_reason": None}]}))
        thoughts.append(assembly.thoughts())
    assembly.take(json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]}))
    assembly.rest()
    calls = (RawCall("f", "{}"),)
    told = Parsed(text="", calls=calls, finish="tool_calls", reasoning="abc", unopened=True)
    assert assembly.parsed() == told
    assert "".join(thoughts) == ("abc" if unopened else "ab")


def test_assembly_puts_text_calls_and_usage_together() -> None:
    """Deltas of two calls come interleaved; the usage comes last, without a choice."""
    assembly = Assembly(secret=None)
    chunks: list[Any] = [
        {"choices": [], "prompt_filter_results": []},
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "Let me "}}]},
        {"choices": [{"delta": {"content": "see."}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "x", **call("")}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 1, "id": "y", **call("", "g")}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}},
    ]
    texts = [assembly.take(json.dumps(chunk)) for chunk in chunks]
    assert assembly.take("[DONE]") == assembly.take("what follows does not count") == ""
    assert [text for text in texts if text] == ["Let me ", "see."]
    assert assembly.done
    assert assembly.parsed() == Parsed(
        text="Let me see.",
        calls=(RawCall("f", '{"a": 1}'), RawCall("g", "{}")),
        finish="tool_calls",
        prompt_tokens=9,
        completion_tokens=4,
    )


@pytest.mark.parametrize(
    "deltas",
    [
        [{"tool_calls": [call("{}", "a", index=0, id="1")]}, {"tool_calls": [call("{}", "b", index=0, id="2")]}],
        [{"tool_calls": [call("{}", "a")]}, {"tool_calls": [call("{}", "b")]}],
        [{"tool_calls": [call("{", "a", id="1")]}, {"tool_calls": [call("}", "a", id="1"), call("{}", "b", id="2")]}],
        [{"tool_calls": [call({}, "a", index=1), call({}, "b", index=0)]}],
        [
            {"tool_calls": [call("{", "a", index=0, id="1")]},
            {"tool_calls": [call("}", "a", index=0, id="1")]},
            {"tool_calls": [call("{}", "b", index=1, id="2")]},
        ],
    ],
    ids=["all-are-index-0", "no-index-no-id", "no-index", "objects-in-any-order", "name-repeated"],
)
def test_assembly_tells_calls_apart_however_servers_number_them(deltas: list[Any]) -> None:
    """By index, else by id, else by name."""
    assert streamed(*deltas).calls == (RawCall("a", "{}"), RawCall("b", "{}"))


@pytest.mark.parametrize(
    ("deltas", "words"),
    [
        ([], "without an answer"),
        ([{"content": "The tank"}], "in the middle"),
        ([{"tool_calls": [call("{")]}], "middle"),
    ],
)
def test_assembly_without_a_finish_reason_is_a_cut_stream(deltas: list[Any], words: str) -> None:
    """Half an answer is none."""
    with pytest.raises(ExchangeFailed, match=words) as caught:
        streamed(*deltas, finish=None)
    assert caught.value.sign is Sign.WEAK


def test_assembly_error_object_in_the_stream_is_a_complaint() -> None:
    """The status was 200 before the server knew."""
    assembly = Assembly(secret="sk-1")
    assembly.take(json.dumps({"choices": [{"delta": {"content": "The"}}]}))
    with pytest.raises(Complaint) as caught:
        assembly.take(json.dumps({"error": {"message": "sk-1 is out", "code": "502", "type": "gateway"}}))
    assert (caught.value.status, caught.value.words, caught.value.code) == (502, "[key] is out", "gateway")


@pytest.mark.parametrize("data", ["<html>", "{", '{"choices": 5}', "[]", '{"choices": [{"delta": {"content": []}}]}'])
def test_assembly_garbage_is_weak(data: str) -> None:
    """Like an answer that is not streamed."""
    with pytest.raises(ExchangeFailed) as caught:
        Assembly(secret=None).take(data)
    assert caught.value.sign is Sign.WEAK


@pytest.mark.parametrize("body", [b'{"data": [{"id": "m"}]}', b'{"object": "list", "data": null}', b"{}"])
def test_listed_takes_any_json_object(body: bytes) -> None:
    """Ollama without a model has no data."""
    answers.listed(body)


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'{"data": "m"}'])
def test_listed_refuses_what_a_captive_portal_answers(body: bytes) -> None:
    """A page with status 200 is no sign of a server."""
    with pytest.raises(ExchangeFailed):
        answers.listed(body)


# -- the stream they come in ------------------------------------------------------------------------------------------


STREAM = (
    ": a comment\n\n"
    "event: message\nid: 7\ndata: {\"a\": \"grün\"}\n\n"
    "data:without a space\r\n\r\n"
    "data: two\ndata: lines\n\n"
    "retry: 5\n\n"
    "data\n\n"
    "data: 🌱\r\n\n"
    "data: [DONE]\n\n"
).encode()  # fmt: skip
DATA = ['{"a": "grün"}', "without a space", "two\nlines", "", "🌱", "[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_come_whole_however_the_stream_is_cut(size: int) -> None:
    """Comments, other fields, both line ends, several data lines, characters of several bytes."""
    events, got = Events(), []
    for at in range(0, len(STREAM), size):
        got += events.feed(STREAM[at : at + size])
    assert got + events.end() == DATA


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_events_of_every_truncated_stream_are_a_beginning_of_the_whole(cut: int) -> None:
    """What is incomplete stays inside; nothing is made up."""
    got = Events().feed(STREAM[:cut])
    assert got == DATA[: len(got)]


@pytest.mark.parametrize("last", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"])
def test_events_end_gives_a_last_event_without_its_empty_line(last: bytes) -> None:
    """A server that closes right after its last line has said it."""
    events = Events()
    assert events.feed(last) == []
    assert events.end() == ["[DONE]"]


def test_events_refuse_what_is_not_utf8() -> None:
    """Nothing is replaced silently."""
    with pytest.raises(UnicodeDecodeError):
        Events().feed(b"data: \xff\n\n")
