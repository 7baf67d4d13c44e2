"""OpenAI's SDK against real models: the smallest, whose template knows no tools, and the default one, whose does."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import pytest_asyncio

from edged.agent.dialects import Dialects
from edged.completions.plain import Completions
from edged.config import Model
from edged.engines import registry
from edged.engines.llama import LlamaEngine
from edged.residency.governor import Governor
from edged.types import ModelSpec
from tests.support.openai_server import Served, serving
from tests.support.real_model import Calculated

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

MODELS = Path(
    os.environ.get("EDGED_TEST_MODELS_DIR")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "models"
)
FILES = {"smol": "smollm2-135m-instruct-q4_1.gguf", "qwen": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"}
BOTH = pytest.mark.parametrize("model", FILES)
# Where the smallest shows all there is to see of edged, the other one shows that it is no different.
ONE_QUICK = pytest.mark.parametrize("model", ["smol", pytest.param("qwen", marks=pytest.mark.slow)])
CONTEXT = {"smol": 512, "qwen": 1024}
GIB = 2**30

SYSTEM: Any = {
    "role": "system",
    "content": "You are the assistant of a small board in a house. Answer in one sentence.",
}
SKY: Any = [SYSTEM, {"role": "user", "content": "What is the colour of the sky?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
VALVE: Any = {
    "type": "function",
    "function": {
        "name": "set_valve",
        "description": "Open or close one irrigation valve.",
        "parameters": {
            "type": "object",
            "properties": {
                "valve": {"$ref": "#/$defs/Valve"},
                "position": {"type": "string", "enum": ["open", "closed"]},
            },
            "required": ["valve", "position"],
            "$defs": {"Valve": {"type": "string", "enum": ["north", "south"]}},
        },
    },
}
TOOLS = [WEATHER, VALVE]


class Board:
    """A server, and the engine behind it."""

    def __init__(self, served: Served, engine: LlamaEngine) -> None:
        self.served, self.client, self.engine = served, served.client, engine

    async def chat(self, model: str, messages: Any = SKY, **more: Any) -> Any:
        """A completion; greedy and short."""
        fields = {"temperature": 0, "max_tokens": 24, **more}
        return await self.client.chat.completions.create(model=model, messages=messages, **fields)


async def spec_of(model: str) -> ModelSpec:
    return ModelSpec(name=model, path=str(MODELS / FILES[model]), context=CONTEXT[model])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def board(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Board]:
    """Both models, loaded when they are asked, for all tests of this file."""
    specs = {}
    for name, file in FILES.items():
        assert (MODELS / file).is_file(), f"{MODELS / file} is missing: scripts/test pulls it"
        specs[name] = ModelSpec(name=name, path=str(MODELS / file), context=CONTEXT[name])
    # One thread: several sum attention in parts whose borders depend on where in the context a text lies, and round
    # differently.
    engine = LlamaEngine(threads=1, checked=True)
    engine.residency = governor = Governor(
        specs, engine, sizer=Calculated(), budget_bytes=4 * GIB, reserve_bytes=0, idle_unload_s=600
    )
    models = {name: Model(context=CONTEXT[name]) for name in FILES}
    await engine.start()
    task = asyncio.create_task(governor.run())
    async with serving(
        tmp_path_factory.mktemp("http"),
        Completions(engine, models, Dialects(registry.chat_template, spec_of, registry.text_format), max_waiting=4),
        models,
    ) as served:
        yield Board(served, engine)
    task.cancel()
    await asyncio.wait([task])
    await engine.stop()


def running(board: Board) -> int:
    return sum(stats.running + stats.waiting for stats in board.engine.stats())


# -- text --------------------------------------------------------------------------------------------------------------


@ONE_QUICK
async def test_answer_is_the_same_whole_and_streamed(board: Board, model: str) -> None:
    """And over both sockets and kinds of client."""
    whole = await board.chat(model)
    chunks = [chunk async for chunk in await board.chat(model, stream=True)]
    sync = await board.served.in_thread(
        lambda c: c.chat.completions.create(model=model, messages=SKY, temperature=0, max_tokens=24), tcp=True
    )
    text = whole.choices[0].message.content
    assert text
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert sync.choices[0].message.content == text
    assert len(chunks) > 5
    assert "<|" not in text


@ONE_QUICK
async def test_penalties_and_samplers_of_other_servers_change_the_answer(board: Board, model: str) -> None:
    """The same whole and streamed, with a seed; a neutral value is none. Greedy, a small model repeats itself."""
    count = [{"role": "user", "content": "Write the word tree twenty times."}]
    plain = (await board.chat(model, count, max_tokens=40)).choices[0].message.content
    for more in ({"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"extra_body": {"repeat_penalty": 1.8}}):
        penalised = (await board.chat(model, count, max_tokens=40, **more)).choices[0].message.content
        assert penalised != plain
        assert penalised.lower().count("tree") <= plain.lower().count("tree")
        pieces = [c async for c in await board.chat(model, count, max_tokens=40, stream=True, **more)]
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == penalised
    for neutral in ({"frequency_penalty": 0}, {"extra_body": {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0}}):
        assert (await board.chat(model, count, max_tokens=40, **neutral)).choices[0].message.content == plain
    one = {"temperature": 2.0, "seed": 1, "extra_body": {"top_k": 1}}
    assert (await board.chat(model, count, max_tokens=40, **one)).choices[0].message.content == plain


async def test_usage_counts_the_shared_beginning_as_cached(board: Board) -> None:
    """The system text is computed once."""
    await board.chat("smol", max_tokens=1)
    usage = (await board.chat("smol", [SYSTEM, {"role": "user", "content": "Is water wet?"}], max_tokens=3)).usage
    assert usage.prompt_tokens > usage.prompt_tokens_details.cached_tokens > 16
    assert usage.completion_tokens == 3
    assert usage.total_tokens == usage.prompt_tokens + 3


async def test_max_tokens_ends_with_length_and_stop_with_stop(board: Board) -> None:
    """The stop string is not part of the text."""
    whole = (await board.chat("smol")).choices[0].message.content
    cut = (await board.chat("smol", max_tokens=4)).choices[0]
    assert cut.finish_reason == "length"
    assert whole.startswith(cut.message.content)
    word = whole.split()[2]
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        stopped = (await board.chat("smol", stop=[word], **more)).choices[0]
        assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.index(word)], "stop")


async def test_answer_without_max_tokens_ends_where_the_context_does(board: Board) -> None:
    """As many tokens as the prompt leaves, and no error."""
    words = "word " * 460
    done = await board.chat("smol", [{"role": "user", "content": f"Repeat: {words}"}], max_tokens=None)
    usage = done.usage
    assert usage.total_tokens <= CONTEXT["smol"]
    assert done.choices[0].finish_reason == "stop" or usage.total_tokens == CONTEXT["smol"]


async def test_prompt_beyond_the_context_is_an_error_clients_know(board: Board) -> None:
    """By OpenAI's code for it."""
    with pytest.raises(openai.APIStatusError, match="leaves room for") as caught:
        await board.chat("smol", [{"role": "user", "content": "word " * 2000}])
    assert (caught.value.status_code, caught.value.code) == (413, "context_length_exceeded")


