"""Servers of the OpenAI API as they are: each answer comes into the same shape, each error says what it is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from edged import errors
from edged.config import Model, Upstream
from edged.types import Chat, ChatAnswer, Message, ToolSpec
from edged.upstreams import Cloud, http
from edged.upstreams.local_servers import LocalServers
from tests.support import cloud as clouds
from tests.support.cloud import MODEL, Behaviour, ScriptedCloud, by, raw, status
from tests.support.recorded import CALL, REFUSALS, SERVERS, TEXT, Recorded, Refused

NAME = "cloud"
EVENTS = "text/event-stream"
VALVE = ToolSpec("set_valve", "Open or close a valve.", {"type": "object", "properties": {"valve": {}}})
LOADING = status(503, "Loading model", code=503, type="unavailable_error")


class Tokens:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.total = 0

    async def spent(self, upstream: str, day: str) -> int:
        return self.total

    async def add(self, upstream: str, day: str, tokens: int) -> None:
        self.total += tokens


class Asking:
    """One server, asked as an upstream."""

    def __init__(self, base_url: str, **settings: object) -> None:
        self.tokens = Tokens()
        self.cloud = Cloud({NAME: Upstream(base_url=base_url, model=MODEL, **settings)}, self.tokens)  # type: ignore[arg-type]

    async def ask(self, *, stream: bool = True, **more: object) -> tuple[ChatAnswer, str]:
        pieces: list[str] = []
        chat = Chat(**{"key": "r:0", "messages": (Message("user", "hi"),), "max_tokens": 60, **more})  # type: ignore[arg-type]
        answer = await self.cloud.chat(NAME, chat, pieces.append if stream else None)
        return answer, "".join(pieces)

    async def close(self) -> None:
        await self.cloud.stop()


async def answered(recorded: Recorded, body: bytes, tools: tuple[ToolSpec, ...]) -> tuple[ChatAnswer, str]:
    """What one of its streams comes to."""
    async with ScriptedCloud(prefix=recorded.base) as server:
        server.will(raw(body, content_type=EVENTS))
        one = Asking(server.base_url)
        try:
            return await one.ask(tools=tools, stop=recorded.stop)
        finally:
            await one.close()


@pytest.mark.parametrize("name", SERVERS)
async def test_text_of_every_server_is_the_same_answer(name: str) -> None:
    """Words, thoughts, the reason it ended and what it counted; and the pieces are the words."""
    recorded = SERVERS[name]
    answer, pieces = await answered(recorded, recorded.text, ())
    assert (answer.text, pieces, answer.calls, answer.finish) == (TEXT, TEXT, (), "stop")
    assert answer.reasoning == recorded.thought
    counted = (answer.prompt_tokens, answer.completion_tokens)
    assert counted == (recorded.counted or (1, 6))  # a quarter of the characters


@pytest.mark.parametrize("name", SERVERS)
async def test_call_of_every_server_is_the_same_call(name: str) -> None:
    """However it comes in pieces, is numbered, and ends."""
    recorded = SERVERS[name]
    answer, pieces = await answered(recorded, recorded.calls, (VALVE,))
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == [CALL]
    assert (answer.text, pieces, answer.finish) == ("", "", "tool_calls")
    assert answer.reasoning == recorded.thought


@pytest.mark.parametrize("name", REFUSALS)
async def test_error_of_every_server_says_what_it_is(name: str) -> None:
    """Never an empty answer, and never one that was only begun."""
    refused: Refused = REFUSALS[name]
    async with ScriptedCloud() as server:
        kind = EVENTS if refused.stream else "application/json"
        server.otherwise = raw(refused.body, content_type=kind, code=refused.status)
        one = Asking(server.base_url)
        try:
            with pytest.raises(getattr(errors, refused.means)) as caught:
                await one.ask(tools=(VALVE,))
        finally:
            await one.close()
    assert refused.words in str(caught.value)


async def test_model_that_foundry_has_not_loaded_needs_a_person() -> None:
    """Its probes go on as for a wrong key, not as for a server that is broken."""
    async with ScriptedCloud() as server:
        server.otherwise = status(500, "No OpenAIService provider found for modelName: phi")
        one = Asking(server.base_url)
        with pytest.raises(errors.NoLink, match="No OpenAIService"):
            await one.ask()
        assert one.cloud.status()[NAME]["state"] == "down"
        await one.close()


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("base", ["/v1", "/v3", "/api/v1", "/openai/v1", ""])
async def test_base_url_ends_as_the_server_has_it(base: str, slash: str) -> None:
    """As an upstream, and as a server on this board."""
    async with ScriptedCloud(prefix=base) as server:
        one = Asking(server.base_url + slash)
        here = LocalServers({"npu": Model(base_url=server.base_url + slash, model=MODEL)})
        await here.look("npu")
        chat = Chat(key="r:0", messages=(Message("user", "hi"),), max_tokens=5)
        assert ((await one.ask())[0].text, (await here.chat("npu", chat)).text) == ("ok", "ok")
        await one.close()
        await here.stop()
        assert {one.path for one in server.received} == {f"{base}/models", f"{base}/chat/completions"}


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedCloud]:
    """Where loading is quick."""
    monkeypatch.setattr(http, "LOADING_S", 0.01)
    async with ScriptedCloud() as running:
        yield running


@pytest.mark.parametrize("stream", [True, False])
async def test_upstream_that_loads_its_model_is_waited_for(server: ScriptedCloud, stream: bool) -> None:
    """llama-server listens before it can answer."""
    server.will(LOADING, LOADING, LOADING, LOADING)
    one = Asking(server.base_url)
    answer, _ = await one.ask(stream=stream)
    assert (answer.text, len(server.chats)) == ("ok", 5)
    assert len({chat.headers["Idempotency-Key"] for chat in server.chats}) == 1
    assert one.cloud.status()[NAME]["reason"] is None
    await one.close()


async def test_server_on_the_board_that_loads_its_model_is_waited_for(server: ScriptedCloud) -> None:
    """Its list of models may be refused as long."""
    server.models = LOADING
    server.will(LOADING, LOADING)
    here = LocalServers({"npu": Model(base_url=server.base_url, model=MODEL)})
    await here.look("npu")
    chat = Chat(key="r:0", messages=(Message("user", "hi"),), max_tokens=5)
    assert (await here.chat("npu", chat)).text == "ok"
    assert len(server.chats) == 3
    await here.stop()


async def test_server_that_loads_for_ever_is_given_up(server: ScriptedCloud) -> None:
    """After the time that an answer may take."""
    server.otherwise = LOADING
    one = Asking(server.base_url, timeout_s=0.3, connect_timeout_s=0.3, first_byte_timeout_s=0.3)
    with pytest.raises(errors.NoLink, match="Loading model"):
        await one.ask()
    assert len(server.chats) > 1
    await one.close()


def _choosy(body: dict[str, object]) -> str | Behaviour:
    if body.get("tool_choice") == "required":
        return status(400, "tool_choice: required is not supported")
    return clouds.calls(CALL)


async def test_server_that_knows_no_required_call_is_told_that_it_may(server: ScriptedCloud) -> None:
    """OpenVINO Model Server before 2025.4: whether it called is looked at by who asked."""
    server.otherwise = by(_choosy)
    one = Asking(server.base_url)
    for _ in range(2):
        answer, _ = await one.ask(tools=(VALVE,), must_call=True)
        assert [call.name for call in answer.calls] == ["set_valve"]
    assert [chat.body["tool_choice"] for chat in server.chats] == ["required", "auto", "auto"]
    await one.close()


async def test_text_ends_before_its_stop_string(server: ScriptedCloud) -> None:
    """Servers that include it, in one piece or several, and one that takes no notice and writes on to the limit."""
    one = Asking(server.base_url)
    for pieces in (["one E", "ND"], ["one END"], ["one END two"], ["one ", "E", "N", "D", " END"]):
        server.will(clouds.stream(*pieces, finish="length"))
        answer, streamed = await one.ask(stop=("END", "never"))
        assert (answer.text, streamed, answer.finish) == ("one ", "one ", "stop")
        server.will(clouds.text("".join(pieces), finish="stop"))
        assert (await one.ask(stop=("END",), stream=False))[0].text == "one "
    server.will(clouds.stream("one E", "N", finish="length"))
    answer, streamed = await one.ask(stop=("END",))
    assert (answer.text, streamed, answer.finish) == ("one EN", "one EN", "length")
    await one.close()
