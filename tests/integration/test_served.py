"""Servers on this board: whether they are there, what they are asked, what goes wrong. The server is real HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from edged.agent.dialects import Dialects
from edged.agent.dialects.chat_template import write_json
from edged.completions.calls import CallPiece
from edged.completions.plain import Completions
from edged.completions.request import ModelAsk, ToolChoice
from edged.completions.results import MARK
from edged.config import Model
from edged.errors import BadRequest, ContextExceeded, EdgedError, ModelAway, ModelUnavailable, ToolFailed
from edged.host import loopback
from edged.types import SERVER_ENGINE, Chat, Finish, Message, TokenLogprob, ToolCall, ToolSpec
from edged.upstreams import LocalServers
from edged.upstreams.link import ProbeTiming
from tests.support import cloud as clouds
from tests.support.cloud import ScriptedCloud

HELLO = (Message("user", "hello"),)
VALVE = ToolSpec("set", "Valve.", {"type": "object", "properties": {"v": {"enum": ["a", "b"]}}, "required": ["v"]})
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
NEVER = ProbeTiming(first_s=600.0, longest_s=600.0, idle_s=600.0, refused_s=600.0, refused_longest_s=600.0)  # by itself


class Board:
    """A model behind a server, and what was told of it."""

    def __init__(self, base_url: str, **more: Any) -> None:
        self.model = Model(engine=SERVER_ENGINE, base_url=base_url, model="large", timeout_s=5.0, **more)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.answered: list[str] = []
        self._news = asyncio.Event()
        self.served = LocalServers(
            {"npu": self.model},
            tell=self._tell,
            answered=lambda model, _: self.answered.append(model),
            timing=NEVER,
        )

    def _tell(self, name: str, data: dict[str, Any]) -> None:
        self.events.append((name, data))
        self._news.set()

    async def told(self, name: str) -> dict[str, Any]:
        """The last event, when it is this one."""
        async with asyncio.timeout(clouds.WAIT_S):
            while not self.events or self.events[-1][0] != name:
                self._news.clear()
                await self._news.wait()
        return self.events[-1][1]

    async def ask(self, text: str = "hello", **more: Any) -> str:
        """A completion's text."""
        chat = Chat(**{"key": "k", "messages": (Message("user", text),), "max_tokens": 9, **more})
        return (await self.served.chat("npu", chat)).text

    @property
    def state(self) -> tuple[str, bool, str | None]:
        """(state, up, reason)."""
        status = self.served.status()["npu"]
        return status["state"], status["server"]["up"], status["server"]["reason"]


@asynccontextmanager
async def running(base_url: str, **more: Any) -> AsyncIterator[Board]:
    """Whose task runs."""
    board = Board(base_url, **more)
    task = asyncio.create_task(board.served.run())
    try:
        yield board
    finally:
        task.cancel()
        await asyncio.wait([task])
        await board.served.stop()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedCloud]:
    """That answers "ok"."""
    async with ScriptedCloud() as scripted:
        yield scripted


async def test_server_is_known_before_anybody_asks(server: ScriptedCloud) -> None:
    """By its list of models; the event says so."""
    async with running(server.base_url) as board:
        assert (await board.told("server_up"))["model"] == "npu"
        assert board.state == ("ready", True, None)
        assert await board.ask() == "ok"
    assert board.answered == ["npu"]
    assert server.chats[0].body["model"] == "large"


async def test_server_that_goes_and_comes_back_is_found_by_the_next_request(server: ScriptedCloud) -> None:
    """It does not wait for a probe, which is ten minutes away here."""
    async with running(server.base_url) as board:
        await board.told("server_up")
        await server.stop()
        with pytest.raises(ModelAway, match=r"model 'npu', server http://127.0.0.1:\d+/v1: Cannot connect") as caught:
            await board.ask()
        assert caught.value.retryable
        assert caught.value.retry_after_s
        assert "Cannot connect" in (await board.told("server_down"))["reason"]
        assert board.state[:2] == ("missing", False)
        with pytest.raises(ModelAway):
            await board.ask()
        await server.start()
        assert await board.ask() == "ok"
        await board.told("server_up")
    assert [name for name, _ in board.events] == ["server_up", "server_down", "server_up"]