async def test_seed_repeats_an_answer(board: Board) -> None:
    """At a temperature where another one gives another."""
    texts = [
        (await board.chat("smol", temperature=1.5, seed=seed, max_tokens=12)).choices[0].message.content
        for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


# -- log-probabilities -------------------------------------------------------------------------------------------------


@ONE_QUICK
async def test_logprobs_tell_each_token_and_the_likeliest(board: Board, model: str) -> None:
    """Greedy, the sampled token is the likeliest; probabilities add up to no more than one."""
    choice = (await board.chat(model, logprobs=True, top_logprobs=5, seed=1)).choices[0]
    plain = (await board.chat(model, seed=1)).choices[0]
    assert plain.logprobs is None
    assert choice.message.content == plain.message.content
    tokens = choice.logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 5
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1


async def test_logprobs_of_a_stream_are_those_of_the_whole(board: Board) -> None:
    """In order; a stop string takes its tokens with it."""
    more = {"logprobs": True, "top_logprobs": 0, "stop": ["sky"]}
    whole = (await board.chat("smol", **more)).choices[0]
    choices = [chunk.choices[0] async for chunk in await board.chat("smol", stream=True, **more)]
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert tokens == whole.logprobs.content
    assert whole.message.content.startswith("".join(token.token for token in tokens))
    assert "sky" not in whole.message.content


# -- tools -------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "set_valve"}}])
async def test_required_tool_is_called_with_arguments_that_fit(board: Board, model: str, choice: Any) -> None:
    """Whatever the model; definitions in the schema included."""
    question = [{"role": "user", "content": "Open the north valve, please."}]
    done = (await board.chat(model, question, tools=TOOLS, tool_choice=choice, max_tokens=60)).choices[0]
    assert (done.finish_reason, done.message.content) == ("tool_calls", None)
    (call,) = done.message.tool_calls
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
    if model == "qwen" or choice != "required":
        assert call.function.name == "set_valve"
    if model == "qwen":
        assert json.loads(call.function.arguments) == {"valve": "north", "position": "open"}


NOTE: Any = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {"type": "object", "properties": {"text": {"type": "string", "minLength": 400}},
                       "required": ["text"]},
    },
}  # fmt: skip


