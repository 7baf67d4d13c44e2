"""OpenAI's shapes: every documented parameter works, is of no effect by nature, or is refused by name."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, completion_create_params

from edged.completions.calls import CallPiece, WrittenCall
from edged.completions.request import ModelAnswer, ToolChoice
from edged.errors import BadRequest, TooLarge
from edged.transport.http.core.errors import retry_after
from edged.transport.http.core.steady import Steady
from edged.transport.http.openai import reply as shapes
from edged.transport.http.openai import request as openai_request
from edged.types import Fault, Finish, Message, Sampling, TokenLogprob, ToolCall
from edged.wire.dialogue import BadParameter

USER = {"role": "user", "content": "Hi"}
SET = {"type": "function", "function": {"name": "set", "parameters": {"properties": {"v": {"type": "string"}}}}}
GET = {"type": "function", "function": {"name": "get"}}


def parsed(**fields: Any) -> openai_request.ChatRequest:
    """As [http] strict has it; test_lenient.py has what is read without."""
    return openai_request.parse(json.dumps({"model": "m", "messages": [USER], **fields}).encode(), strict=True)


def asked(**fields: Any) -> Any:
    return openai_request.model_ask(parsed(**fields))


def dialogue(*messages: dict[str, Any]) -> tuple[Message, ...]:
    return parsed(messages=list(messages)).messages


def test_request_knows_every_parameter_that_openai_documents() -> None:
    """A new one of theirs is a decision of ours."""
    documented = set(get_type_hints(completion_create_params.CompletionCreateParamsStreaming))
    ours = {field.name for field in msgspec.structs.fields(openai_request.Body)}
    assert ours == documented


def test_request_of_the_least_is_a_question_with_the_defaults() -> None:
    """Greedy, one call at most, as many tokens as there is room for."""
    ask = asked()
    assert (ask.model, ask.messages) == ("m", (Message("user", "Hi"),))
    assert (ask.tools, ask.choice, ask.parallel, ask.response_schema) == ((), ToolChoice.AUTO, False, None)
    assert (ask.max_tokens, ask.sampling, ask.stop, ask.logprobs) == (None, Sampling(0.0, 1.0, None), (), None)


WORKS: list[tuple[dict[str, Any], str, Any]] = [
    ({"max_tokens": 5}, "max_tokens", 5),
    ({"max_completion_tokens": 5}, "max_tokens", 5),
    ({"temperature": 1, "top_p": 0.5, "seed": 7}, "sampling", Sampling(1.0, 0.5, 7)),
    ({"top_p": 0.5}, "sampling", Sampling(1.0, 0.5, None)),
    ({"seed": 7}, "sampling", Sampling(0.0, 1.0, 7)),
    ({"stop": "x"}, "stop", ("x",)),
    ({"stop": ["x", "y"]}, "stop", ("x", "y")),
    ({"stop": None}, "stop", ()),
    ({"logprobs": True}, "logprobs", 0),
    ({"logprobs": True, "top_logprobs": 20}, "logprobs", 20),
    ({"logprobs": False}, "logprobs", None),
    ({"response_format": {"type": "text"}}, "response_schema", None),
    ({"response_format": {"type": "json_object"}}, "response_schema", {"type": "object"}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"a": 1}}}},
        "response_schema",
        {"a": 1},
    ),
    ({"tools": [SET], "parallel_tool_calls": True}, "parallel", True),
    ({"tools": [SET], "tool_choice": "required"}, "choice", ToolChoice.REQUIRED),
    ({"tools": [SET], "tool_choice": "none"}, "choice", ToolChoice.NONE),
]


@pytest.mark.parametrize(("fields", "name", "value"), WORKS)
def test_parameter_that_works_is_taken_over(fields: dict[str, Any], name: str, value: Any) -> None:
    """As the model is asked."""
    assert getattr(asked(**fields), name) == value


HARMLESS: list[dict[str, Any]] = [
    {"user": "u", "safety_identifier": "s", "metadata": {"a": "b"}},
    {"prompt_cache_key": "k", "prompt_cache_options": {"mode": "implicit"}, "prompt_cache_retention": "24h"},
    {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "modalities": ["text"]},
    {"store": False, "service_tier": "auto", "reasoning_effort": "none", "verbosity": "medium"},
    {"stream": False, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    {"parallel_tool_calls": False, "tools": [], "tool_choice": "auto", "function_call": "none"},
    dict.fromkeys(openai_request.FIXED),
    {
        "temperature": None,
        "tools": None,
        "tool_choice": None,
        "response_format": None,
        "stream": None,
        "logprobs": None,
    },
]


@pytest.mark.parametrize("fields", HARMLESS)
def test_parameter_without_effect_changes_nothing(fields: dict[str, Any]) -> None:
    """Clients send them as a matter of course."""
    assert asked(**fields) == asked()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 2}, "n", "allowed is 1"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "not available yet; allowed is 0"),
    ({"presence_penalty": -1}, "presence_penalty", "allowed is 0"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "allowed is {}"),
    ({"modalities": ["text", "audio"]}, "modalities", 'allowed is \\["text"\\]'),
    ({"audio": {"voice": "x"}}, "audio", "leave it out"),
    ({"functions": []}, "functions", "use tools"),
    ({"function_call": "auto"}, "function_call", "use tool_choice"),
    ({"store": True}, "store", "not kept"),
    ({"service_tier": "flex"}, "service_tier", '"auto" or "default"'),
    ({"reasoning_effort": "high"}, "reasoning_effort", "do not reason"),
    ({"verbosity": "low"}, "verbosity", "medium"),
    ({"prediction": {}}, "prediction", "leave it out"),
    ({"web_search_options": {}}, "web_search_options", "a tool that searches"),
    ({"moderation": {"model": "x"}}, "moderation", "leave it out"),
    ({"max_tokens": 0}, "max_tokens", "0 is outside 1 to"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "leave one out"),
    ({"max_completion_tokens": 2**30}, "max_completion_tokens", "outside"),
    ({"temperature": 2.1}, "temperature", "outside 0 to 2"),
    ({"top_p": -0.1}, "top_p", "outside 0 to 1"),
    ({"seed": -1}, "seed", "outside"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "outside 0 to 20"),
    ({"top_logprobs": 1}, "top_logprobs", "needs logprobs: true"),
    ({"stop": [""]}, "stop", "none of them empty"),
    ({"stop": ["x"] * 17}, "stop", "at most 16"),
    ({"stop": 5}, "stop", "expected"),
    ({"temperature": "hot"}, "temperature", "expected `float | null`, got `str`"),
    ({"strem": True}, "strem", "not a parameter"),
    ({"stream_options": {"x": 1}}, "stream_options.x", "not a parameter"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "'xml'; allowed are text, json_object, json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is required"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name",
     "is required"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "'custom'; allowed is function"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "is required"),
    ({"tools": [SET, SET]}, "tools[1].function.name", "each name once"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
     "tools[0].function.parameters", "type object"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"properties": []}}}]},
     "tools[0].function.parameters", "map of properties"),
    ({"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]}, "tools[0].function.x", "not a parameter"),
    ({"tools": [GET] * 129}, "tools", "at most 128"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": [SET], "tool_choice": "always"}, "tool_choice", "allowed are none, auto, required"),
    ({"tools": [SET], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice",
     "none of the tools: set"),
    ({"tools": [SET], "tool_choice": {"type": "custom", "custom": {"name": "set"}}}, "tool_choice", "allowed are"),
    ({"tools": [SET], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
     "tool_choice.allowed_tools", "a list of tools"),
    ({"tools": [SET], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "expected"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "problem"), REFUSED, ids=[param for _, param, _ in REFUSED])
def test_parameter_that_does_not_work_is_refused_by_name(fields: dict[str, Any], param: str, problem: str) -> None:
    """With what is allowed instead."""
    with pytest.raises(BadParameter, match=problem) as caught:
        asked(**fields)
    assert caught.value.param == param
    assert caught.value.message.startswith(f"{param}: ")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"{} {}"])
def test_request_that_is_no_json_object_is_refused(body: bytes) -> None:
    """In a sentence."""
    with pytest.raises(BadRequest, match="the request is"):
        openai_request.parse(body)


@pytest.mark.parametrize("body", [b'{"a":' * 40 + b"1" + b"}" * 40, b"[" * 100_000])
def test_request_that_is_nested_too_deep_is_too_large(body: bytes) -> None:
    """It would cost stack in whoever walks it."""
    with pytest.raises(TooLarge, match="nested deeper"):
        openai_request.parse(body)


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_request_without_what_is_required_names_it(missing: str) -> None:
    """There is no default model."""
    body = {"model": "m", "messages": [USER]}
    del body[missing]
    with pytest.raises(BadParameter, match="is required") as caught:
        openai_request.parse(json.dumps(body).encode())
    assert caught.value.param == missing


# -- tools -------------------------------------------------------------------------------------------------------------


def test_tools_become_what_models_are_shown() -> None:
    """No schema means no arguments; one without properties means any."""
    free = {"type": "function", "function": {"name": "free", "description": "d", "parameters": {"type": "object"}}}
    shut, free_tool, one = asked(tools=[GET, free, SET]).tools
    assert (shut.name, shut.description, shut.parameters) == ("get", "", {"type": "object", "properties": {}})
    assert free_tool.parameters == {"type": "object", "properties": {}, "additionalProperties": True}
    assert one.parameters == {"type": "object", "properties": {"v": {"type": "string"}}}


def test_tool_choice_of_one_tool_shows_that_one_and_wants_one_call() -> None:
    """However many calls may be made otherwise."""
    ask = asked(
        tools=[SET, GET], tool_choice={"type": "function", "function": {"name": "get"}}, parallel_tool_calls=True
    )
    assert ([tool.name for tool in ask.tools], ask.choice, ask.parallel) == (["get"], ToolChoice.REQUIRED, False)


@pytest.mark.parametrize(("mode", "choice"), [("auto", ToolChoice.AUTO), ("required", ToolChoice.REQUIRED)])
def test_tool_choice_of_allowed_tools_shows_only_those(mode: str, choice: ToolChoice) -> None:
    """In the order of the tools."""
    allowed = {"mode": mode, "tools": [GET, {"type": "function", "function": {"name": "get"}}]}
    ask = asked(tools=[SET, GET], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert ([tool.name for tool in ask.tools], ask.choice) == (["get"], choice)


# -- messages ----------------------------------------------------------------------------------------------------------


def call(id: str, name: str = "set", arguments: str = '{"v": 1}') -> dict[str, Any]:
    """As the SDK sends back what it has read."""
    function = {"name": name, "arguments": arguments, "parsed_arguments": None}
    return {"id": id, "type": "function", "function": function, "index": 0}


def calling(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": list(calls), **more}


def result(id: str, content: Any = "ok") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def test_messages_of_all_roles_become_a_dialogue() -> None:
    """Parts are joined, developers are system, names are taken."""
    assert dialogue(
        {"role": "developer", "content": "D", "name": "dev"},
        {"role": "system", "content": [{"type": "text", "text": "S"}, {"type": "text", "text": "T"}]},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A", "refusal": None, "audio": None, "annotations": [], "function_call": None},
        {"role": "assistant", "content": None, "refusal": "R", "parsed": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": ""},
    ) == (
        Message("system", "D"),
        Message("system", "ST"),
        Message("user", "U"),
        Message("assistant", "A"),
        Message("assistant", "R"),
        Message("assistant", "no"),
        Message("user", ""),
    )


def test_messages_put_results_into_the_order_of_their_calls() -> None:
    """Templates know no ids."""
    made = dialogue(USER, calling(call("1"), call("2", "get", "")), result("2", "second"), result("1", "first"), USER)
    assert made[1].tool_calls == (ToolCall("set", {"v": 1}), ToolCall("get", {}))
    assert [m.content for m in made[2:4]] == ["first", "second"]
    assert made[4].role == "user"


WRONG_MESSAGES: list[tuple[list[Any], str, str]] = [
    ([], "messages", "at least one"),
    (["Hi"], "messages[0]", "expected `object`"),
    ([{"content": "x"}], "messages[0].role", "is required"),
    ([{"role": "bot", "content": "x"}], "messages[0].role", "'bot'; allowed are system"),
    ([{"role": "function", "content": "x", "name": "f"}], "messages[0].role", "allowed are"),
    ([{"role": "user"}], "messages[0].content", "is required"),
    ([{"role": "assistant"}], "messages[0].content", "is required"),
    ([{"role": "user", "content": 5}], "messages[0].content", "expected"),
    ([{**USER, "x": 1}], "messages[0].x", "not a parameter"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
     "messages[0].content[0].type", "'image_url' is not supported: the models read text"),
    ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type", "input_audio"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "a text"),
    ([{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}], "messages[0].content[0].y", "not known"),
    ([{"role": "user", "content": "x", "tool_calls": [call("1")]}], "messages[0].tool_calls", "only the assistant"),
    ([{"role": "user", "content": "x", "tool_call_id": "1"}], "messages[0].tool_call_id", "role tool"),
    ([{"role": "assistant", "content": "x", "function_call": {}}], "messages[0].function_call", "tool_calls"),
    ([{"role": "assistant", "content": "x", "audio": {"id": "a"}}], "messages[0].audio", "not supported"),
    ([USER, result("1")], "messages[1].role", "follows the assistant's"),
    ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id", "role tool"),
    ([calling(call("1"))], "messages[0].tool_calls", "answers 1"),
    ([calling(call("1"), call("2")), result("1"), USER], "messages[0].tool_calls", "answers 2"),
    ([calling(call("1")), result("3")], "messages[1].tool_call_id", "'3'; expected is one of 1"),
    ([calling(call("1")), result("1"), result("1")], "messages[2].tool_call_id", "each once"),
    ([calling(call("1"), call("1")), result("1")], "messages[0].tool_calls", "same id"),
    ([calling(call("1", arguments="{")), result("1")], "messages[0].tool_calls[0].function.arguments", "not JSON"),
    ([calling(call("1", arguments="[]")), result("1")], "messages[0].tool_calls[0].function.arguments", "JSON object"),
    ([calling(call("1", arguments='{"a":' * 40 + "1" + "}" * 40)), result("1")],
     "messages[0].tool_calls[0].function.arguments", "levels"),
    ([calling({"id": "1", "type": "custom", "custom": {}}), result("1")], "messages[0].tool_calls[0].type", "function"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "param", "problem"), WRONG_MESSAGES)
def test_message_that_is_wrong_is_named(messages: list[Any], param: str, problem: str) -> None:
    """With its place and what is allowed."""
    with pytest.raises(BadParameter, match=problem) as caught:
        parsed(messages=messages)
    assert caught.value.param == param


# -- agents ------------------------------------------------------------------------------------------------------------


def test_request_to_an_agent_becomes_one_of_edged() -> None:
    """Of the same kind that every transport makes."""
    chat = parsed(
        model="house",
        messages=[{"role": "developer", "content": "D"}, calling(call("1")), result("1"), USER],
        response_format={"type": "json_object"},
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.5,
        seed=3,
        stop="x",
        stream=True,
        parallel_tool_calls=True,
        tools=[],
        logprobs=False,
    )
    request = openai_request.agent_request(chat, "key")
    assert (request.agent, request.id, request.stream) == ("house", "key", True)
    assert request.messages == chat.messages
    assert (request.response_schema, request.max_tokens, request.stop) == ({"type": "object"}, 9, ("x",))
    assert (request.temperature, request.top_p, request.seed) == (0.5, 0.5, 3)


def test_request_to_an_agent_leaves_what_it_does_not_say_to_the_agent() -> None:
    """Its own temperature, for example."""
    request = openai_request.agent_request(parsed(model="house"), None)
    assert (request.id, request.temperature, request.top_p, request.max_tokens) == (None, None, None, None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [SET]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 0}, "top_logprobs"),
    ],
)
def test_request_to_an_agent_with_what_only_models_do_is_refused(fields: dict[str, Any], param: str) -> None:
    """It has its own tools."""
    with pytest.raises(BadParameter, match="'m' is an agent") as caught:
        openai_request.agent_request(parsed(**fields), None)
    assert caught.value.param == param


# -- answers -----------------------------------------------------------------------------------------------------------

HEAD = shapes.Head("chatcmpl-1", 1, "m")
LIKELY = TokenLogprob("€", "€".encode(), -0.1, (("€", "€".encode(), -0.1), ("\ufffd", b"\xe2", -3.0)))


def answered(**fields: Any) -> ModelAnswer:
    values: dict[str, Any] = {"text": "", "finish": Finish.STOP, "prompt_tokens": 7, "cached_tokens": 4}
    return ModelAnswer(**{**values, "completion_tokens": 3, **fields})


def test_answer_of_a_model_is_what_the_sdk_reads() -> None:
    """Usage and log-probabilities included."""
    document = shapes.of_model(HEAD, answered(text="€", logprobs=(LIKELY,)), logprobs=True)
    read = ChatCompletion.model_validate_json(msgspec.json.encode(document), strict=True)
    (choice,) = read.choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("€", None, "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert choice.logprobs.content[0].bytes == [0xE2, 0x82, 0xAC]
    assert [top.logprob for top in choice.logprobs.content[0].top_logprobs] == [-0.1, -3.0]
    assert read.usage is not None
    assert read.usage.prompt_tokens_details is not None
    assert (read.usage.total_tokens, read.usage.prompt_tokens_details.cached_tokens) == (10, 4)


MADE = WrittenCall("set", '{"v": "ü"}', whole=True)


@pytest.mark.parametrize(
    ("answer", "content", "reason"),
    [
        ({"text": "x"}, "x", "stop"),
        ({}, "", "stop"),
        ({"text": "x", "finish": Finish.LENGTH}, "x", "length"),
        ({"calls": (MADE,)}, None, "tool_calls"),
        ({"calls": (MADE,), "text": "x"}, "x", "tool_calls"),
        ({"calls": (MADE,), "finish": Finish.LENGTH}, None, "length"),
    ],
)
def test_answer_says_why_it_ended(answer: dict[str, Any], content: str | None, reason: str) -> None:
    """And has no content where there is none but calls."""
    document = shapes.of_model(HEAD, answered(**answer), logprobs=False)
    choice = ChatCompletion.model_validate(document).choices[0]
    assert (choice.message.content, choice.finish_reason, choice.logprobs) == (content, reason, None)
    made = choice.message.tool_calls or []
    assert [json.loads(c.function.arguments) for c in made if c.type == "function"] == (
        [{"v": "ü"}] if "calls" in answer else []
    )


def test_calls_have_ids_of_their_own() -> None:
    """Results name them."""
    ids = {made["id"] for made in shapes.calls([MADE] * 50)}
    assert len(ids) == 50


def test_chunk_is_what_the_sdk_reads() -> None:
    """Calls with their place; what begins one has its name and an id, what goes on with it neither."""
    for piece, named in ((CallPiece(3, "a", ""), True), (CallPiece(3, None, '{"x'), False)):
        document = shapes.chunk(HEAD, {"tool_calls": [shapes.call_piece(piece)]})
        read = ChatCompletionChunk.model_validate_json(msgspec.json.encode(document), strict=True)
        assert read.choices[0].delta.tool_calls is not None
        (call,) = read.choices[0].delta.tool_calls
        assert call.function is not None
        assert (call.index, call.function.name, call.function.arguments) == (3, piece.name, piece.arguments)
        assert (call.id is not None, call.type == "function") == (named, named)


@pytest.mark.parametrize(
    ("code", "kind", "after"),
    [
        ("bad_request", "invalid_request_error", None),
        ("forbidden", "permission_error", None),
        ("too_large", "invalid_request_error", None),
        ("unknown_agent", "not_found_error", None),
        ("over_budget", "rate_limit_error", "9"),
        ("busy", "rate_limit_error", "9"),
        ("no_memory", "server_error", "9"),
        ("internal", "server_error", None),
        ("expired", "server_error", None),
    ],
)
def test_error_has_openais_type_and_our_code(code: str, kind: str, after: str | None) -> None:
    """And says when to ask again, where that helps."""
    failure = Fault(code, "m", retry_after_s=9.2)
    assert shapes.error(failure, param="p") == {"error": {"message": "m", "type": kind, "param": "p", "code": code}}
    assert retry_after(failure) == after
    assert retry_after(Fault(code, "m")) in (None, "5")


# -- an agent's stream -------------------------------------------------------------------------------------------------

STREAMS: dict[str, tuple[list[tuple[int, str]], str, list[str], str | None]] = {
    "steady": ([(0, "one "), (4, "two")], "one two", ["one", " two"], ""),
    "space-around": ([(0, " \n"), (2, "one\n"), (6, "\n")], "one", ["", "one", ""], ""),
    "nothing-came": ([], "one", [], "one"),
    "a-rest": ([(0, "one")], "one two", ["one"], " two"),
    "again-the-same": ([(0, "one t"), (0, "one"), (3, " two")], "one two", ["one t", "", "wo"], ""),
    "again-longer": ([(0, "on"), (0, "one two")], "one two", ["on", "e two"], ""),
    "again-another": ([(0, "one"), (0, "two")], "two", ["one", ""], None),
    "again-another-later": ([(0, "one two"), (0, "one "), (4, "three")], "one three", ["one two", "", ""], None),
    "another-and-then-right": ([(0, "one"), (0, "two"), (0, "one two")], "one two", ["one", "", " two"], ""),
    "joined-late": ([(4, "two"), (7, "!")], "one two!", ["", ""], "one two!"),
    "a-gap": ([(0, "one "), (8, "three")], "one two three", ["one", ""], " two three"),
    "late-and-then-again": ([(4, "two"), (0, "one"), (3, " two")], "one two", ["", "one", " two"], ""),
    "the-answer-is-another": ([(0, "one")], "two", ["one"], None),
}  # fmt: skip


@pytest.mark.parametrize(("deltas", "answer", "sent", "rest"), STREAMS.values(), ids=STREAMS)
def test_steady_never_sends_twice_nor_takes_back(
    deltas: list[tuple[int, str]], answer: str, sent: list[str], rest: str | None
) -> None:
    """What was sent and the rest are the answer, or it is said that they are not."""
    steady = Steady()
    assert [steady.feed(offset, text) for offset, text in deltas] == sent
    assert steady.rest(answer) == rest
    assert rest is None or "".join(sent) + rest == answer