async def test_model_that_the_server_does_not_offer_is_named_with_those_it_does(server: ScriptedCloud) -> None:
    """And nothing is asked of another one."""
    server.models = clouds.listed("tiny", "huge")
    async with running(server.base_url) as board:
        told = await board.told("server_down")
        assert told["reason"] == "it does not offer 'large'; it offers 'tiny', 'huge'"
        with pytest.raises(ModelUnavailable, match="does not offer 'large'; it offers 'tiny', 'huge'"):
            await board.ask()
        assert board.state[0] == "missing"
        assert server.chats == []
        server.models = clouds.listed("large:latest")  # as Ollama lists it, once it was pulled
        assert await board.ask() == "ok"


@pytest.mark.parametrize("models", [clouds.status(404), clouds.listed("large")], ids=["no list", "a wrong one"])
async def test_server_that_refuses_the_model_in_spite_of_its_list_is_believed(
    server: ScriptedCloud, models: clouds.Behaviour
) -> None:
    """It is told as gone once, whatever its probes say, until a request is answered."""
    server.models = models
    server.otherwise = clouds.wrong_model("large")
    async with running(server.base_url) as board:
        await board.told("server_up")
        for _ in range(2):
            with pytest.raises(ModelUnavailable, match="`large` does not exist"):
                await board.ask()
        await board.served.look("npu")
        assert board.state[:2] == ("missing", False)
        server.otherwise = clouds.text("pulled")
        assert await board.ask() == "pulled"
        assert board.state == ("ready", True, None)
    assert [name for name, _ in board.events] == ["server_up", "server_down", "server_up"]


FAULTS: list[tuple[clouds.Behaviour, type[EdgedError], str]] = [
    (clouds.status(500), ModelAway, "HTTP 500: it is broken"),
    (clouds.invalid_json(), ModelAway, "not an answer of the OpenAI API"),
    (clouds.html_page(), ModelAway, "an HTML page"),
    (clouds.cut(), ModelAway, "the connection was cut"),
    (clouds.dropped(), ModelAway, "the connection was cut"),
    (clouds.redirect("http://example.com/v1/chat/completions"), ModelAway, "sent on to example.com"),
    (clouds.status(503, retry_after="7"), ModelAway, "HTTP 503"),
    (clouds.status(400, "no such parameter"), ModelUnavailable, "no such parameter"),
    (
        clouds.status(400, "the request exceeds the available context size", type="exceed_context_size_error"),
        ContextExceeded,
        "available context size",
    ),
    (clouds.status(400, "This model's maximum context length is 512"), ContextExceeded, "maximum context length"),
]


@pytest.mark.parametrize(("fault", "kind", "told"), FAULTS, ids=[told for _, _, told in FAULTS])
@pytest.mark.parametrize("stream", [False, True])
async def test_fault_of_the_server_is_told_as_what_it_is(
    server: ScriptedCloud, fault: clouds.Behaviour, kind: type[EdgedError], told: str, stream: bool
) -> None:
    """Retryable where it may be chance; a prompt that is too long may go elsewhere."""
    server.otherwise = fault
    board = Board(server.base_url)
    chat = Chat(key="k", messages=HELLO, max_tokens=9)
    with pytest.raises(kind, match=told) as caught:
        await board.served.chat("npu", chat, (lambda _: None) if stream else None)
    assert caught.value.retryable == (kind is ModelAway)
    await board.served.stop()


async def test_server_that_stalls_is_given_up_after_timeout_s(server: ScriptedCloud) -> None:
    """Which bounds the whole answer."""
    server.otherwise = clouds.stalled_body()
    board = Board(server.base_url)
    board.served = LocalServers(
        {"npu": Model(engine=SERVER_ENGINE, base_url=server.base_url, model="m", timeout_s=0.2)}
    )
    with pytest.raises(ModelAway, match=r"0\.2 s"):
        await board.ask()
    await board.served.stop()


async def test_cancelled_request_closes_its_connection(server: ScriptedCloud) -> None:
    """By which the server knows; the server is none the worse."""
    server.otherwise = clouds.stalled_header()
    async with running(server.base_url) as board:
        await board.told("server_up")
        task = asyncio.create_task(board.ask())
        await server.asked()
        assert board.served.status()["npu"]["in_use"] == 1
        task.cancel()
        await asyncio.wait([task])
        await server.until(lambda: server.gone == 1)
        assert board.state == ("ready", True, None)
        assert board.served.status()["npu"]["in_use"] == 0


