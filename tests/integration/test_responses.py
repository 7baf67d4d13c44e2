"""OpenAI's SDK against our server: the Responses API, with a scripted model and an agent that a test speaks for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from edged.agent.dialects import Dialects
from edged.completions.plain import Completions
from edged.config import Model
from edged.engines.kind import ChatTemplate
from edged.engines.scripted import ScriptedEngine
from edged.errors import Busy
from edged.requests.watchers import OnDelta
from edged.store.database import Database
from edged.store.schema import MIGRATIONS
from edged.types import Ask, Caller, Fault, ModelSpec, Reply, Status
from tests.support.daemon import entry
from tests.support.http_api import unix_session
from tests.support.openai_server import Served, done, serving

NOTED: Any = {"name": "note", "arguments": {"text": "milk, eggs"}}
EMPTY: Any = {"name": "ping", "arguments": {}}
SCRIPT = "".join(
    (
        entry("take down", NOTED, text="Noted."),
        entry("ping it", EMPTY, text="It answers."),
        entry("ponder", text="<think>one or two?</think> one two three"),
        entry("as json", text='{"valve": "north"}'),
        entry("say", text="one two three"),
        entry("slowly", text="one two three", token_s=0.05),
        entry("never ends", text="word " * 10_000, token_s=0.02),
    )
)
TOOLS: Any = [
    {
        "type": "function",
        "name": "note",
        "description": "Take something down.",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
        "strict": False,
    },
    {"type": "function", "name": "ping", "parameters": {"type": "object", "properties": {}}, "strict": None},
]
OTHER = Caller("unix:2000", "http", frozenset({"house"}))


class Valve(pydantic.BaseModel):
    """What the model is to answer with."""

    valve: str


@pytest.fixture
async def engine(tmp_path: Path) -> ScriptedEngine:
    """A scripted model, called small."""
    (tmp_path / "script.toml").write_text(SCRIPT)
    engine = ScriptedEngine()
    await engine.load(ModelSpec(name="small", path=str(tmp_path / "script.toml"), context=4096))
    return engine


@pytest.fixture
async def served(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Served]:
    """A server of it, with a store."""
    models = {"small": Model()}
    chats = Completions(engine, models, Dialects(lambda _: ChatTemplate()), max_waiting=2)
    database = Database(tmp_path / "edged.db", MIGRATIONS)
    await database.start()
    async with serving(tmp_path, chats, models, database=database) as served:
        yield served
    await database.stop()


async def collected(served: Served, **fields: Any) -> tuple[list[Any], Any]:
    """The events of a response as the SDK's accumulator gives them, and what it made of them."""
    async with served.client.responses.stream(model="small", **fields) as stream:
        events = [event async for event in stream]
        return events, await stream.get_final_response()


def kinds(events: list[Any]) -> list[str]:
    """Their types, each of a row of the same once."""
    found: list[str] = []
    for event in events:
        if not found or found[-1] != event.type:
            found.append(event.type)
    return found


WORDS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]
CALL = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


# -- plain models ------------------------------------------------------------------------------------------------------


async def test_text_whole_and_streamed_is_the_same_response(served: Served) -> None:
    """With all that clients read of it."""
    whole = await served.client.responses.create(model="small", input="say", instructions="Be brief.")
    events, final = await collected(served, input=[{"role": "user", "content": "say"}])
    assert whole.output_text == final.output_text == "one two three"
    assert (whole.status, whole.model, whole.object) == ("completed", "small", "response")
    assert (whole.error, whole.incomplete_details, whole.metadata, whole.tools) == (None, None, {}, [])
    assert (whole.tool_choice, whole.parallel_tool_calls, whole.instructions) == ("auto", True, "Be brief.")
    assert whole.usage is not None
    assert whole.usage.output_tokens == 3
    assert whole.usage.output_tokens_details.reasoning_tokens == whole.usage.input_tokens_details.cached_tokens == 0
    assert kinds(events) == WORDS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "one two three"
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1


