"""OpenAI's SDK against our server: a scripted model, and an agent that does what the test says."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from edged.agent.dialects import Dialects
from edged.completions.plain import Completions
from edged.completions.slots import AT_ONCE
from edged.config import Model
from edged.engines.kind import ChatTemplate
from edged.engines.scripted import ScriptedEngine
from edged.errors import Busy, ContextExceeded, NoLink
from edged.requests.watchers import OnDelta
from edged.transport.http.core.limits import Limits
from edged.types import Ask, Fault, ModelSpec, Reply, Status
from edged.wire import MAX_REQUEST_BYTES
from tests.support.daemon import entry
from tests.support.openai_server import GUEST, Served, done, serving

WAITING = 2  # completions that may wait for a place
NOTED: Any = {"name": "note", "arguments": {"text": "milk, eggs and more"}}
NOTE: Any = [{"role": "user", "content": "take down"}]
OPEN = {"name": "set_valve", "arguments": {"valve": "nörd"}}
SCRIPT = "".join(
    (
        entry("open it", OPEN, text="It is open."),
        entry("take down", NOTED, token_s=0.05),
        entry("ponder", text="<think>one or two?</think> one two three"),
        entry("brood", text="<think>one or two? or three"),
        entry("say", text="one two three"),
        entry("never ends", text="word " * 10_000, token_s=0.02),
    )
)
VALVE: Any = {
    "type": "function",
    "function": {
        "name": "set_valve",
        "description": "Open or close a valve.",
        "parameters": {"type": "object", "properties": {"valve": {"type": "string"}}, "required": ["valve"]},
    },
}
TAKE_DOWN: Any = {
    "type": "function",
    "function": {"name": "note", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}},
}
SAY: Any = [{"role": "user", "content": "say"}]
ENDLESS: Any = [{"role": "user", "content": "never ends"}]
HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def engine(tmp_path: Path) -> ScriptedEngine:
    """A scripted model, called small."""
    (tmp_path / "script.toml").write_text(SCRIPT)
    engine = ScriptedEngine()
    await engine.load(ModelSpec(name="small", path=str(tmp_path / "script.toml"), context=4096))
    return engine


@pytest.fixture
async def served(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Served]:
    """A server of it."""
    models = {"small": Model()}
    chats = Completions(engine, models, Dialects(lambda _: ChatTemplate()), max_waiting=WAITING)
    async with serving(tmp_path, chats, models) as served:
        yield served


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def until_error(
    stream: openai.AsyncStream[ChatCompletionChunk],
) -> tuple[list[ChatCompletionChunk], openai.APIError]:
    """A stream that has to fail: what came before, and how it failed."""
    chunks = []
    try:
        async for chunk in stream:
            chunks.append(chunk)  # noqa: PERF401  # a comprehension would lose them with the error
    except openai.APIError as error:
        return chunks, error
    pytest.fail("the stream ended without an error")


# -- plain models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_completion_over_both_sockets_and_both_clients_is_the_same(served: Served, tcp: bool) -> None:
    """Synchronous and not, whole and in pieces."""
    client = served.over_tcp() if tcp else served.client
    whole = await client.chat.completions.create(model="small", messages=SAY)
    stream = await client.chat.completions.create(model="small", messages=SAY, stream=True)
    chunks = [chunk async for chunk in stream]
    sync = await served.in_thread(lambda c: c.chat.completions.create(model="small", messages=SAY), tcp=tcp)
    pieces = await served.in_thread(
        lambda c: list(c.chat.completions.create(model="small", messages=SAY, stream=True)), tcp=tcp
    )
    assert whole.choices[0].message.content == sync.choices[0].message.content == "one two three"
    assert text_of(chunks) == text_of(pieces) == "one two three"
    assert whole.model == "small"
    assert whole.choices[0].finish_reason == "stop"
    if tcp:
        await client.close()


async def test_stream_begins_with_the_role_and_ends_with_the_reason_and_usage(served: Served) -> None:
    """One id for all chunks; usage is null until the last, where it was asked for."""
    stream = await served.client.chat.completions.create(
        model="small", messages=SAY, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *parts, usage = chunks
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert (parts[0].choices[0].delta.role, parts[0].choices[0].delta.content) == ("assistant", "")
    assert [p.choices[0].finish_reason for p in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert all(p.usage is None and "usage" in p.model_fields_set for p in parts)
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 3


async def test_stream_without_stream_options_has_no_usage(served: Served) -> None:
    """As OpenAI has it."""
    stream = await served.client.chat.completions.create(model="small", messages=SAY, stream=True)
    assert all("usage" not in chunk.model_fields_set for chunk in [c async for c in stream])


async def test_stream_ends_as_server_sent_events_do(served: Served) -> None:
    """Every line is data, and the last says so."""
    async with served.client.chat.completions.with_streaming_response.create(
        model="small", messages=SAY, stream=True
    ) as response:
        lines = [line async for line in response.iter_lines() if line]
        assert response.headers["content-type"] == "text/event-stream"
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


async def test_silent_stream_shows_signs_of_life_that_clients_skip(tmp_path: Path, engine: ScriptedEngine) -> None:
    """A proxy would end a connection on which nothing comes."""
    models = {"small": Model()}
    chats = Completions(engine, models, Dialects(lambda _: ChatTemplate()), max_waiting=WAITING)
    async with serving(tmp_path, chats, models, limits=Limits(heartbeat_s=0.02)) as served:
        async with served.client.chat.completions.with_streaming_response.create(
            model="small", messages=NOTE, stream=True
        ) as response:
            lines = [line async for line in response.iter_lines() if line]
        stream = await served.client.chat.completions.create(model="small", messages=NOTE, stream=True)
        assert text_of([chunk async for chunk in stream]) == "done"
    assert ": still working" in lines[:1]
    assert lines[-1] == "data: [DONE]"


async def test_tool_that_is_called_and_answered_leads_to_the_answer(served: Served) -> None:
    """Call, result, answer: with the messages as the SDK gives them back."""
    messages: list[Any] = [{"role": "user", "content": "open it"}]
    first = await served.client.chat.completions.create(model="small", messages=messages, tools=[VALVE])
    (choice,) = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls is not None
    (made,) = choice.message.tool_calls
    assert made.type == "function"
    assert (made.function.name, json.loads(made.function.arguments)) == ("set_valve", {"valve": "nörd"})
    messages += [choice.message, {"role": "tool", "tool_call_id": made.id, "content": "ok"}]
    second = await served.client.chat.completions.create(model="small", messages=messages, tools=[VALVE])
    assert (second.choices[0].message.content, second.choices[0].finish_reason) == ("It is open.", "stop")


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_tool_call_streams_as_it_is_written_and_the_sdk_puts_it_together(served: Served, choice: Any) -> None:
    """Name and id first, then the arguments in pieces; no text beside them."""
    chunks = []
    async with served.client.chat.completions.stream(
        model="small", messages=NOTE, tools=[VALVE, TAKE_DOWN], tool_choice=choice
    ) as stream:
        async for event in stream:
            if event.type == "chunk":
                chunks += [call for c in event.chunk.choices for call in c.delta.tool_calls or ()]
        final = await stream.get_final_completion()
    (made,) = final.choices
    assert (made.finish_reason, made.message.content) == ("tool_calls", None)
    assert made.message.tool_calls is not None
    assert json.loads(made.message.tool_calls[0].function.arguments) == NOTED["arguments"]
    first, *rest = chunks
    assert first.function is not None
    assert (first.index, first.type, first.function.name, first.function.arguments) == (0, "function", "note", "")
    assert first.id == made.message.tool_calls[0].id
    assert all((more.id, more.type, more.index) == (None, None, 0) for more in rest)
    assert [more.function.arguments for more in rest if more.function] == [
        '{"text": "milk, ',
        "eggs ",
        "and ",
        'more"}',
    ]
    whole = await served.client.chat.completions.create(
        model="small", messages=NOTE, tools=[VALVE, TAKE_DOWN], tool_choice=choice
    )
    assert whole.choices[0].message.tool_calls is not None
    (call,) = whole.choices[0].message.tool_calls
    assert call.type == "function"
    assert call.function.arguments == made.message.tool_calls[0].function.arguments


async def test_required_call_that_no_script_has_is_an_error(served: Served) -> None:
    """A scripted model follows no grammar."""
    with pytest.raises(openai.InternalServerError, match="made no call"):
        await served.client.chat.completions.create(model="small", messages=SAY, tools=[VALVE], tool_choice="required")


async def test_logprobs_of_a_stream_come_with_their_text(served: Served) -> None:
    """As many as tokens, and none where they were not asked for."""
    stream = await served.client.chat.completions.create(
        model="small", messages=SAY, stream=True, logprobs=True, top_logprobs=2
    )
    choices = [chunk.choices[0] async for chunk in stream]
    told = [(c.delta.content, [t.token for t in c.logprobs.content or ()]) for c in choices if c.logprobs]
    assert all(text == "".join(tokens) for text, tokens in told)
    assert [token for _, tokens in told for token in tokens] == ["one ", "two ", "three"]


async def test_stop_ends_the_text(served: Served) -> None:
    """Beside tools, too."""
    for tools in ([], [VALVE]):
        whole = await served.client.chat.completions.create(model="small", messages=SAY, stop=["three"], tools=tools)
        assert whole.choices[0].message.content == "one two "


# -- what clients of other servers send ------------------------------------------------------------------------------

FOREIGN: Any = {
    "top_k": 40,
    "min_p": 0.05,
    "typical_p": 1.0,
    "repeat_penalty": 1.1,
    "seed": -1,
    "max_tokens": -1,
    "max_completion_tokens": 50,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "chat_template_kwargs": {"enable_thinking": False},
    "reasoning_effort": "high",
    "cache_prompt": True,
    "keep_alive": "5m",
    "tool_choice": "auto",
    "store": True,
}
HAS_NO_EFFECT = "typical_p, chat_template_kwargs, reasoning_effort, cache_prompt, keep_alive, store"
REPLAYED: Any = [
    {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
    {"role": "assistant", "content": "Hello", "reasoning_content": "A greeting."},
    *SAY,
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["small", "house"])
async def test_parameters_of_other_servers_work_or_are_named_in_a_header(
    served: Served, model: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Once per client and name in the log. An agent has its own way of choosing tokens."""
    caplog.set_level("INFO", logger="edged.http")

    async def work(_ask: Ask, _: OnDelta) -> Reply:
        return done("It is open.")

    served.house.work = work
    named = ""
    for _ in range(2):
        raw: Any = await served.client.chat.completions.with_raw_response.create(
            model=model, messages=SAY, stream=stream, extra_body=FOREIGN
        )
        named = raw.headers["Edged-Ignored"]
        chunks = [chunk async for chunk in raw.parse()] if stream else [raw.parse()]
        assert chunks
    samplers = ", top_k, min_p, repeat_penalty, presence_penalty, frequency_penalty" if model == "house" else ""
    assert named == HAS_NO_EFFECT + samplers
    noted = [record.getMessage() for record in caplog.records if getattr(record, "event", "") == "parameter_ignored"]
    assert len(noted) == len(named.split(", "))
    assert any(line.endswith(" sends keep_alive, which has no effect") for line in noted)