async def test_key_goes_along_and_stays_out_of_what_is_told(tmp_path: Path) -> None:
    """Where one is configured."""
    (tmp_path / "key").write_text("sk-77\n")
    async with (
        ScriptedCloud(key="sk-77") as server,
        running(server.base_url, api_key_file=str(tmp_path / "key")) as board,
    ):
        assert await board.ask() == "ok"
        server.key = "another"
        with pytest.raises(ModelUnavailable, match="HTTP 401") as caught:
            await board.ask()
        assert "sk-77" not in caught.value.message


async def test_server_on_a_unix_socket(tmp_path: Path) -> None:
    """Its path stands in the address."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "large"}]})

    async def chat(_: web.Request) -> web.Response:
        return web.json_response(clouds.completion({"role": "assistant", "content": "from a socket"}, "stop", None))

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
    runner = web.AppRunner(app)
    await runner.setup()
    path = tmp_path / "Llama.sock"
    await web.UnixSite(runner, str(path)).start()
    try:
        async with running(f"http+unix://{str(path).replace('/', '%2F')}/v1") as board:
            await board.told("server_up")
            assert await board.ask() == "from a socket"
    finally:
        await runner.cleanup()


async def test_localhost_is_asked_without_a_name_server_or_a_proxy(
    server: ScriptedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the board is set up."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    async with running(f"http://localhost:{server.port}/v1") as board:
        assert await board.ask() == "ok"


async def test_connection_that_would_leave_the_board_is_not_made() -> None:
    """Whatever address has come so far."""
    import aiohttp

    for host in ("192.0.2.1", "example.com"):
        made = loopback.connector(loopback.Server(f"http://{host}/v1"))(1.0)
        async with aiohttp.ClientSession(connector=made) as client:
            with pytest.raises(aiohttp.ClientConnectorError, match="is not on this board"):
                await client.get(f"http://{host}/v1/models")


# -- completions of a plain model --------------------------------------------------------------------------------------


@pytest.fixture
async def chats(server: ScriptedCloud) -> AsyncIterator[Completions]:
    """Of the model `npu`."""
    board = Board(server.base_url)

    def template_of(_: str) -> Any:
        raise AssertionError("it has no file")

    yield Completions(None, {"npu": board.model}, Dialects(template_of), max_waiting=1, served=board.served)  # type: ignore[arg-type]
    await board.served.stop()


def asked(**more: Any) -> ModelAsk:
    return ModelAsk(**{"model": "npu", "messages": HELLO, **more})


async def test_plain_model_streams_words_and_counts_tokens(server: ScriptedCloud, chats: Completions) -> None:
    """As the server told them; without max_tokens it is the server's to decide."""
    server.will(clouds.text("one two three", finish="length"))
    pieces: list[str] = []
    answer = await chats.complete(asked(stop=("END",)), lambda text, _: pieces.append(text))
    assert (answer.text, answer.finish) == ("one two three", Finish.LENGTH)
    assert len(pieces) > 1
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (11, 4, 7)
    body = server.chats[0].body
    assert body["stop"] == ["END"]
    assert "max_tokens" not in body


async def test_thought_that_no_tag_opens_reaches_no_stream(server: ScriptedCloud, chats: Completions) -> None:
    """vLLM without a reasoning parser streams it so; the first answer tells, and also the next one is without it."""
    server.otherwise = clouds.text("Okay, the user\nasks. </think>\n\nIt is full.")
    for _ in range(2):
        pieces: list[str] = []
        answer = await chats.complete(asked(), lambda text, _, pieces=pieces: pieces.append(text))  # type: ignore[misc]
        assert "".join(pieces) == answer.text == "It is full."


async def test_pieces_come_at_once_when_it_is_known_how_answers_begin(
    server: ScriptedCloud, chats: Completions
) -> None:
    """They wait for the end of the first answer only; a model that does not think is not held up."""
    go_on, first = asyncio.Event(), asyncio.Event()

    async def behave(wanted: clouds.Asked) -> web.StreamResponse:
        response = await clouds.begin(wanted, "one ")
        await go_on.wait()
        for piece in clouds.ending("stop", None):
            await response.write(piece)
        return response

    server.will(clouds.text("ok"), behave)
    await chats.complete(asked())
    task = asyncio.create_task(chats.complete(asked(), lambda *_: first.set()))
    async with asyncio.timeout(clouds.WAIT_S):
        await first.wait()
        assert not task.done()
        go_on.set()
        assert (await task).text == "one "