async def test_events_are_named_and_the_stream_ends_with_the_response(served: Served) -> None:
    """`event:` says the same as `type`."""
    async with (
        unix_session(served.socket) as client,
        client.post("/v1/responses", json={"model": "small", "input": "say", "stream": True}) as response,
    ):
        text = (await response.read()).decode()
        assert response.content_type == "text/event-stream"
    told = [block.split("\n") for block in text.strip().split("\n\n")]
    assert all(name == f"event: {json.loads(data.removeprefix('data: '))['type']}" for name, data in told)
    assert told[-1][0] == "event: response.completed"


@pytest.mark.parametrize(
    ("text", "name", "arguments"), [("take down", "note", NOTED["arguments"]), ("ping it", "ping", {})]
)
async def test_call_is_streamed_in_order_and_answered_by_its_output(
    served: Served, text: str, name: str, arguments: Any
) -> None:
    """Arguments are the sum of their deltas, also of a tool that takes none; the result leads to the words."""
    events, final = await collected(served, input=text, tools=TOOLS)
    assert kinds(events) == [*WORDS[:2], *CALL, WORDS[-1]]
    added = next(event for event in events if event.type == "response.output_item.added")
    assert (added.item.arguments, added.item.name) == ("", name)
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (call,) = final.output
    assert "".join(deltas) == call.arguments
    assert json.loads(call.arguments) == arguments
    assert (added.item.id, added.item.call_id) == (call.id, call.call_id)
    answer = await served.client.responses.create(
        model="small",
        previous_response_id=final.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "ok"}],
        tools=TOOLS,
    )
    assert answer.output_text == ("Noted." if name == "note" else "It answers.")


async def test_history_that_a_client_keeps_itself_is_understood(served: Served) -> None:
    """Home Assistant's and agent-framework's: calls without ids, thoughts, a developer's message, parts."""
    history: Any = [
        {"type": "message", "role": "developer", "content": "You take notes."},
        {"type": "message", "role": "user", "content": "say"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "one two three", "annotations": []}],
        },
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "take down"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
        {"type": "function_call", "call_id": "c1", "name": "note", "arguments": '{"text": "milk, eggs"}'},
        {"type": "function_call_output", "call_id": "c1", "output": '{"ok": true}'},
    ]
    made = await served.client.responses.create(
        model="small",
        store=False,
        include=["reasoning.encrypted_content"],
        input=history,
        tools=TOOLS,
    )
    assert made.output_text == "Noted."
    with pytest.raises(openai.NotFoundError):
        await served.client.responses.retrieve(made.id)


async def test_parsed_answer_has_its_shape(served: Served) -> None:
    """`responses.parse` of the SDK."""
    made = await served.client.responses.parse(model="small", input="as json", text_format=Valve)
    assert made.output_parsed == Valve(valve="north")
    events, final = await collected(served, input="as json", text_format=Valve)
    assert kinds(events) == WORDS
    assert final.output_parsed == Valve(valve="north")


async def test_thoughts_are_an_item_of_their_own_where_they_are_asked_for(served: Served) -> None:
    """Before the words; else they are left out."""
    events, final = await collected(served, input="ponder", reasoning={"effort": "low"})
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output[0].summary[0].text == "one or two?"
    assert kinds(events) == [
        *WORDS[:2],
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        *WORDS[2:],
    ]
    whole = await served.client.responses.create(model="small", input="ponder", reasoning={"effort": "low"})
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    plain = await served.client.responses.create(model="small", input="ponder")
    assert [item.type for item in plain.output] == ["message"]
    assert final.output_text == whole.output_text == plain.output_text == "one two three"


async def test_logprobs_come_with_the_words_where_they_are_asked_for(served: Served) -> None:
    """In deltas and in the finished message."""
    wanted: Any = ["message.output_text.logprobs"]
    events, final = await collected(served, input="say", include=wanted, top_logprobs=1)
    told = [token.token for e in events if e.type == "response.output_text.delta" for token in e.logprobs]
    assert told == [token.token for token in final.output[0].content[0].logprobs] == ["one ", "two ", "three"]
    plain = await served.client.responses.create(model="small", input="say")
    document: Any = plain.to_dict()
    assert document["output"][0]["content"][0]["logprobs"] == []


# -- going on ----------------------------------------------------------------------------------------------------------


