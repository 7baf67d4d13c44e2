"""A Chat as the body of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.errors import ModelUnavailable
from edged.types import Chat, Message, Sampling, ToolCall, ToolSpec
from edged.upstreams import request
from edged.upstreams.request import SchemaAs, Spelling

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
VALVE = ToolSpec("set_valve", "Open or close a valve.", {"type": "object", "properties": {"valve": {"enum": ["n"]}}})
STRICT, LOOSE, OBJECT = SchemaAs.STRICT, SchemaAs.LOOSE, SchemaAs.OBJECT


def a_chat(*messages: Message, **more: Any) -> Chat:
    return Chat(**{"key": "r1:0", "messages": messages or (Message("user", "hi"),), "max_tokens": 100, **more})


def written(chat: Chat, spelling: Spelling | None = None, *, stream: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.body(chat, "large", spelling or Spelling(), stream=stream))
    return body


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


def test_body_says_what_is_asked_and_no_more() -> None:
    """A plain question has no tools, no format, no stream, no seed."""
    assert written(a_chat(Message("system", "Be kind."), Message("user", "grün?"))) == {
        "model": "large",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "grün?"}],
        "max_tokens": 100,
        "temperature": 0.0,
        "top_p": 1.0,
    }


def test_body_passes_sampling_and_stops_on() -> None:
    """Each goes by its own name."""
    body = written(a_chat(sampling=Sampling(0.7, 0.9, 42), stop=("\n", "END")))
    assert [body[name] for name in ("temperature", "top_p", "seed", "stop")] == [0.7, 0.9, 42, ["\n", "END"]]


def test_body_streamed_asks_for_the_usage() -> None:
    """Without it a stream does not say what it cost."""
    body = written(a_chat(), stream=True)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(("may_call", "choice"), [(True, "auto"), (False, "none")])
def test_body_with_tools_says_whether_they_may_be_called(may_call: bool, choice: str) -> None:
    """They are told either way: the dialogue may hold calls of them."""
    body = written(a_chat(tools=(VALVE,), may_call=may_call))
    told = {"name": "set_valve", "description": "Open or close a valve.", "parameters": VALVE.parameters}
    assert body["tools"] == [{"type": "function", "function": told}]
    assert body["tool_choice"] == choice


def test_body_numbers_calls_and_results_take_the_numbers_in_order() -> None:
    """Over several turns, and with several calls in one message."""
    messages = written(
        a_chat(
            Message("user", "both, please"),
            Message("assistant", "", (call("a", x=1), call("b"))),
            Message("tool", "result of a"),
            Message("tool", "result of b"),
            Message("assistant", "And now", (call("a", x="grün"),)),
            Message("tool", "result of the third"),
            Message("assistant", "done"),
        )
    )["messages"]
    ids = [[c["id"] for c in m.get("tool_calls", [])] or m.get("tool_call_id") for m in messages]
    assert ids == [None, ["call_0", "call_1"], "call_0", "call_1", ["call_2"], "call_2", None]
    assert messages[1]["content"] == ""
    functions = [c["function"] for m in messages for c in m.get("tool_calls", [])]
    assert [f["name"] for f in functions] == ["a", "b", "a"]
    assert [json.loads(f["arguments"]) for f in functions] == [{"x": 1}, {}, {"x": "grün"}]
    assert all(c["type"] == "function" for m in messages for c in m.get("tool_calls", []))


def test_body_refuses_a_result_without_a_call() -> None:
    """No server takes it, now or later."""
    with pytest.raises(ModelUnavailable, match="without a call"):
        written(a_chat(Message("assistant", "", (call("a"),)), Message("tool", "1"), Message("tool", "2")))


@pytest.mark.parametrize(
    "chat",
    [a_chat(Message("user", "half a \ud83d pair")), a_chat(Message("assistant", "", (call("a", x="\ud83d"),)))],
    ids=["content", "arguments"],
)
def test_body_refuses_what_is_no_unicode(chat: Chat) -> None:
    """Half a surrogate pair cannot be sent, now or later."""
    with pytest.raises(ModelUnavailable, match="cannot be written as JSON"):
        written(chat)


@pytest.mark.parametrize(
    ("schema_as", "asked_for"),
    [
        (STRICT, {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}),
        (LOOSE, {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": False}}),
        (OBJECT, {"type": "json_object", "schema": SCHEMA}),
    ],
)
def test_body_asks_for_the_shape_as_the_server_takes_it(schema_as: SchemaAs, asked_for: dict[str, Any]) -> None:
    """From the most binding way to the least."""
    assert written(a_chat(response_schema=SCHEMA), Spelling(schema_as))["response_format"] == asked_for


@pytest.mark.parametrize("system", ["", "Be kind."])
def test_body_tells_the_schema_to_a_server_that_only_knows_json(system: str) -> None:
    """Once, in the one system text."""
    before = [Message("system", system)] if system else []
    messages = written(a_chat(*before, Message("user", "hi"), response_schema=SCHEMA), Spelling(OBJECT))["messages"]
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"].startswith(system)
    assert json.dumps(SCHEMA, separators=(",", ":")) in messages[0]["content"]


@pytest.mark.parametrize(
    ("spelling", "schema", "words", "other"),
    [
        (Spelling(), None, "Use 'max_completion_tokens' instead.", Spelling(STRICT, "max_completion_tokens")),
        (Spelling(STRICT, "max_completion_tokens"), None, "max_completion_tokens is too large", None),
        (Spelling(), SCHEMA, "Invalid schema for response_format 'answer'", Spelling(LOOSE)),
        (Spelling(LOOSE), SCHEMA, "loc: body, response_format, type", Spelling(OBJECT)),
        (Spelling(OBJECT), SCHEMA, "This response_format type is unavailable", None),
        (Spelling(), None, "This response_format type is unavailable", None),
        (Spelling(), SCHEMA, "maximum context length is 1024 tokens", None),
        (Spelling(), SCHEMA, "", None),
    ],
)  # fmt: skip
def test_respelled_changes_what_is_complained_of(
    spelling: Spelling, schema: dict[str, Any] | None, words: str, other: Spelling | None
) -> None:
    """Nothing else is tried again, and nothing twice."""
    assert request.respelled(spelling, a_chat(response_schema=schema), words) == other


def test_body_uses_the_name_of_the_bound_the_server_takes() -> None:
    """OpenAI's newer models refuse max_tokens."""
    body = written(a_chat(), Spelling(limit="max_completion_tokens"))
    assert body["max_completion_tokens"] == 100
    assert "max_tokens" not in body


