"""Calls that a model writes as text."""

from __future__ import annotations

import json

import pytest

from edged.types import RawCall
from edged.upstreams.answers import Assembly
from edged.upstreams.answers import whole as answer_of
from edged.upstreams.written import Written, whole

NAMES = ["set", "get"]
SET = '{"name": "set", "arguments": {"v": "a ```json [x], {}"}}'
GET = '{"name":"get","parameters":{}}'
SET_CALL, GET_CALL = RawCall("set", '{"v": "a ```json [x], {}"}'), RawCall("get", "{}")

CASES: list[tuple[str, str, tuple[RawCall, ...]]] = [
    (SET, "", (SET_CALL,)),
    (f"\n{SET}\n{GET}", "", (SET_CALL, GET_CALL)),
    (f"[{SET}, {GET}]", "", (SET_CALL, GET_CALL)),
    (f"```json\n{SET}\n```", "", (SET_CALL,)),
    (f"<tool_call>\n{SET}\n</tool_call>\n<tool_call>{GET}", "", (SET_CALL, GET_CALL)),
    (f"I look.\n<tool_call>{GET}</tool_call>", "I look.\n", (GET_CALL,)),
    (f"<think>which?</think>\n{GET}", "", (GET_CALL,)),
    ('{"name": "get", "arguments": "{}"}', "", (GET_CALL,)),
    ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', ()),
    ('{"name": "set"}', '{"name": "set"}', ()),
    ('{"name": "set", "arguments": {"v":', '{"name": "set", "arguments": {"v":', ()),
    (f"{SET} is how you call it.", f"{SET} is how you call it.", ()),
    ("```python\nprint(1)\n```", "```python\nprint(1)\n```", ()),
    ("A <tool_ is no mark", "A <tool_ is no mark", ()),
    ("words", "words", ()),
]


@pytest.mark.parametrize(("text", "words", "calls"), CASES)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_call_that_is_written_as_text_is_one(text: str, words: str, calls: tuple[RawCall, ...], size: int) -> None:
    """Whole, and in pieces of any size; what is no call stays text."""
    written = Written(NAMES)
    said = "".join(written.feed(text[at : at + size]) for at in range(0, len(text), size))
    assert (said + written.finish(), written.calls) == (words, calls)
    assert whole(text, NAMES) == (words, calls)


def test_text_stays_text_without_tools() -> None:
    """Someone may have asked for this JSON."""
    assert whole(SET, ()) == (SET, ())


def test_words_are_held_back_only_while_a_call_may_begin() -> None:
    """Others are streamed."""
    written = Written(NAMES)
    assert [written.feed(piece) for piece in ("```", "python", " a <", "b")] == ["", "```python", " a ", "<b"]


def chunk(content: str, finish: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": {"content": content}, "finish_reason": finish}]})


def test_answer_of_a_server_has_neither_thinking_nor_calls_in_its_text() -> None:
    """Whole and streamed; it ended for the calls then. Calls that came as such leave the text alone."""
    content = f"<think>x</think>Sure.\n<tool_call>{GET}</tool_call>"
    body = json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}).encode()
    parsed = answer_of(body, secret=None, names=NAMES)
    assert (parsed.text, parsed.calls, parsed.finish) == ("Sure.\n", (GET_CALL,), "tool_calls")
    assembly = Assembly(secret=None, names=NAMES)
    told = [assembly.take(chunk(piece)) for piece in ("<thi", "nk>x</think>", "Sure.\n<tool", f"_call>{GET}")]
    assembly.take(chunk("</tool_call>", "stop"))
    assert ("".join(told), assembly.rest()) == ("Sure.\n", "")
    streamed = assembly.parsed()
    assert (streamed.text, streamed.calls, streamed.finish) == (parsed.text, parsed.calls, parsed.finish)
    made = {"function": {"name": "set", "arguments": "{}"}}
    message = {"content": GET, "tool_calls": [made]}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    assert answer_of(body, secret=None, names=NAMES).calls == (RawCall("set", "{}"),)