async def test_dialogue_goes_on_from_a_response_and_instructions_do_not(served: Served, engine: ScriptedEngine) -> None:
    """Each from any that there is, as often as one likes."""
    first = await served.client.responses.create(model="small", input="say", instructions="Be brief.")
    second = first
    for text in ("slowly", "ponder"):
        second = await served.client.responses.create(model="small", input=text, previous_response_id=first.id)
        assert second.previous_response_id == first.id
        said = [segment.text for segment in (*engine.jobs[-1].prefix, *engine.jobs[-1].turn) if segment.literal]
        assert said == ["say", "one two three", text]
    third = await served.client.responses.create(
        model="small", input="say", previous_response_id=second.id, instructions="Be polite."
    )
    assert third.output_text == "one two three"
    said = [segment.text for segment in (*engine.jobs[-1].prefix, *engine.jobs[-1].turn) if segment.literal]
    assert said == ["Be polite.", "say", "one two three", "ponder", "one two three", "say"]


async def test_response_is_found_listed_and_deleted_by_its_client_only(served: Served) -> None:
    """For another one there is none, also as a beginning."""
    made = await served.client.responses.create(model="small", input="say", metadata={"a": "b"})
    found = await served.client.responses.retrieve(made.id)
    assert found.to_dict() == made.to_dict()
    items = [item async for item in served.client.responses.input_items.list(made.id)]
    assert [item.content[0].text for item in items if item.type == "message"] == ["say"]  # type: ignore[union-attr]
    await served.become(OTHER)
    for refused in (
        served.client.responses.retrieve(made.id),
        served.client.responses.delete(made.id),
        served.client.responses.cancel(made.id),
        served.client.get(f"/responses/{made.id}/input_items", cast_to=object),
    ):
        with pytest.raises(openai.NotFoundError, match="no response"):
            await refused
    with pytest.raises(openai.BadRequestError, match="no response") as caught:
        await served.client.responses.create(model="small", input="say", previous_response_id=made.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
    await served.become(Caller("unix:1000", "http", frozenset({"house"})))
    assert (await served.client.responses.cancel(made.id)).status == "completed"
    later = await served.client.responses.create(model="small", input="say", previous_response_id=made.id)
    await served.client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await served.client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match=made.id):  # what a dialogue began with is gone
        await served.client.responses.create(model="small", input="say", previous_response_id=later.id)


async def test_input_items_come_in_pages(served: Served) -> None:
    """The newest first, unless asked otherwise."""
    texts = [{"role": "user", "content": str(i)} for i in range(4)]
    made = await served.client.responses.create(model="small", input=[*texts, {"role": "user", "content": "say"}])  # type: ignore[list-item]
    async with unix_session(served.socket) as client:

        async def page(query: str) -> Any:
            async with client.get(f"/v1/responses/{made.id}/input_items{query}") as response:
                return await response.json()

        first = await page("?limit=2")
        assert ([item["content"][0]["text"] for item in first["data"]], first["has_more"]) == (["say", "3"], True)
        rest = await page(f"?after={first['last_id']}")
        assert ([item["content"][0]["text"] for item in rest["data"]], rest["has_more"]) == (["2", "1", "0"], False)
        assert (await page("?order=asc&limit=1"))["data"][0]["content"][0]["text"] == "0"
        for query in ("?limit=0", "?limit=x", "?order=up", "?after=nothing"):
            assert (await page(query))["error"]["type"] == "invalid_request_error"


async def test_kept_response_goes_on_without_its_client_and_can_be_cancelled(served: Served) -> None:
    """One that is not kept ends with its client."""
    stream = await served.client.responses.create(model="small", input="slowly", stream=True)
    id = next(event.response.id for event in [await anext(stream)] if event.type == "response.created")
    assert (await served.client.responses.retrieve(id)).status == "in_progress"
    await stream.close()
    async with asyncio.timeout(20):
        while (found := await served.client.responses.retrieve(id)).status == "in_progress":
            await asyncio.sleep(0.01)
    assert (found.status, found.output_text) == ("completed", "one two three")

    stream = await served.client.responses.create(model="small", input="never ends", stream=True)
    id = next(event.response.id for event in [await anext(stream)] if event.type == "response.created")
    assert (await served.client.responses.cancel(id)).status == "cancelled"
    last = [event async for event in stream][-1]
    assert last.type == "response.failed"
    assert (await served.client.responses.retrieve(id)).status == "cancelled"