async def test_history_of_another_server_is_taken(served: Served) -> None:
    """Its reasoning and its cache's marks are dropped, and named."""
    raw = await served.client.chat.completions.with_raw_response.create(model="small", messages=REPLAYED)
    assert raw.parse().choices[0].message.content == "one two three"
    assert raw.headers["Edged-Ignored"] == "messages.content.cache_control, messages.reasoning_content"


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("tools", [[], [VALVE]], ids=["no-tools", "tools"])
@pytest.mark.parametrize(("said", "answer"), [("ponder", "one two three"), ("brood", "")])
async def test_thinking_of_a_model_is_no_part_of_its_answer(
    served: Served, said: str, answer: str, tools: Any, logprobs: bool
) -> None:
    """Whole and streamed; a tag that is never closed, too. Its tokens are told of none."""
    question: Any = [{"role": "user", "content": said}]
    asked: Any = {"model": "small", "messages": question, "tools": tools, "logprobs": logprobs}
    choice = (await served.client.chat.completions.create(**asked)).choices[0]
    chunks: Any = await served.client.chat.completions.create(**asked, stream=True)
    assert choice.message.content == text_of([chunk async for chunk in chunks]) == answer
    if logprobs:
        assert choice.logprobs is not None
        assert "think" not in "".join(token.token for token in choice.logprobs.content or ())


