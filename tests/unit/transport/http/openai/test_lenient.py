"""What clients of other servers send: it works, has no effect and is named, or is refused because it would change the
answer. [http] strict refuses all of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.transport.http.openai import request as openai_request
from edged.types import Message, Sampling, ToolCall
from edged.wire.dialogue import BadParameter

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "get"}}


def payload(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def parsed(**fields: Any) -> openai_request.ChatRequest:
    return openai_request.parse(payload(**fields))


def asked(**fields: Any) -> Any:
    return openai_request.model_ask(parsed(**fields))


WORKS: list[tuple[dict[str, Any], str, Any]] = [
    ({"temperature": 1, "top_k": 40, "min_p": 0.05}, "sampling", Sampling(1.0, top_k=40, min_p=0.05)),
    ({"top_k": 40}, "sampling", Sampling(1.0, top_k=40)),  # as with top_p, it would change nothing otherwise
    ({"top_k": 1}, "sampling", Sampling(0.0, top_k=1)),
    ({"repeat_penalty": 1.1}, "sampling", Sampling(repeat_penalty=1.1)),
    ({"repetition_penalty": 1.1}, "sampling", Sampling(repeat_penalty=1.1)),
    ({"presence_penalty": 0.5, "frequency_penalty": -0.5}, "sampling",
     Sampling(presence_penalty=0.5, frequency_penalty=-0.5)),
    ({"max_tokens": 5, "max_completion_tokens": 3}, "max_tokens", 3),
    ({"max_tokens": -1, "max_completion_tokens": 3}, "max_tokens", 3),
    ({"response_format": {"type": "json_object", "schema": {"a": 1}}}, "response_schema", {"a": 1}),
    ({"response_format": {"type": "json_schema", "schema": {"a": 1}}}, "response_schema", {"a": 1}),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}}, "response_schema", {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "name", "value"), WORKS)
def test_parameter_of_another_server_works(fields: dict[str, Any], name: str, value: Any) -> None:
    """And nothing is ignored."""
    assert getattr(asked(**fields), name) == value
    assert parsed(**fields).ignored == ()


UNSET: list[dict[str, Any]] = [
    {"seed": -1},
    {"max_tokens": -1},
    {"max_completion_tokens": -2},
    {"top_k": -1, "min_p": -1},
    {"top_k": 0, "min_p": 0, "repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0.0},
    {"tool_choice": "auto"},
    {"tool_choice": {"type": "none"}, "tools": []},
    {"stop": "", "logit_bias": {}, "response_format": {}},
    {"top_logprobs": 0},
    {"metadata": {"run": 5}, "user": 7},
    {"best_of": 1, "echo": False, "ignore_eos": False, "format": None},
]


@pytest.mark.parametrize("fields", UNSET)
def test_neutral_value_is_the_same_as_none(fields: dict[str, Any]) -> None:
    """-1, null, and what is empty; nobody has to be told."""
    assert asked(**fields) == asked()
    assert parsed(**fields).ignored == ()


IGNORED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"chat_template_kwargs": {"enable_thinking": False}}, ("chat_template_kwargs",)),
    ({"reasoning_effort": "high"}, ("reasoning_effort",)),
    ({"store": True, "service_tier": "flex", "verbosity": "low"}, ("store", "service_tier", "verbosity")),
    ({"keep_alive": "5m", "options": {"num_ctx": 8192}}, ("keep_alive", "options")),
    ({"typical_p": 0.9, "mirostat": 2, "cache_prompt": True}, ("typical_p", "mirostat", "cache_prompt")),
    ({"stream_options": {"continuous_usage_stats": True}}, ("stream_options.continuous_usage_stats",)),
    ({"a b\r\nSet-Cookie: x": 1, "é" * 100: 1}, ("a_b__Set-Cookie__x", "_" * 64)),
]


@pytest.mark.parametrize(("fields", "names"), IGNORED)
def test_parameter_without_effect_is_named(fields: dict[str, Any], names: tuple[str, ...]) -> None:
    """And changes nothing."""
    assert asked(**fields) == asked()
    assert parsed(**fields).ignored == names


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"format": "json"}, "format"),
    ({"guided_json": {"type": "object"}}, "guided_json"),
    ({"grammar": "root ::= x"}, "grammar"),
    ({"system": "Be brief."}, "system"),
    ({"best_of": 2}, "best_of"),
    ({"n_predict": 5}, "n_predict"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 0, "max_completion_tokens": 5}, "max_tokens"),
    ({"seed": -2}, "seed"),
    ({"top_k": "many"}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"repetition_penalty": 0}, "repeat_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_parameter_that_would_change_the_answer_is_refused(fields: dict[str, Any], param: str) -> None:
    """By its name."""
    with pytest.raises(BadParameter) as caught:
        asked(**fields)
    assert caught.value.param == param


SEEN_ONLY_BY_OTHERS = [
    {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "provider_specific_fields": {"x": 1},
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "get", "arguments": "{}", "strict": True},
                "extra_content": {"signature": "x"},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "ok", "cache_control": {"type": "ephemeral"}},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Done"}]},
    {"role": "assistant", "content": None, "reasoning": "hm", "reasoning_details": None},
    {"role": "user", "content": "And?"},
]


def test_history_that_another_server_wrote_is_taken_without_its_reasoning() -> None:
    """Each name stands once."""
    chat = parsed(messages=SEEN_ONLY_BY_OTHERS)
    assert chat.messages == (
        Message("user", "Hi"),
        Message("assistant", "", (ToolCall("get", {}),)),
        Message("tool", "ok"),
        Message("assistant", "Done"),
        Message("assistant", ""),
        Message("user", "And?"),
    )
    assert chat.ignored == (
        "messages.content.cache_control",
        "messages.reasoning_content",
        "messages.provider_specific_fields",
        "messages.tool_calls.extra_content",
        "messages.tool_calls.function.strict",
        "messages.cache_control",
        "messages.content.thinking",
        "messages.reasoning",
    )


def test_tools_that_another_server_reads_more_of_are_taken() -> None:
    """Marks of a cache, for example."""
    chat = parsed(tools=[{**TOOL, "cache_control": {}, "function": {"name": "get", "defer_loading": True}}])
    assert [tool.name for tool in chat.tools] == ["get"]
    assert chat.ignored == ("tools.cache_control", "tools.function.defer_loading")


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 40},
        {"presence_penalty": 0.5},
        {"seed": -1},
        {"max_tokens": -1},
        {"chat_template_kwargs": {}},
        {"reasoning_effort": "high"},
        {"messages": [{**USER, "cache_control": {}}]},
        {"messages": SEEN_ONLY_BY_OTHERS},
        {"response_format": {"type": "json_object", "schema": {}}},
    ],
)
def test_strict_refuses_what_openai_does_not_document(fields: dict[str, Any]) -> None:
    """As before."""
    with pytest.raises(BadParameter):
        openai_request.parse(payload(**fields), strict=True)
