"""Messages in OpenAI's shape: the one parser, as edged's own API and as the OpenAI API use it."""

from __future__ import annotations

from typing import Any

import pytest

from edged.errors import TooLarge
from edged.types import Message, ToolCall
from edged.wire import dialogue
from edged.wire.dialogue import BadParameter, TooDeep

USER = {"role": "user", "content": "Hi"}


def call(id: str | None, name: str = "set", arguments: Any = '{"v": 1}') -> dict[str, Any]:
    """A call as clients send it back."""
    named = {} if id is None else {"id": id, "type": "function"}
    return {**named, "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    """A message that makes calls."""
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(id: str | None, content: str = "ok") -> dict[str, Any]:
    """A message that answers a call."""
    return {"role": "tool", "content": content, **({} if id is None else {"tool_call_id": id})}


BOTH: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "developer", "content": "D"}, {"role": "system", "content": [{"type": "text", "text": "S"}]}, USER],
    [USER, {"role": "assistant", "content": "A", "refusal": None, "annotations": []}, USER],
    [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER],
    [USER, calling(call("1"), call("2", "get", "")), result("1"), result("2"), USER],
    [USER, calling(call("1", arguments={"v": 1})), result("1"), USER],
]


@pytest.mark.parametrize("messages", BOTH)
def test_dialogue_means_the_same_on_both_apis(messages: list[dict[str, Any]]) -> None:
    """The strict reading refuses more; what it takes it takes alike."""
    assert dialogue.read(messages, strict=True) == dialogue.read(messages)


THOUGHTS: list[Any] = [
    "<think>\nHm.\n</think>\n\nYes.",
    "[THINK]Hm.[/THINK]Yes.",
    "Hm. </think>\nYes.",
    [{"type": "text", "text": "<think>Hm.</think>"}, {"type": "text", "text": "Yes."}],
]


@pytest.mark.parametrize("content", THOUGHTS)
@pytest.mark.parametrize("strict", [False, True])
def test_what_was_thought_is_no_part_of_the_dialogue(content: Any, strict: bool) -> None:
    """Clients send back what another server left in its answer. What people and tools say stays as it is."""
    said = "<think>Hm.</think>Yes."
    made = {**calling(call("1")), "content": content}
    read = dialogue.read([{"role": "user", "content": said}, made, result("1", said), USER], strict=strict)
    assert [message.content for message in read[:3]] == [said, "Yes.", said]
    assert read[1].tool_calls


def test_strict_reading_puts_results_into_the_order_of_their_calls() -> None:
    """The other one leaves messages where they are: what was stored before stays the same request."""
    messages = [USER, calling(call("1"), call("2")), result("2", "second"), result("1", "first"), USER]
    assert [m.content for m in dialogue.read(messages, strict=True)[2:4]] == ["first", "second"]
    assert [m.content for m in dialogue.read(messages)[2:4]] == ["second", "first"]


LENIENT: list[tuple[list[dict[str, Any]], str]] = [
    ([USER, calling(call(None)), result(None), USER], "messages[1].tool_calls[0].id"),
    ([USER, calling(call("1")), USER], "messages[1].tool_calls"),
    ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
    ([result("1")], "messages[0].role"),
    ([{"role": "assistant"}, USER], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}], "messages[0].content[0].y"),
    ([USER, calling({**call("1"), "colour": "red"}), result("1")], "messages[1].tool_calls[0].colour"),
]


@pytest.mark.parametrize(("messages", "param"), LENIENT)
def test_what_has_a_meaning_is_taken_on_edgeds_own_api_only(messages: list[dict[str, Any]], param: str) -> None:
    """OpenAI's names what is wrong."""
    assert len(dialogue.read(messages)) == len(messages)
    with pytest.raises(BadParameter) as caught:
        dialogue.read(messages, strict=True)
    assert caught.value.param == param


def test_calls_without_ids_stand_in_the_dialogue() -> None:
    """Arguments are text or a map."""
    assert dialogue.read([calling(call(None, arguments={"v": 1}))]) == (
        Message("assistant", "", (ToolCall("set", {"v": 1}),)),
    )


@pytest.mark.parametrize("strict", [False, True])
def test_arguments_that_are_nested_too_deep_are_too_large_and_named(strict: bool) -> None:
    """They are text in the request, whose depth nobody has counted yet."""
    messages = [USER, calling(call("1", arguments='{"a":' * 33 + "1" + "}" * 33)), result("1"), USER]
    with pytest.raises(TooDeep, match="deeper than 32 levels") as caught:
        dialogue.read(messages, strict=strict)
    assert isinstance(caught.value, TooLarge)
    assert (caught.value.code, caught.value.param) == ("too_large", "messages[1].tool_calls[0].function.arguments")