async def test_call_that_is_cut_off_is_the_same_whole_and_streamed(board: Board) -> None:
    """In pieces as it is written; what has come of the arguments is no JSON, and the reason tells of it."""
    fields: dict[str, Any] = {"tools": [NOTE], "tool_choice": "required", "max_tokens": 30, "temperature": 0}
    question = [{"role": "user", "content": "Note a long story about a robot."}]
    whole = (await board.chat("smol", question, **fields)).choices[0]
    chunks = [chunk.choices[0] async for chunk in await board.chat("smol", question, stream=True, **fields)]
    pieces = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert whole.finish_reason == chunks[-1].finish_reason == "length"
    (call,) = whole.message.tool_calls
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
    assert (pieces[0].function.name, call.function.name) == ("note", "note")
    assert len(pieces) > 5
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.function.arguments)


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
async def test_auto_calls_gets_the_result_and_answers(board: Board, stream: bool) -> None:
    """The whole round, with the messages as the SDK gives them back."""

    async def ask() -> Any:
        fields: dict[str, Any] = {"model": "qwen", "messages": messages, "tools": TOOLS, "temperature": 0}
        if not stream:
            return (await board.client.chat.completions.create(**fields, max_tokens=60)).choices[0]
        async with board.client.chat.completions.stream(**fields, max_tokens=60) as events:
            return (await events.get_final_completion()).choices[0]

    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    called = await ask()
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    weather = json.dumps({"temperature": 21, "sky": "sunny"})
    messages += [called.message, {"role": "tool", "tool_call_id": call.id, "content": weather}]
    answered = await ask()
    assert answered.finish_reason == "stop"
    assert not answered.message.tool_calls
    assert "21" in answered.message.content


async def test_auto_answers_talk_in_text(board: Board) -> None:
    """Streamed as it comes, not held back to the end."""
    question = [{"role": "user", "content": "Hello, who are you?"}]
    chunks = [chunk async for chunk in await board.chat("qwen", question, tools=TOOLS, stream=True)]
    contents = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(contents) > 5
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


# -- shapes ------------------------------------------------------------------------------------------------------------

PLANT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "litres": {"type": "integer", "minimum": 1, "maximum": 9},
        "when": {"enum": ["morning", "evening"]},
    },
    "required": ["name", "litres", "when"],
    "additionalProperties": False,
}


@BOTH
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["alone", "beside-tools"])
async def test_response_format_is_kept(board: Board, model: str, tools: Any) -> None:
    """By every model; beside tools unless it calls one."""
    shape = {"type": "json_schema", "json_schema": {"name": "plan", "schema": PLANT, "strict": True}}
    question = [{"role": "user", "content": "Plan the watering of the roses, as JSON."}]
    more = {"tools": tools} if tools else {}
    message = (await board.chat(model, question, response_format=shape, max_tokens=80, **more)).choices[0].message
    if message.tool_calls:
        assert tools
    else:
        jsonschema.validate(json.loads(message.content), PLANT)