async def test_answer_to_what_openai_documents_names_nothing(served: Served) -> None:
    """The header is not there."""
    raw = await served.client.chat.completions.with_raw_response.create(model="small", messages=SAY, temperature=0)
    assert "Edged-Ignored" not in raw.headers


async def test_clients_that_make_up_names_fill_neither_memory_nor_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """At most 1,000 pairs of client and name are remembered."""
    caplog.set_level("INFO", logger="edged.http")
    for batch in range(3):
        made_up: Any = {f"x{batch}_{i}": 1 for i in range(400)}
        await served.client.chat.completions.create(model="small", messages=SAY, extra_body=made_up)
    assert len([r for r in caplog.records if getattr(r, "event", "") == "parameter_ignored"]) == 1000


@pytest.mark.parametrize("more", [{name: value} for name, value in FOREIGN.items() if name not in (
    "max_completion_tokens", "tool_choice")], ids=lambda more: next(iter(more)))  # fmt: skip
async def test_strict_refuses_them(tmp_path: Path, engine: ScriptedEngine, more: Any) -> None:
    """[http] strict, for who would rather know."""
    models = {"small": Model()}
    chats = Completions(engine, models, Dialects(lambda _: ChatTemplate()), max_waiting=WAITING)
    async with serving(tmp_path, chats, models, strict=True) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await served.client.chat.completions.create(model="small", messages=SAY, extra_body=more)
        assert caught.value.param == next(iter(more))