@pytest.mark.parametrize(
    ("choice", "parallel", "sent"), [(ToolChoice.AUTO, True, "auto"), (ToolChoice.REQUIRED, False, "required")]
)
async def test_plain_model_calls_tools(
    server: ScriptedCloud, chats: Completions, choice: ToolChoice, parallel: bool, sent: str
) -> None:
    """The choice reaches the server; several calls come only where they are wanted."""
    server.otherwise = clouds.calls(("set", {"v": "a"}), ("set", {"v": "b"}))
    told: list[CallPiece] = []
    answer = await chats.complete(asked(tools=(VALVE,), choice=choice, parallel=parallel), on_call=told.extend)
    made = [(call.name, call.arguments, call.whole) for call in answer.calls]
    assert made == [("set", '{"v": "a"}', True), ("set", '{"v": "b"}', True)][: 2 if parallel else 1]
    assert "".join(piece.arguments for piece in told) == "".join(call.arguments for call in answer.calls)
    body = server.chats[0].body
    assert (body["tool_choice"], body["parallel_tool_calls"]) == (sent, parallel)


@pytest.mark.parametrize(
    ("behaviour", "more", "told"),
    [
        (clouds.text("no"), {"choice": ToolChoice.REQUIRED}, "made no call"),
        (clouds.calls(("other", {})), {}, "none of the tools"),
        (clouds.by(lambda _: "no JSON"), {"tools": (), "response_schema": NUMBER}, "does not keep to the schema"),
    ],
)
async def test_plain_model_that_does_not_keep_to_it_fails(
    server: ScriptedCloud, chats: Completions, behaviour: clouds.Behaviour, more: dict[str, Any], told: str
) -> None:
    """Nobody gets what was not asked for."""
    server.otherwise = behaviour
    with pytest.raises(ModelUnavailable, match=told):
        await chats.complete(asked(**{"tools": (VALVE,), **more}))


