"""Requests for responses: what is read, what is refused, and what [http] strict makes of it."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import pytest
from openai.types.responses import response_create_params

from edged.completions.request import ToolChoice
from edged.transport.http.responses import items, request
from edged.types import Message, ToolCall
from edged.wire.dialogue import BadParameter

NOTE = {"type": "function", "name": "note", "parameters": {"type": "object", "properties": {}}}


def parsed(*, strict: bool = False, **fields: Any) -> request.ResponseRequest:
    return request.parse(json.dumps({"model": "m", "input": "hi", **fields}).encode(), strict=strict)


def test_every_documented_parameter_is_known() -> None:
    """Works, is of no effect, or is refused by name."""
    documented = set(get_type_hints(response_create_params.ResponseCreateParamsBase)) | {"stream"}
    others = {"image", "background_options", "access_programs"}  # about what is not offered here: ignored, and named
    assert documented - others <= set(request.Body.__struct_fields__) | set(request.REFUSED)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 4},
        {"seed": 1},
        {"max_tokens": 5},
        {"keep_alive": "5m"},
        {"truncation": "auto"},
        {"reasoning": {"effort": "high"}},
        {"text": {"verbosity": "low"}},
        {"tools": [{**NOTE, "cache_control": {}}]},
        {"input": [{"role": "user", "content": "hi", "name": "me"}]},
    ],
)
def test_strict_refuses_what_is_not_documented_or_has_no_effect(fields: dict[str, Any]) -> None:
    """Without it each is honoured, or named."""
    parsed(**fields)
    with pytest.raises(BadParameter):
        parsed(strict=True, **fields)


def test_strict_takes_what_is_documented() -> None:
    """Also values that mean nothing."""
    parsed(strict=True, store=None, stream=False, tools=[NOTE], temperature=0.5, max_output_tokens=9, include=[])


def test_smallest_bound_counts_and_minus_one_is_none() -> None:
    """Whatever API a client's words are of."""
    assert parsed(max_output_tokens=9, max_tokens=5, max_completion_tokens=7).max_tokens == 5
    assert parsed(max_output_tokens=9, max_tokens=-1).max_tokens == 9
    assert parsed(max_output_tokens=-1).max_tokens is None


@pytest.mark.parametrize(
    ("choice", "shown", "called"),
    [
        (None, 2, ToolChoice.AUTO),
        ("none", 2, ToolChoice.NONE),
        ({"type": "function", "name": "note"}, 1, ToolChoice.REQUIRED),
        ({"type": "allowed_tools", "mode": "required", "tools": [NOTE]}, 1, ToolChoice.REQUIRED),
    ],
)
def test_tools_are_flat_here_and_may_be_nested(choice: Any, shown: int, called: ToolChoice) -> None:
    """As chat completions have them: some clients send the same list to both."""
    nested = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
    made = parsed(tools=[NOTE, nested], tool_choice=choice)
    assert [tool.name for tool in made.tools] == ["note", "other"]
    assert (len(made.shown), made.choice) == (shown, called)


def test_calls_of_one_turn_are_one_message_and_results_come_in_their_order() -> None:
    """Chat templates know neither ids nor items."""
    made = parsed(
        input=[
            {"role": "user", "content": "do"},
            {"role": "assistant", "content": "Yes."},
            {"type": "function_call", "call_id": "a", "name": "note", "arguments": '{"n": 1}'},
            {"type": "function_call", "call_id": "b", "name": "note", "arguments": '{"n": 2}'},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "two"}]},
            {"type": "function_call_output", "call_id": "a", "output": "one"},
            {"type": "function_call", "call_id": "c", "name": "note", "arguments": ""},
            {"type": "function_call_output", "call_id": "c", "output": "three"},
        ]
    )
    assert items.messages("Be brief.", (), made.items) == (
        Message("system", "Be brief."),
        Message("user", "do"),
        Message("assistant", "Yes.", (ToolCall("note", {"n": 1}), ToolCall("note", {"n": 2}))),
        Message("tool", "one"),
        Message("tool", "two"),
        Message("assistant", "", (ToolCall("note", {}),)),
        Message("tool", "three"),
    )


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([{"role": "user", "content": "hi"}, {"role": "nobody", "content": "x"}], "input[1].role"),
        ([{"type": "function_call", "call_id": "a", "name": "n", "arguments": "[]"}], "input[0].arguments"),
        ([{"type": "function_call", "call_id": "a", "name": "n", "arguments": "{}"}], "input[0]"),
        (
            [{"role": "user", "content": "hi"}, {"type": "function_call_output", "call_id": "a", "output": ""}],
            "input[1]",
        ),
    ],
)
def test_error_names_the_item(given: Any, param: str) -> None:
    """Also beside instructions and items of earlier responses."""
    made = parsed(input=given)
    earlier: list[items.Item] = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}]
    for before in ([], earlier):
        with pytest.raises(BadParameter) as caught:
            items.messages("Be brief.", before, made.items)
        assert caught.value.param.startswith(param)


def test_call_of_an_earlier_response_without_its_output_is_told() -> None:
    """It belongs to no item of this request."""
    earlier: list[items.Item] = [{"type": "function_call", "call_id": "a", "name": "n", "arguments": "{}"}]
    with pytest.raises(BadParameter, match="no item of type function_call_output answers a") as caught:
        items.messages(None, earlier, parsed().items)
    assert caught.value.param == "input"