# -- what is refused ---------------------------------------------------------------------------------------------------


async def test_parameter_that_is_refused_raises_the_sdks_error(served: Served) -> None:
    """With the parameter's name; a stream, too, while nothing was sent."""
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await served.client.chat.completions.create(model="small", messages=SAY, n=2, stream=stream)
        error = caught.value
        assert (error.param, error.type, error.code) == ("n", "invalid_request_error", "bad_request")
        assert "allowed is 1" in error.message


async def test_unknown_model_raises_not_found(served: Served) -> None:
    """With the names there are."""
    with pytest.raises(openai.NotFoundError, match="there are small, house") as caught:
        await served.client.chat.completions.create(model="gpt-4", messages=SAY)
    assert (caught.value.code, caught.value.type, caught.value.param) == (
        "model_not_found",
        "not_found_error",
        "model",
    )


async def test_caller_without_a_role_may_nothing(served: Served) -> None:
    """Neither an agent nor a model, and sees none."""
    await served.become(GUEST)
    for name in ("house", "small"):
        with pytest.raises(openai.PermissionDeniedError):
            await served.client.chat.completions.create(model=name, messages=SAY)
        with pytest.raises(openai.PermissionDeniedError):
            await served.client.models.retrieve(name)
    assert (await served.client.models.list()).data == []


