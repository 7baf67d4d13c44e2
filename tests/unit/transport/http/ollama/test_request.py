"""Requests to Ollama's API: what becomes of messages, tools and prompts."""

from __future__ import annotations

from typing import Any

import pytest

from edged.errors import BadRequest
from edged.transport.http.ollama import request
from edged.types import Message, ToolCall


def call(name: str, id: str | None = None, **arguments: Any) -> dict[str, Any]:
    """As an assistant's message has it."""
    return {"id": id, "function": {"name": name, "arguments": arguments, "index": 0}, "unknown": 1}


def result(content: str, **more: Any) -> dict[str, Any]:
    """As a client sends it."""
    return {"role": "tool", "content": content, **more}


CALLS = {"role": "assistant", "content": "", "tool_calls": [call("a", "1"), call("b", "2"), call("a", "3")]}


@pytest.mark.parametrize(
    ("results", "order"),
    [
        ([result("x"), result("y"), result("z")], "xyz"),
        ([result("x", tool_call_id="3"), result("y", tool_call_id="1"), result("z", tool_call_id="2")], "yzx"),
        ([result("x", tool_name="b"), result("y", tool_name="a"), result("z", tool_name="a")], "yxz"),
        ([result("x", tool_name="b"), result("y"), result("z")], "yxz"),
        ([result("x", tool_call_id="3"), result("y"), result("z")], "yzx"),
        ([result("x", tool_call_id="9"), result("y"), result("z")], "xyz"),
        ([result("x"), result("y"), result("z"), result("w")], "xyzw"),
        ([result("x")], "x"),
    ],
    ids=["position", "ids", "names", "one-name", "one-id", "unknown-id", "one-too-many", "too-few"],
)
def test_results_stand_in_the_order_of_their_calls(results: list[dict[str, Any]], order: str) -> None:
    """Home Assistant sends content only; others say which call they mean."""
    made = request.messages([{"role": "user", "content": "hi"}, CALLS, *results, {"role": "user", "content": "and?"}])
    assert [message.content for message in made[2:-1]] == list(order)
    assert made[1].tool_calls == (ToolCall("a", {}), ToolCall("b", {}), ToolCall("a", {}))


def test_messages_of_real_clients() -> None:
    """Without content, with thoughts that nobody is to read again, with fields that nobody knows."""
    raw: list[dict[str, Any]] = [
        {"role": "system", "content": "Be short.", "annotations": []},
        {"role": "assistant", "thinking": "hm", "images": None, "tool_calls": None},
        {"role": "assistant", "content": "<think>hm</think>Yes."},
        result("x"),
    ]
    assert request.messages(raw) == (
        Message("system", "Be short."), Message("assistant"), Message("assistant", "Yes."), Message("tool", "x"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"role": "developer"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content"),
        ({"role": "user", "tool_calls": [call("a")]}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [1]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages[0].tool_calls[0].function.name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{}"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_message_that_is_none_is_refused_by_name(message: dict[str, Any], where: str) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(BadRequest) as wrong:
        request.chat({"model": "m", "messages": [message, result("x")]})
    assert wrong.value.message.startswith(f"{where}: ")


def test_tools_as_clients_strip_them() -> None:
    """ollama-python leaves little of a schema; unknown fields are ignored."""
    bare = {"type": "function", "function": {"name": "a", "parameters": {}, "strict": True}, "cache": 1}
    full = {"function": {"name": "b", "description": "d", "parameters": {"type": "object", "properties": {"x": {}}}}}
    open_, closed = request.tools([bare, full])
    assert (open_.name, open_.description, open_.parameters["additionalProperties"]) == ("a", "", True)
    assert (closed.name, closed.description, closed.parameters["properties"]) == ("b", "d", {"x": {}})
    for tool in (
        1,
        {"type": "web_search"},
        {"type": "function"},
        {"function": {"name": "a b"}},
        {"function": {"name": 1}},
    ):
        with pytest.raises(BadRequest, match=r"tools\[0\]"):
            request.tools([tool])


def test_dialogue_is_handed_out_and_comes_back() -> None:
    """Nothing of it is kept here; what others made is refused."""
    first = request.generate({"model": "m", "prompt": "hi", "system": "Be short."})
    context = request.context(first.messages, "Hello \N{WAVING HAND SIGN}")
    assert all(0 <= number < 256 for number in context)
    second = request.generate({"model": "m", "prompt": "and?", "context": context})
    assert [message.content for message in second.messages] == ["Be short.", "hi", "Hello \N{WAVING HAND SIGN}", "and?"]
    other = request.generate({"model": "m", "prompt": "and?", "context": context, "system": "Be long."})
    assert [message.content for message in other.messages][:2] == ["Be long.", "hi"]
    for wrong in ([1, 2, 3], [300], "text", 10**12, [["user", "x"]], {"a": 1}):
        with pytest.raises(BadRequest, match="context"):
            request.generate({"model": "m", "prompt": "x", "context": wrong})


def test_nothing_asked_is_no_dialogue() -> None:
    """The model is only to be loaded then, whatever else stands there."""
    assert request.generate({"model": "m", "prompt": "", "system": "x", "context": [1], "raw": True}).is_empty
    assert request.chat({"model": "m"}).is_empty
    assert not request.generate({"model": "m", "prompt": "", "suffix": "}"}).is_empty