async def test_json_mode_is_an_object(board: Board) -> None:
    """Of any shape."""
    question = [{"role": "user", "content": 'Answer as JSON with the key "colour": what is the colour of the sky?'}]
    done = await board.chat("qwen", question, response_format={"type": "json_object"}, max_tokens=40)
    assert isinstance(json.loads(done.choices[0].message.content), dict)


ELSEWHERE = {"type": "object", "properties": {"a": {"$ref": "https://schemas.example/valve"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": ELSEWHERE}}},
         "response_format"),
        ({"tools": [WEATHER, {"type": "function", "function": {"name": "t", "parameters": ELSEWHERE}}]},
         "tools[1].function.parameters"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_schema_that_cannot_be_kept_is_refused_by_name(
    board: Board, fields: dict[str, Any], param: str, stream: bool
) -> None:
    """With the reason, and never kept in part."""
    with pytest.raises(openai.BadRequestError, match=r"schemas\.example/valve") as caught:
        await board.chat("smol", stream=stream, **fields)
    assert caught.value.param == param


HOSTILE: dict[str, Any] = {
    "patterns that have to be brought together": {
        "allOf": [{"type": "string", "pattern": f"(a|b)*{i}(x|y){{12}}"} for i in range(40)]
    },
    "9,000 properties": {"type": "object", "properties": {f"p{i}": {} for i in range(9_000)}},
    "itself": {"$ref": "#"},
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_schema_is_refused_while_others_are_answered(board: Board, name: str) -> None:
    """Nobody waits for it, neither those who are being answered nor the next one."""
    shape = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": HOSTILE[name]}}}
    story = [{"role": "user", "content": "Tell a story about a robot."}]
    running = asyncio.create_task(board.chat("smol", story, max_tokens=20))
    async with asyncio.timeout(15):
        with pytest.raises(openai.BadRequestError) as caught:
            await board.chat("smol", **shape)
        assert caught.value.param == "response_format"
        assert (await running).choices[0].message.content
        assert (await board.chat("smol", story, max_tokens=3)).choices[0].message.content


# -- leaving -----------------------------------------------------------------------------------------------------------


async def test_stream_that_is_closed_frees_its_sequence(board: Board) -> None:
    """Within a step of the model."""
    question = [{"role": "user", "content": "Tell a very long story about a robot and a cat."}]
    stream = await board.chat("smol", question, stream=True, max_tokens=400)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    assert running(board) == 1
    await stream.close()
    async with asyncio.timeout(10):
        while running(board):
            await asyncio.sleep(0.01)


# -- responses -----------------------------------------------------------------------------------------------------


async def test_response_that_the_bound_cuts_off_is_incomplete(board: Board) -> None:
    """Whole and streamed."""
    responses = board.client.responses
    whole = await responses.create(model="smol", input="Tell a story.", max_output_tokens=3, store=False)
    stream = await responses.create(model="smol", input="Tell a story.", max_output_tokens=3, store=False, stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.incomplete"
    for made in (whole, last.response):
        assert made.incomplete_details is not None
        assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert made.usage is not None
        assert made.usage.output_tokens == 3


# -- bare texts ----------------------------------------------------------------------------------------------------


async def test_gap_in_a_file_is_filled_by_a_model_of_code(board: Board) -> None:
    """With the text in front of it and after it in sight; another model says that it cannot."""
    prompt, suffix = "def half(number):\n    return ", "\n\nassert half(4) == 2\n"
    texts = board.client.completions
    made = await texts.create(model="qwen", prompt=prompt, suffix=suffix, temperature=0, max_tokens=16, stop="\n")
    assert made.choices[0].text.startswith("number /")
    with pytest.raises(openai.BadRequestError, match="has no marks for a gap"):
        await texts.create(model="smol", prompt=prompt, suffix=suffix)


async def test_text_goes_on_without_a_template(board: Board) -> None:
    """The model sees nothing but the text, and ends at the bound."""
    made = await board.client.completions.create(model="smol", prompt="One, two, three,", temperature=0, max_tokens=3)
    assert made.choices[0].text.startswith(" four")
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert made.usage.prompt_tokens < 10