# -- what is refused, and what has no effect ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"extra_body": {"conversation": "c"}}, "conversation"),
        ({"extra_body": {"prompt": {"id": "p"}}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b", "parameters": {}}]}, "tools[0].name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": ""}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "note", "arguments": "{"}]}, None),
        ({"input": []}, "input"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"extra_body": {"messages": []}, "stop": 1}, "stop"),
        ({"extra_body": {"messages": [1]}}, "messages"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"model": "house", "tools": TOOLS}, "tools"),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    served: Served, fields: dict[str, Any], param: str | None
) -> None:
    """Never ignored."""
    if "stop" in fields:
        fields = {"extra_body": {"stop": fields["stop"]}}
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.responses.create(**{"model": "small", "input": "say", **fields})
    assert param is None or caught.value.param == param


async def test_all_that_home_assistant_sends_is_taken(served: Served) -> None:
    """And echoed; what has no effect is named."""
    raw = await served.client.responses.with_raw_response.create(
        model="small",
        input="say",
        max_output_tokens=3000,
        temperature=1.0,
        top_p=1.0,
        store=False,
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="y",
        extra_body={"prompt_cache_retention": "24h", "top_k": -1, "keep_alive": "5m"},
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low"},
        truncation="auto",
        user="me",
    )
    made = raw.parse()
    assert made.output_text == "one two three"
    assert (made.temperature, made.top_p, made.max_output_tokens) == (1.0, 1.0, 3000)
    assert made.reasoning is not None
    assert made.reasoning.effort == "low"
    assert set(raw.headers["edged-ignored"].split(", ")) == {
        "keep_alive",
        "truncation",
        "reasoning.effort",
        "text.verbosity",
    }


async def test_choice_among_tools(served: Served, engine: ScriptedEngine) -> None:
    """none, one, and some of them."""
    choices: Any = (
        ("none", set()),
        ({"type": "function", "name": "note"}, {"note"}),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "note"}]}, {"note"}),
        ("required", {"note", "ping"}),
    )
    for choice, offered in choices:
        made = await served.client.responses.create(model="small", input="take down", tools=TOOLS, tool_choice=choice)
        grammar = (engine.jobs[-1].grammar or "").replace("\\", "")
        assert {name for name in ("note", "ping") if f'"{name}"' in grammar} == offered
        assert [item.type for item in made.output] == ["function_call" if offered else "message"]


# -- agents ------------------------------------------------------------------------------------------------------------


async def test_agents_answer_whole_and_streamed(served: Served) -> None:
    """One message; what edged adds stands beside it."""

    async def work(ask: Ask, on_delta: OnDelta) -> Reply:
        on_delta(0, "It is ")
        on_delta(6, "done.")
        return done("It is done.")

    served.house.work = work
    whole = await served.client.responses.create(model="house", input="open it", store=False)
    async with served.client.responses.stream(model="house", input="open it", store=False) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert whole.output_text == final.output_text == "It is done."
    assert kinds(events) == WORDS
    assert whole.to_dict()["edged"]["tool_calls"][0]["name"] == "set_valve"  # type: ignore[index]
    assert [ask.request.id for ask in served.house.asks] == [None, None]


async def test_failure_of_an_agent_is_an_error_or_the_last_event(served: Served) -> None:
    """By status while nothing has come, as response.failed after that."""

    async def work(ask: Ask, on_delta: OnDelta) -> Reply:
        if ask.request.stream:
            on_delta(0, "It ")
            await asyncio.sleep(0)
        return Reply(id=None, rid="r1", status=Status.FAILED, error=Fault("no_link", "no way", True, 2.0))

    served.house.work = work
    with pytest.raises(openai.InternalServerError, match="no way") as caught:
        await served.client.responses.create(model="house", input="open it")
    assert caught.value.status_code == 503
    stream = await served.client.responses.create(model="house", input="open it", stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert (last.response.status, last.response.error.message) == ("failed", "no way")


async def test_refused_request_of_an_agent_leaves_no_response(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had not been asked."""

    async def accept(*_: Any) -> Any:
        raise Busy("full", retry_after_s=3.0)

    monkeypatch.setattr(served.house, "accept", accept)
    with pytest.raises(openai.InternalServerError, match="full"):
        await served.client.responses.create(model="house", input="open it")