async def test_models_are_the_agents_and_models_of_the_caller(served: Served) -> None:
    """Plain models first, because some clients propose the first. An agent he may not use is not listed."""
    listed = await served.client.models.list()
    assert [(m.id, m.owned_by, m.object) for m in listed.data] == [
        ("small", "edged", "model"),
        ("house", "edged", "model"),
    ]
    assert (await served.client.models.retrieve("small")).id == "small"
    with pytest.raises(openai.NotFoundError, match="there are small, house"):
        await served.client.models.retrieve("large")
    with pytest.raises(openai.PermissionDeniedError):
        await served.client.models.retrieve("barn")


async def test_body_that_is_too_long_raises_413(served: Served) -> None:
    """Told while the rest of it is still on its way."""
    with pytest.raises(openai.APIStatusError, match="at most 262144 are taken") as caught:
        await served.client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "x" * MAX_REQUEST_BYTES}]
        )
    assert caught.value.status_code == 413


@pytest.mark.parametrize(
    ("headers", "problem"),
    [({}, "is not valid json: JSON is malformed"), ({"Content-Encoding": "gzip"}, "not as its headers say")],
    ids=["json", "gzip"],
)
async def test_body_that_cannot_be_read_is_a_bad_request(served: Served, headers: Any, problem: str) -> None:
    """In OpenAI's shape, as everything."""
    transport = httpx2.AsyncHTTPTransport(uds=str(served.socket))
    async with httpx2.AsyncClient(transport=transport) as client:
        response = await client.post("http://edged/v1/chat/completions", content=b"{ this", headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert problem in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "kind", "code", "after"),
    [
        (Busy("b", retry_after_s=7), openai.InternalServerError, "busy", "7"),
        (ContextExceeded(9, 5), openai.APIStatusError, "context_length_exceeded", None),
        (ZeroDivisionError("secret"), openai.InternalServerError, "internal", None),
    ],
    ids=["busy", "context", "bug"],
)
async def test_error_of_the_engine_is_told_before_and_after_the_first_word(
    served: Served,
    engine: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[openai.APIStatusError],
    code: str,
    after: str | None,
) -> None:
    """By status and Retry-After; behind text that was sent, by an event."""
    speaks = False

    async def fail(_job: Any, _: object = None, *, on_piece: Any = None) -> None:
        if speaks:
            on_piece("one ", ())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        raise error

    monkeypatch.setattr(engine, "generate", fail)
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            await served.client.chat.completions.create(model="small", messages=SAY, stream=stream)
        assert caught.value.code == code
        assert caught.value.response.headers.get("Retry-After") == after
        assert "secret" not in str(caught.value)
    speaks = True
    begun = await served.client.chat.completions.create(model="small", messages=SAY, stream=True)
    chunks, late = await until_error(begun)
    assert text_of(chunks) == "one "
    assert late.code == code
    assert "secret" not in str(late)


# -- clients that leave ------------------------------------------------------------------------------------------------


async def until_idle(served: Served) -> None:
    async with asyncio.timeout(10):
        while served.answering:
            await asyncio.sleep(0.01)


async def test_stream_that_is_closed_ends_the_generation(served: Served) -> None:
    """Its place is free again."""
    stream = await served.client.chat.completions.create(model="small", messages=ENDLESS, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    assert served.answering == 1
    await stream.close()
    await until_idle(served)


async def test_question_that_is_given_up_ends_the_generation(served: Served) -> None:
    """Nobody could get the answer."""
    asked = asyncio.create_task(served.client.chat.completions.create(model="small", messages=ENDLESS))
    async with asyncio.timeout(10):
        while not served.answering:
            await asyncio.sleep(0.01)
    asked.cancel()
    await asyncio.wait([asked])
    await until_idle(served)


async def test_completions_beyond_what_may_wait_are_told_to_come_again(served: Served) -> None:
    """And those that leave make place."""
    asked = [
        asyncio.create_task(served.client.chat.completions.create(model="small", messages=ENDLESS))
        for _ in range(AT_ONCE + WAITING)
    ]
    async with asyncio.timeout(10):
        while served.answering < AT_ONCE + WAITING:
            await asyncio.sleep(0.01)
    with pytest.raises(openai.InternalServerError) as caught:
        await served.client.chat.completions.create(model="small", messages=SAY)
    assert (caught.value.code, caught.value.type) == ("busy", "rate_limit_error")
    assert int(caught.value.response.headers["Retry-After"]) > 0
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)
    await until_idle(served)
    assert (await served.client.chat.completions.create(model="small", messages=SAY)).choices