ROOM = {
    "type": "object",
    "properties": {"room": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
    "required": ["room"],
}
LIGHTS = ToolSpec("light", "Lights.", {"type": "object", "properties": {"rooms": {"type": "array", "items": ROOM}}})
HALL: dict[str, Any] = {"rooms": [{"room": {"name": "hall"}}]}
UNDECLARED = [
    {**HALL, "brightness": 50},
    {"rooms": [{"room": {"name": "hall", "floor": 1}}]},
    {"rooms": [{"room": {"name": "hall"}, "colour": "red"}]},
    {"rooms": [{"room": {"name": 7}}]},
    {"rooms": "hall"},
]


@pytest.mark.parametrize("arguments", UNDECLARED)
@pytest.mark.parametrize("streamed", [False, True])
async def test_plain_models_call_that_does_not_fit_is_asked_for_again(
    server: ScriptedCloud, chats: Completions, arguments: dict[str, Any], streamed: bool
) -> None:
    """By the rule of the board's own models: what is not declared is refused, at every depth."""
    server.will(clouds.calls(("light", arguments)), clouds.calls(("light", HALL)))
    told: list[CallPiece] = []
    on_piece = (lambda *_: None) if streamed else None
    answer = await chats.complete(asked(tools=(LIGHTS,)), on_piece, told.extend)
    assert [call.arguments for call in answer.calls] == [write_json(HALL)]
    assert "".join(piece.arguments for piece in told) == write_json(HALL)
    call, result = server.chats[1].body["messages"][-2:]
    assert call["tool_calls"][0]["function"]["name"] == "light"
    assert (result["role"], result["tool_call_id"]) == ("tool", call["tool_calls"][0]["id"])
    assert "error" in result["content"]


async def test_plain_models_call_that_stays_wrong_reaches_nobody(server: ScriptedCloud, chats: Completions) -> None:
    """It is asked for once more."""
    server.otherwise = clouds.calls(("light", UNDECLARED[1]))
    told: list[CallPiece] = []
    with pytest.raises(ToolFailed, match=r"model 'npu': .*'floor' was unexpected"):
        await chats.complete(asked(tools=(LIGHTS,)), lambda *_: None, told.extend)
    assert told == []
    assert len(server.chats) == 2


async def test_plain_models_words_before_a_call_that_does_not_fit_are_not_said_twice(
    server: ScriptedCloud, chats: Completions
) -> None:
    """They were told already."""
    wrong = {"index": 0, "id": "a", "function": {"name": "light", "arguments": '{"x": 1}'}}
    words = [clouds.event(delta) for delta in ({"content": "I do."}, {"tool_calls": [wrong]})]
    server.will(clouds.stream(*words), clouds.calls(("light", HALL)))
    pieces: list[str] = []
    answer = await chats.complete(asked(tools=(LIGHTS,)), lambda text, _: pieces.append(text))
    assert "".join(pieces) == answer.text == "I do."
    assert len(answer.calls) == 1


async def test_plain_model_that_is_told_of_a_failure_is_told_what_it_means(
    server: ScriptedCloud, chats: Completions
) -> None:
    """As the board's own models are."""
    failed = Message("tool", '{"error": true}')
    call = Message("assistant", tool_calls=(ToolCall("set", {"v": "a"}),))
    await chats.complete(asked(messages=(*HELLO, call, failed), tools=(VALVE,)))
    assert server.chats[0].body["messages"][-1]["content"] == MARK + failed.content


async def test_plain_model_answers_in_the_shape_and_is_corrected(server: ScriptedCloud, chats: Completions) -> None:
    """Beside tools in a second question without them; a piece is told when it was checked."""
    server.will(clouds.text("words"), clouds.text('{"n": "x"}'), clouds.text('{"n": 7}'))
    pieces: list[str] = []
    ask = asked(tools=(VALVE,), response_schema=NUMBER)
    answer = await chats.complete(ask, lambda text, _: pieces.append(text))
    assert (answer.text, pieces) == ('{"n": 7}', ['{"n": 7}'])
    first, second, third = (chat.body for chat in server.chats)
    assert ("tools" in first, "response_format" in first) == (True, False)
    assert ("tools" in second, "response_format" in second) == (False, True)
    assert "does not match the schema" in third["messages"][-1]["content"]


async def test_plain_model_that_calls_again_what_was_answered_words_it(
    server: ScriptedCloud, chats: Completions
) -> None:
    """As a model of ours."""
    server.will(clouds.calls(("set", {"v": "a"})), clouds.text("It is open."))
    messages = (*HELLO, Message("assistant", "", (ToolCall("set", {"v": "a"}),)), Message("tool", "done"))
    answer = await chats.complete(asked(messages=messages, tools=(VALVE,)))
    assert (answer.text, answer.calls) == ("It is open.", ())
    assert "tools" not in server.chats[1].body


async def test_plain_model_tells_log_probabilities_where_its_server_does(
    server: ScriptedCloud, chats: Completions
) -> None:
    """Else it is refused: nobody takes their absence for certainty."""
    token = {"token": "ü", "logprob": -0.5, "bytes": [195, 188]}
    body = clouds.completion({"role": "assistant", "content": "ü"}, "stop", None)
    body["choices"][0]["logprobs"] = {"content": [{**token, "top_logprobs": [token]}]}

    async def behave(_: clouds.Asked) -> web.StreamResponse:
        return web.json_response(body)

    server.will(behave)
    answer = await chats.complete(asked(logprobs=1))
    assert answer.logprobs == (TokenLogprob("ü", "ü".encode(), -0.5, (("ü", "ü".encode(), -0.5),)),)
    assert (server.chats[0].body["logprobs"], server.chats[0].body["top_logprobs"]) == (True, 1)
    with pytest.raises(BadRequest, match="logprobs: the server that runs model 'npu' gives none"):
        await chats.complete(asked(logprobs=1))


async def test_server_that_comes_back_is_seen_without_a_request(server: ScriptedCloud) -> None:
    """By a probe, at the pace of a link."""
    board = Board(server.base_url)
    events: asyncio.Queue[str] = asyncio.Queue()
    quick = ProbeTiming(first_s=0.02, longest_s=0.05, idle_s=0.05)
    served = LocalServers({"npu": board.model}, tell=lambda name, _: events.put_nowait(name), timing=quick)
    task = asyncio.create_task(served.run())
    try:
        async with asyncio.timeout(clouds.WAIT_S):
            assert await events.get() == "server_up"
            await server.stop()
            assert await events.get() == "server_down"
            await server.start()
            assert await events.get() == "server_up"
    finally:
        task.cancel()
        await asyncio.wait([task])
        await served.stop()