def test_idempotency_key_differs_where_the_request_does() -> None:
    """Another spelling that this request does not use is the same request."""
    shaped, plain = a_chat(response_schema=SCHEMA), a_chat()
    assert request.idempotency_key(plain, Spelling(OBJECT)) == "r1:0"
    keys = {
        request.idempotency_key(shaped, Spelling(schema_as, limit))
        for schema_as in SchemaAs
        for limit in ("max_tokens", "max_completion_tokens")
    }
    assert len(keys) == 6
    assert "r1:0" in keys


def test_prompt_characters_count_everything_the_model_reads() -> None:
    """Text, calls, tools and the schema."""
    plain = request.prompt_characters(a_chat())
    assert plain == len("hi")
    assert request.prompt_characters(a_chat(tools=(VALVE,))) > plain + len(VALVE.name + VALVE.description)
    assert request.prompt_characters(a_chat(response_schema=SCHEMA)) > plain + len("properties")
    made = a_chat(Message("user", "hi"), Message("assistant", "", (call("abc", x=1),)))
    assert request.prompt_characters(made) == len('hiabc{"x":1}')
    assert [request.estimated_tokens(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_samplers_that_are_set_go_along_until_a_server_refuses_one() -> None:
    """The penalty of repetitions by both of its names; a neutral value is not sent."""
    plain = written(a_chat())
    chat = a_chat(sampling=Sampling(0.5, top_k=40, repeat_penalty=1.1, presence_penalty=0.5))
    sent = written(chat)
    assert {name: sent[name] for name in sent if name not in plain} == {
        "top_k": 40,
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
    }
    other = request.respelled(Spelling(), chat, "Unrecognized request argument supplied: top_k")
    assert other == Spelling(samplers=False)
    assert written(chat, other).keys() == plain.keys()
    assert request.idempotency_key(chat, other) != request.idempotency_key(chat, Spelling())
    assert request.respelled(other, chat, "top_k") is None
    assert request.respelled(Spelling(), a_chat(), "top_k") is None