async def test_reader_that_is_slow_gets_all_of_it_in_fewer_chunks(served: Served) -> None:
    """What comes meanwhile goes out as one; nothing is lost."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(peer, str(served.socket))
        words = " ".join(str(n) for n in range(40_000))
        body = json.dumps({"model": "small", "stream": True, "messages": [{"role": "user", "content": words}]}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        await loop.sock_sendall(peer, head % len(body) + body)
        received = b""
        while data := await loop.sock_recv(peer, 2**20):
            received += data
    events = [json.loads(line[6:]) for line in received.split(b"\n") if line.startswith(b"data: {")]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == words
    assert len(events) < 20_000


# -- agents ------------------------------------------------------------------------------------------------------------


async def test_agent_answers_with_what_it_did_beside_openais_shape(served: Served) -> None:
    """A header names the request; the reply says how to find it."""

    async def work(_ask: Ask, _: OnDelta) -> Reply:
        return done("It is open.")

    served.house.work = work
    whole = await served.client.chat.completions.create(
        model="house",
        messages=HI,
        max_completion_tokens=9,
        temperature=0.5,
        response_format={"type": "json_object"},
        extra_headers={"Idempotency-Key": "my-id"},
    )
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("It is open.", "stop")
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    assert (whole.usage.prompt_tokens, whole.usage.prompt_tokens_details.cached_tokens) == (12, 8)
    assert whole.model_extra is not None
    ours = whole.model_extra["edged"]
    assert (ours["rid"], ours["degraded"], ours["route"]["where"]) == ("r1", False, "local")
    assert ours["tool_calls"][0]["name"] == "set_valve"
    request = served.house.asks[0].request
    assert (request.id, request.agent, request.max_tokens, request.temperature) == ("my-id", "house", 9, 0.5)
    assert request.response_schema == {"type": "object"}


@pytest.mark.parametrize("fields", [{"tools": [VALVE]}, {"tool_choice": "required"}, {"logprobs": True}, {"seed": -2}])
async def test_agent_refuses_what_only_models_do(served: Served, fields: Any) -> None:
    """Before anything is stored."""
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.chat.completions.create(model="house", messages=HI, **fields)
    assert caught.value.param == next(iter(fields))
    assert served.house.asks == []


async def test_agent_whose_messages_do_not_end_with_a_question_is_told(served: Served) -> None:
    """The error of edged's own check names the parameter."""
    with pytest.raises(openai.BadRequestError, match="must be the user's") as caught:
        await served.client.chat.completions.create(model="house", messages=[{"role": "system", "content": "x"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("stream", [False, True])
async def test_agent_that_fails_raises_with_what_was_done(served: Served, stream: bool) -> None:
    """The status is the error's, and the body tells of effects."""

    async def work(_ask: Ask, _: OnDelta) -> Reply:
        fault = Fault(NoLink.code, "no way out", retryable=True, retry_after_s=30)
        return done(None, status=Status.FAILED, error=fault)

    served.house.work = work
    with pytest.raises(openai.InternalServerError, match="no way out") as caught:
        await served.client.chat.completions.create(model="house", messages=HI, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (503, "no_link")
    assert caught.value.response.headers["Retry-After"] == "30"
    assert caught.value.response.json()["edged"]["tool_calls"][0]["ok"]


async def agent_stream(served: Served, deltas: list[tuple[int, str]], reply: Reply) -> list[dict[str, Any]]:
    """The events of an agent that says this and replies that."""

    async def work(_ask: Ask, on_delta: OnDelta) -> Reply:
        for offset, text in deltas:
            on_delta(offset, text)
            await asyncio.sleep(0)
        return reply

    served.house.work = work
    async with served.client.chat.completions.with_streaming_response.create(
        model="house", messages=HI, stream=True, stream_options={"include_usage": True}
    ) as response:
        lines = [line async for line in response.iter_lines() if line]
    return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


def words_of(events: list[dict[str, Any]]) -> str:
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events if e.get("choices"))


@pytest.mark.parametrize(
    "deltas",
    [
        [(0, "It is "), (6, "open.")],
        [(0, "It is"), (0, "It "), (3, "is open.")],
        [(0, " It is open.\n")],
        [(6, "open.")],
        [],
    ],
    ids=["steady", "again", "space", "late", "none"],
)
async def test_agent_streams_its_answer_once(served: Served, deltas: list[tuple[int, str]]) -> None:
    """However it came about."""
    events = await agent_stream(served, deltas, done("It is open."))
    assert words_of(events) == "It is open."
    *_, last, usage = events
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["edged"]["rid"] == "r1"
    assert usage["usage"]["prompt_tokens"] == 12
    assert served.house.asks[0].request.stream


@pytest.mark.parametrize(
    ("deltas", "reply", "code"),
    [
        ([(0, "It is"), (0, "No, it")], done("No, it is not."), "internal"),
        ([(0, "It is")], done(None, status=Status.FAILED, error=Fault("tool_failed", "t")), "tool_failed"),
    ],
    ids=["another-answer", "failed"],
)
async def test_agent_whose_stream_cannot_go_on_ends_it_with_an_error(
    served: Served, deltas: list[tuple[int, str]], reply: Reply, code: str
) -> None:
    """Nothing is sent twice or taken back."""
    events = await agent_stream(served, deltas, reply)
    assert words_of(events[:-1]) == "It is"
    assert events[-1]["error"]["code"] == code
    assert events[-1]["edged"]["rid"] == "r1"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("id", [None, "mine"])
async def test_agent_whose_client_leaves_is_cancelled_unless_it_had_an_id(
    served: Served, stream: bool, id: str | None
) -> None:
    """What has a name may be asked for again."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def work(_ask: Ask, on_delta: OnDelta) -> Reply:
        on_delta(0, "one")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return done("never")

    async def ask() -> None:
        answer: Any = await served.client.chat.completions.create(
            model="house", messages=HI, stream=stream, extra_headers={"Idempotency-Key": id} if id else None
        )
        async for _ in answer:
            began.set()

    served.house.work = work
    asked = asyncio.create_task(ask())
    async with asyncio.timeout(10):
        await (began if stream else served.house.waits).wait()
        asked.cancel()
        await asyncio.wait([asked])
        await ended.wait()
        await until_idle(served)
        if id is None:
            assert await served.house.cancelled.get() == "r1"
        else:
            while [task for task in asyncio.all_tasks() if task.get_name() == "edged.abandoned"]:
                await asyncio.sleep(0)
    assert served.house.cancelled.empty()


async def test_server_that_stops_cancels_no_request_of_an_agent(tmp_path: Path, engine: ScriptedEngine) -> None:
    """It goes on after the next start."""
    ended = asyncio.Event()

    async def work(_ask: Ask, _: OnDelta) -> Reply:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return done("never")

    chats = Completions(engine, {}, Dialects(lambda _: ChatTemplate()), max_waiting=1)
    async with serving(tmp_path, chats, {}) as served:
        served.house.work = work
        asked = asyncio.create_task(served.client.chat.completions.create(model="house", messages=HI))
        await served.house.waits.wait()
    with pytest.raises((openai.APIConnectionError, openai.APIStatusError)):
        await asked
    assert ended.is_set()
    assert served.house.cancelled.empty()
