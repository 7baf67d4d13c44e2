"""Upstreams against a real server that fails in every way a server can: what the caller gets, what is known of the link
afterwards, and that a good answer brings it back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edged import __version__
from edged.config import Upstream
from edged.errors import ModelUnavailable, NoLink, OverBudget
from edged.host import clock
from edged.store.database import Database
from edged.store.schema import MIGRATIONS
from edged.store.spending import Spending
from edged.types import Chat, ChatAnswer, Message, RawCall, ToolCall, ToolSpec, UpstreamFacts
from edged.upstreams import Cloud
from edged.upstreams.link import ProbeTiming
from tests.support import cloud as clouds
from tests.support.broker import free_port
from tests.support.cloud import WAIT_S, Behaviour, ScriptedCloud, by, calls, event, held, raw, status, stream, text

NAME = "cloud"
ALL = (NAME,)
KEY = "sk-canary-5f2e8a"
QUICK_S = 0.5  # the time limit of tests that wait for one to pass
PACE = ProbeTiming(first_s=0.05, longest_s=0.2, refused_s=0.05, refused_longest_s=0.2, shortest_pause_s=0.05)
VALVE = ToolSpec("set_valve", "Open or close a valve.", {"type": "object", "properties": {"valve": {"enum": ["n"]}}})
UP = UpstreamFacts(NAME)
NOBODY = UpstreamFacts(NAME, up=False)


def a_chat(text: str = "hi", **more: Any) -> Chat:
    return Chat(**{"key": "r1:0", "messages": (Message("user", text),), "max_tokens": 100, **more})


class Watched:
    """A Cloud with one upstream, and what it told."""

    def __init__(self, settings: Upstream, ledger: Spending, pace: ProbeTiming) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.changes = 0
        self.ledger = ledger
        self._news = asyncio.Event()
        self.cloud = Cloud({NAME: settings}, ledger, tell=self._tell, changed=self._changed, timing=pace)

    def _tell(self, name: str, data: dict[str, Any]) -> None:
        self.told.append((name, data))
        self._news.set()

    def _changed(self) -> None:
        self.changes += 1
        self._news.set()

    @property
    def facts(self) -> UpstreamFacts:
        return self.cloud.facts(ALL)[0]

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.cloud.status()[NAME]
        return status

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that `tell` or `changed` announces."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def ask(self, text: str = "hi", **more: Any) -> ChatAnswer:
        return await self.cloud.chat(NAME, a_chat(text, **more))

    async def stream(self, text: str = "hi", **more: Any) -> tuple[ChatAnswer, list[str]]:
        pieces: list[str] = []
        return await self.cloud.chat(NAME, a_chat(text, **more), pieces.append), pieces

    async def spent(self) -> int:
        """As the ledger has it."""
        return await self.ledger.spent(NAME, _day())


def _day() -> str:
    return datetime.fromtimestamp(clock.wall(), UTC).date().isoformat()


Make = Callable[..., contextlib.AbstractAsyncContextManager[Watched]]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedCloud]:
    async with ScriptedCloud() as running:
        yield running


@pytest.fixture
async def make(server: ScriptedCloud, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes watched clouds of `server`; run: its task too."""
    store = Database(tmp_path / "edged.db", MIGRATIONS)
    await store.start()

    @contextlib.asynccontextmanager
    async def made(*, run: bool = False, pace: ProbeTiming = PACE, **settings: Any) -> AsyncIterator[Watched]:
        fields = {"base_url": server.base_url, "model": clouds.MODEL, "timeout_s": WAIT_S, **settings}
        one = Watched(Upstream(**fields), Spending(store), pace)
        task = asyncio.create_task(one.cloud.run()) if run else None
        try:
            yield one
        finally:
            if task:
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled(), task.exception()
            await one.cloud.stop()

    yield made
    await store.stop()


# -- good answers ------------------------------------------------------------------------------------------------------


async def test_chat_plain_answer_comes_with_its_usage(server: ScriptedCloud, make: Make) -> None:
    """Text, why it ended, and tokens as the server counted them."""
    server.will(text("The tank is full."))
    async with make() as one:
        answer = await one.ask()
    assert (answer.text, answer.calls, answer.finish) == ("The tank is full.", (), "stop")
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (11, 4, 7)
    assert 0 < answer.first_token_ms <= answer.total_ms


async def test_chat_streamed_answer_comes_in_pieces_and_whole(server: ScriptedCloud, make: Make) -> None:
    """The pieces are the text, and the answer is the same as without a stream."""
    server.will(text("The tank is full."))
    async with make() as one:
        answer, pieces = await one.stream()
    assert pieces == ["The ", "tank ", "is ", "full."]
    assert (answer.text, answer.finish, answer.completion_tokens) == ("The tank is full.", "stop", 7)
    assert 0 < answer.first_token_ms <= answer.total_ms


async def test_chat_streamed_pieces_come_before_the_answer_ends(server: ScriptedCloud, make: Make) -> None:
    """They are not collected: the first is here while the server still waits."""
    go_on, first = asyncio.Event(), asyncio.Event()

    async def behave(asked: clouds.Asked) -> Any:
        response = await clouds.begin(asked, "one ")
        await go_on.wait()
        for piece in clouds.ending("stop", None):
            await response.write(piece)
        return response

    server.will(behave)
    async with make() as one, asyncio.timeout(WAIT_S):
        task = asyncio.create_task(one.cloud.chat(NAME, a_chat(), lambda _: first.set()))
        await first.wait()
        assert not task.done()
        go_on.set()
        assert (await task).text == "one "


@pytest.mark.parametrize("streamed", [False, True])
async def test_chat_tool_calls_come_unchecked(server: ScriptedCloud, make: Make, streamed: bool) -> None:
    """Names and arguments as the model wrote them, put together from pieces where it is streamed."""
    server.will(calls(("set_valve", {"valve": "n"}), ("unknown", {})))
    async with make() as one:
        answer = (await one.stream(tools=(VALVE,)))[0] if streamed else await one.ask(tools=(VALVE,))
    assert answer.finish == "tool_calls"
    assert answer.calls == (RawCall("set_valve", '{"valve": "n"}'), RawCall("unknown", "{}"))


async def test_chat_stream_with_crlf_comments_and_split_characters_is_read(server: ScriptedCloud, make: Make) -> None:
    """As servers and proxies write it."""
    whole = event({"content": "Größe 🌱"}).replace(b"\n", b"\r\n")
    cut = whole.index("🌱".encode()) + 2
    server.will(stream(b": keep-alive\r\n\r\n", whole[:cut], whole[cut:], b": again\n\n", " ok"))
    async with make() as one:
        answer, pieces = await one.stream()
    assert pieces == ["Größe 🌱", " ok"]
    assert answer.text == "Größe 🌱 ok"


async def test_chat_server_that_does_not_stream_answers_all_the_same(server: ScriptedCloud, make: Make) -> None:
    """The whole text is one piece."""
    server.will(raw(json.dumps(clouds.completion({"content": "whole"}, "stop", None)).encode()))
    async with make() as one:
        answer, pieces = await one.stream()
    assert (answer.text, pieces) == ("whole", ["whole"])


@pytest.mark.parametrize("streamed", [False, True])
async def test_chat_without_usage_estimates_it(server: ScriptedCloud, make: Make, streamed: bool) -> None:
    """A quarter of the characters, so that the budget counts something."""
    server.will(text("x" * 40, usage=None))
    async with make() as one:
        answer = (await one.stream("y" * 80))[0] if streamed else await one.ask("y" * 80)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (20, 0, 10)


async def test_chat_sends_who_it_is_what_it_asks_and_its_key(server: ScriptedCloud, make: Make, tmp_path: Path) -> None:
    """The key is read when it is used: a new one needs no restart."""
    key = tmp_path / "key"
    async with make(api_key_file=str(key)) as one:
        for secret in ("sk-first", "sk-second"):
            key.write_text(secret + "\n")
            await one.ask()
    head = server.chats[0].headers
    assert [chat.headers["Authorization"] for chat in server.chats] == ["Bearer sk-first", "Bearer sk-second"]
    assert head["User-Agent"] == f"edged/{__version__}"
    assert head["Idempotency-Key"] == "r1:0"
    assert head["Content-Type"] == "application/json"
    assert server.chats[0].path == "/v1/chat/completions"
    assert server.chats[0].body["model"] == clouds.MODEL


async def test_chat_calls_and_results_of_the_dialogue_reach_the_server_with_ids(
    server: ScriptedCloud, make: Make
) -> None:
    """Every server of the OpenAI API wants them."""
    made = Message("assistant", "", (ToolCall("set_valve", {"valve": "n"}),))
    async with make() as one:
        await one.ask(messages=(Message("user", "open it"), made, Message("tool", '{"changes": 1}')), tools=(VALVE,))
    _, call, result = server.chats[0].body["messages"]
    assert result == {"role": "tool", "tool_call_id": "call_0", "content": '{"changes": 1}'}
    assert call["tool_calls"][0]["id"] == "call_0"


async def test_chat_without_a_key_file_sends_no_authorization(server: ScriptedCloud, make: Make) -> None:
    """A server in the same house needs none."""
    async with make() as one:
        await one.ask()
    assert "Authorization" not in server.chats[0].headers


async def test_chat_key_goes_before_an_entry_in_netrc(
    server: ScriptedCloud, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment is honoured for proxies; who we are is said by the configuration."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    (tmp_path / "key").write_text(KEY)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with make(api_key_file=str(tmp_path / "key")) as one:
        await one.ask()
    assert server.chats[0].headers["Authorization"] == f"Bearer {KEY}"


async def test_chat_goes_through_the_proxy_of_the_environment(
    server: ScriptedCloud, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain proxy gets the whole address; here the server plays it."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    async with make(base_url="http://cloud.example/v1") as one:
        assert (await one.ask()).text == "ok"
    assert server.chats[0].headers["Host"] == "cloud.example"


@pytest.mark.parametrize(
    ("refuses", "words", "formats"),
    [
        ("json_schema", "response_format.type: not json_object", ["json_schema", "json_schema", "json_object"]),
        ("strict", "Invalid schema for response_format 'answer'", ["json_schema", "json_schema"]),
    ],
)
@pytest.mark.parametrize("code", [400, 422, 500])
async def test_chat_schema_is_spelled_as_the_server_takes_it(
    server: ScriptedCloud, make: Make, refuses: str, words: str, formats: list[str], code: int
) -> None:
    """The way it took is kept; each way is a request of its own for a server that remembers keys."""

    def behave(body: dict[str, Any]) -> str | Behaviour:
        wanted = body["response_format"]
        refused = wanted["type"] == "json_schema" and (refuses == "json_schema" or wanted["json_schema"]["strict"])
        return status(code, words) if refused else '{"n": 1}'

    server.otherwise = by(behave)
    async with make() as one:
        for _ in range(2):
            assert (await one.ask(response_schema={"type": "object"})).text == '{"n": 1}'
        assert one.status["reason"] is None
    asked = [chat.body["response_format"]["type"] for chat in server.chats]
    assert asked == [*formats, formats[-1]]
    keys = [chat.headers["Idempotency-Key"] for chat in server.chats]
    assert len(set(keys)) == len(formats)
    assert keys[-1] == keys[-2]


async def test_chat_bound_is_named_as_the_model_takes_it(server: ScriptedCloud, make: Make) -> None:
    """OpenAI's newer models refuse max_tokens and say what they want."""

    def behave(body: dict[str, Any]) -> str | Behaviour:
        told = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
        return status(400, told, code="unsupported_parameter") if "max_tokens" in body else "ok"

    server.otherwise = by(behave)
    async with make() as one:
        assert (await one.ask()).text == "ok"
        assert (await one.stream())[0].text == "ok"
    assert ["max_tokens" in chat.body for chat in server.chats] == [True, False, False]


# -- faults ------------------------------------------------------------------------------------------------------------

WEAK: dict[str, tuple[Behaviour, str]] = {
    "500": (status(500, "boom"), "HTTP 500: boom"),
    "503": (status(503, "starting"), "HTTP 503: starting"),
    "502-page": (raw(b"<html>Bad gateway</html>", content_type="text/html", code=502), "HTTP 502: an HTML page"),
    "stalled-header": (clouds.stalled_header(), "not a byte for 0.5 s"),
    "stalled-body": (clouds.stalled_body(), "not a byte for 0.5 s"),
    "trickle": (clouds.trickle(0.1), "no whole answer within 0.5 s"),
    "redirect-nowhere": (raw(b"", code=302, headers={"Location": "http://["}), "HTTP 302: sent on to nowhere"),
    "cut": (clouds.cut(), "the connection was cut"),
    "html-page": (clouds.html_page(), "an HTML page"),
    "redirect": (clouds.redirect(), "HTTP 302: sent on to login.hotel.example"),
    "no-content": (raw(b"", code=204), "HTTP 204"),
    "empty": (raw(b""), "an empty one"),
    "no-choices": (raw(b'{"object": "chat.completion"}'), "no choices"),
    "wrong-types": (raw(b'{"choices": "none"}'), "choices"),
    "error-object": (raw(b'{"error": {"message": "upstream failed", "code": 502}}'), "HTTP 502: upstream failed"),
    "too-long": (raw(b" " * (5 * 2**20)), "more than 4194304 bytes"),
}
WEAK_WHOLE = {"invalid-json": (clouds.invalid_json(), "no JSON")}
WEAK_STREAMED = {
    "cut-stream": (stream("one ", "two", finish=None), "in the middle of the answer"),
    "nothing": (stream(finish=None), "without an answer"),
    "garbage": (stream(b"data: {not json\n\n"), "no JSON"),
    "not-utf8": (stream(b"data: \xff\xfe\n\n"), "not UTF-8"),
    "error-event": (stream("one ", b'data: {"error": {"message": "out of memory"}}\n\n'), "out of memory"),
}
FAULTS = [
    *(pytest.param(*fault, streamed, id=f"{name}-{'stream' if streamed else 'whole'}")
      for name, fault in WEAK.items() for streamed in (False, True)),
    *(pytest.param(*fault, False, id=name) for name, fault in WEAK_WHOLE.items()),
    *(pytest.param(*fault, True, id=name) for name, fault in WEAK_STREAMED.items()),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "words", "streamed"), FAULTS)
async def test_chat_weak_fault_is_no_link_and_three_of_them_are_an_outage(
    server: ScriptedCloud, make: Make, fault: Behaviour, words: str, streamed: bool
) -> None:
    """Once may be chance; a good answer clears it. Three in a row take the link down until a probe is answered."""
    times = {"first_byte_timeout_s": QUICK_S} if "not a byte" in words else {}
    times |= {"timeout_s": QUICK_S} if "no whole answer" in words else {}
    async with make(daily_token_budget=10_000, **times) as one:
        ask = one.stream if streamed else one.ask
        server.will(fault, fault)
        for _ in range(2):
            with pytest.raises(NoLink) as caught:
                await ask()
            assert words in caught.value.message
            assert caught.value.message.startswith("upstream 'cloud': ")
            assert one.facts == UP
        assert words in one.status["reason"]
        await ask()
        assert (one.status["state"], one.status["reason"]) == ("up", None)
        assert await one.spent() == one.status["tokens_today"] == 18  # of the good one only

        server.will(fault, fault, fault)
        for _ in range(3):
            with pytest.raises(NoLink):
                await ask()
        assert one.status["state"] == "down"
        assert one.facts.up is False
        assert [name for name, _ in one.told] == ["link_up", "link_down"]
        assert words in one.told[-1][1]["reason"]

        with pytest.raises(NoLink) as caught:  # it is not even tried
            await ask()
        assert caught.value.retry_after_s is not None
        assert len(server.chats) == 6
        await _comes_back(one)
        assert (await ask()) is not None
        assert one.status["reason"] is None


async def _comes_back(one: Watched) -> None:
    """With its task running, by a probe."""
    told = len(one.told)
    task = asyncio.create_task(one.cloud.run())
    await one.until(lambda: len(one.told) > told)
    task.cancel()
    await asyncio.wait([task])
    assert one.told[-1] == ("link_up", {"upstream": NAME, "reason": "it answers"})
    assert one.facts == UP
    assert one.status["window"] == 1


async def test_chat_nobody_listens_takes_the_link_down_at_once(server: ScriptedCloud, make: Make) -> None:
    """Connection refused is no chance. When the server is back, a probe finds it."""
    async with make(run=True) as one:
        await one.until(lambda: one.status["state"] == "up")
        await server.stop()
        with pytest.raises(NoLink, match=r"Connect|connect"):
            await one.ask()
        assert one.facts.up is False
        assert [name for name, _ in one.told] == ["link_up", "link_down"]
        await server.start()
        await one.until(lambda: one.told[-1][0] == "link_up")
        assert (await one.ask()).text == "ok"


async def test_chat_name_that_does_not_resolve_takes_the_link_down_at_once(make: Make) -> None:
    """No network is the usual state of a board that has just been switched on."""
    async with make(base_url="http://nobody.invalid/v1") as one:
        with pytest.raises(NoLink, match=r"nobody\.invalid"):
            await one.ask()
        assert one.status["state"] == "down"


async def test_chat_server_without_tls_takes_the_link_down_at_once(server: ScriptedCloud, make: Make) -> None:
    """Nothing is sent to a server that cannot show who it is."""
    async with make(base_url=server.base_url.replace("http:", "https:")) as one:
        with pytest.raises(NoLink):
            await one.ask()
        assert one.status["state"] == "down"
    assert server.received == []


async def test_chat_certificate_of_a_stranger_takes_the_link_down_at_once(make: Make, tmp_path: Path) -> None:
    """What a captive portal does to https."""
    context = await _stranger(tmp_path)
    port = free_port()
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(100))
        writer.close()

    portal = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    try:
        async with make(base_url=f"https://127.0.0.1:{port}/v1") as one:
            with pytest.raises(NoLink, match=r"(?i)certificate"):
                await one.ask()
            assert one.status["state"] == "down"
    finally:
        portal.close()
        await portal.wait_closed()
    assert not any(seen)


async def _stranger(folder: Path) -> ssl.SSLContext:
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=portal -keyout {folder}/k -out {folder}/c"
    made = await asyncio.create_subprocess_exec(*command.split(), stderr=asyncio.subprocess.DEVNULL)
    assert await made.wait() == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "c", folder / "k")
    return context


async def test_chat_black_hole_is_given_up_after_the_connect_timeout(make: Make) -> None:
    """A full backlog takes no connection and refuses none."""
    with socket.socket() as hole, contextlib.ExitStack() as fillers:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        url = f"http://127.0.0.1:{hole.getsockname()[1]}/v1"
        async with make(base_url=url, connect_timeout_s=QUICK_S) as one:
            with pytest.raises(NoLink, match=r"no connection within 0\.5 s"):
                await one.ask()
            assert one.facts == UP


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(401, "Incorrect API key provided"), "HTTP 401: Incorrect API key provided"),
        (status(403, "Country not supported"), "HTTP 403: Country not supported"),
        (status(402, "Insufficient balance"), "HTTP 402: Insufficient balance"),
        (clouds.wrong_model(), "HTTP 404: The model `large` does not exist"),
        (status(400, "no such model", code="model_not_found"), "HTTP 400: no such model"),
        (raw(b"404 page not found", content_type="text/plain", code=404), "HTTP 404"),
    ],
    ids=["401", "403", "402", "404-model", "400-model", "404-address"],
)
async def test_chat_refused_key_or_model_takes_the_link_down_with_its_reason(
    server: ScriptedCloud, make: Make, fault: Behaviour, words: str
) -> None:
    """A person has to act, so probes are rare; what the server says is in the error and in the status."""
    async with make(pace=ProbeTiming()) as one:
        await one.ask()
        server.will(fault)
        with pytest.raises(NoLink) as caught:
            await one.ask()
        assert words in caught.value.message
        assert (one.status["state"], one.facts.up) == ("down", False)
        assert words in one.status["reason"]
        assert one.status["next_probe_s"] > 40
        assert caught.value.retry_after_s == pytest.approx(one.cloud.retry_after_s(ALL), abs=5)


async def test_chat_refused_key_comes_back_when_the_key_is_right(
    server: ScriptedCloud, make: Make, tmp_path: Path
) -> None:
    """Nobody restarts the daemon."""
    server.key = KEY
    (tmp_path / "key").write_text("sk-wrong")
    async with make(run=True, api_key_file=str(tmp_path / "key")) as one:
        await one.until(lambda: one.status["state"] == "down")
        assert "HTTP 401" in one.status["reason"]
        (tmp_path / "key").write_text(KEY)
        await one.until(lambda: one.status["state"] == "up")
        assert (await one.ask()).text == "ok"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("\n", "is empty"), ("sk-\x00one", "no key has"), ("schlüssel", "no key has")],
)
async def test_chat_unusable_key_file_is_the_reason_and_nothing_is_sent(
    server: ScriptedCloud, make: Make, tmp_path: Path, content: str | None, words: str
) -> None:
    """The file is named, its content is not."""
    if content is not None:
        (tmp_path / "key").write_text(content)
    async with make(api_key_file=str(tmp_path / "key")) as one:
        with pytest.raises(NoLink, match=words) as caught:
            await one.ask()
        assert str(tmp_path / "key") in caught.value.message
        assert "schl" not in caught.value.message
        assert one.status["state"] == "down"
    assert server.received == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(400, "maximum context length is 8 tokens"), "HTTP 400: maximum context length is 8 tokens"),
        (status(413, "too large"), "HTTP 413: too large"),
        (status(422, "y" * 5000), "HTTP 422: " + "y" * 300 + "..."),
        (stream(b'data: {"error": {"message": "bad", "type": "invalid_request_error"}}\n\n'), "bad"),
    ],
    ids=["400", "413", "422", "in-a-stream"],
)
async def test_chat_refused_request_is_model_unavailable_and_the_link_is_well(
    server: ScriptedCloud, make: Make, fault: Behaviour, words: str
) -> None:
    """It says so in the server's own words, bounded, and costs nothing."""
    async with make(daily_token_budget=1000) as one:
        server.will(fault)
        with pytest.raises(ModelUnavailable) as caught:
            await one.stream()
        assert caught.value.message.endswith(words)
        assert (one.status["state"], one.facts) == ("up", UP)
        assert one.status["in_flight"] == await one.spent() == 0


async def test_chat_content_nobody_can_take_is_model_unavailable(server: ScriptedCloud, make: Make) -> None:
    """It is not even sent."""
    async with make() as one:
        with pytest.raises(ModelUnavailable, match="JSON"):
            await one.ask("half a \ud83d pair")
        with pytest.raises(ModelUnavailable, match="without a call"):
            await one.ask(messages=(Message("tool", "1"),))
        assert (one.status["state"], one.status["in_flight"]) == ("unknown", 0)  # nothing was heard of the server
    assert server.received == []


@pytest.mark.parametrize("code", [429, 503])
async def test_chat_retry_after_is_a_pause_and_no_outage(server: ScriptedCloud, make: Make, code: int) -> None:
    """Until then nothing is sent; then it is told that there is room, without a probe."""
    async with make(run=True) as one:
        await one.until(lambda: one.status["state"] == "up")
        server.will(status(code, "slow down", retry_after="1"))
        started = clock.boot()
        with pytest.raises(NoLink, match=f"HTTP {code}: slow down") as caught:
            await one.ask()
        assert caught.value.retry_after_s == pytest.approx(1.0, abs=0.5)
        assert one.facts == NOBODY
        assert (one.status["state"], one.status["reason"]) == ("up", f"HTTP {code}: slow down")
        assert 0 < one.status["paused_s"] <= 1.0
        changes = one.changes
        await one.until(lambda: one.changes > changes)
        assert clock.boot() - started >= 1.0
        assert one.facts == UP
        assert [name for name, _ in one.told] == ["link_up"]
        assert (await one.ask()).text == "ok"
    assert server.probes == 1


@pytest.mark.parametrize("value", ["99999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_chat_unreasonable_retry_after_is_bounded(server: ScriptedCloud, make: Make, value: str) -> None:
    """In seconds or as a date."""
    async with make() as one:
        server.will(status(429, retry_after=value))
        with pytest.raises(NoLink) as caught:
            await one.ask()
        assert caught.value.retry_after_s == pytest.approx(900, abs=1)


async def test_chat_429_without_a_pause_backs_off(server: ScriptedCloud, make: Make) -> None:
    """It is not asked again at once, as three weak failures in a row would be."""
    async with make(pace=ProbeTiming()) as one:
        server.will(status(429, "quota"))
        with pytest.raises(NoLink):
            await one.ask()
        assert one.facts == NOBODY
        assert 0.7 < one.status["paused_s"] <= 1.3


async def test_chat_stream_complete_without_done_is_an_answer(server: ScriptedCloud, make: Make) -> None:
    """What is cut after the finish_reason is only the usage."""
    sent = [event({"content": "all of it"}), event({}, "stop")]

    async def behave(asked: clouds.Asked) -> Any:
        response = await clouds.begin(asked, "")
        for piece in sent:
            await response.write(piece)
        await asyncio.Event().wait()

    server.will(behave)
    async with make(first_byte_timeout_s=QUICK_S) as one:
        answer, pieces = await one.stream()
        assert (answer.text, pieces, answer.completion_tokens) == ("all of it", ["all of it"], 3)
        assert one.status["state"] == "up"


async def test_chat_goes_on_where_a_kept_connection_was_closed(server: ScriptedCloud, make: Make) -> None:
    """A server's restart between two requests is not noticed."""
    async with make() as one:
        await one.ask()
        await server.stop()
        await server.start()
        assert (await one.ask()).text == "ok"


async def test_chat_dropped_connection_is_tried_once_more_under_the_same_key(server: ScriptedCloud, make: Make) -> None:
    """A server may close a kept connection just when a request goes out on it."""
    async with make() as one:
        server.will(clouds.dropped())
        assert (await one.ask()).text == "ok"
        assert [chat.headers["Idempotency-Key"] for chat in server.chats] == ["r1:0", "r1:0"]
        assert one.status["reason"] is None
        server.will(clouds.dropped(), clouds.dropped())
        with pytest.raises(NoLink, match="the connection was cut"):
            await one.ask()
        assert len(server.chats) == 4


async def test_chat_server_that_cannot_stream_calls_is_asked_for_the_whole(server: ScriptedCloud, make: Make) -> None:
    """llama-cpp-python sends an empty stream then. It is kept in mind, and what cannot become a call is streamed."""
    server.otherwise = by(lambda body: stream(finish=None) if body.get("stream") and "tools" in body else "one two")
    async with make() as one:
        for _ in range(2):
            answer, pieces = await one.stream(tools=(VALVE,))
            assert (answer.text, pieces) == ("one two", ["one two"])
        assert (await one.stream())[1] == ["one ", "two"]
    assert [bool(chat.body.get("stream")) for chat in server.chats] == [True, False, False, True]
    keys = [chat.headers["Idempotency-Key"] for chat in server.chats]
    assert keys == ["r1:0", "r1:0:whole", "r1:0:whole", "r1:0"]


async def test_chat_unknown_upstream_is_no_link(make: Make) -> None:
    """The configuration may have changed while a request waited."""
    async with make() as one:
        with pytest.raises(NoLink, match="no upstream 'other'"):
            await one.cloud.chat("other", a_chat())
        assert one.cloud.facts(["other", NAME]) == (UpstreamFacts("other", up=False), UP)
        assert one.cloud.room(["other"]) == 0
        assert one.cloud.retry_after_s(["other"]) is None


# -- cancelling, room, probes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_chat_cancelled_gives_back_place_and_tokens_and_closes(
    server: ScriptedCloud, make: Make, streamed: bool
) -> None:
    """The server notices too, and stops computing; the link is no worse for it."""
    server.will(clouds.stalled_body())
    async with make(daily_token_budget=10_000) as one:
        task = asyncio.create_task(one.stream() if streamed else one.ask())
        await server.asked()
        assert (one.status["in_flight"], one.facts.room, one.cloud.room(ALL)) == (1, False, 0)
        assert one.cloud.retry_after_s(ALL) is None
        assert await one.spent() == one.status["tokens_today"] == 101
        with pytest.raises(NoLink, match="takes no more"):
            await one.ask()
        changes = one.changes
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert one.changes == changes + 1
        assert (one.status["in_flight"], one.facts, one.cloud.room(ALL)) == (0, UP, 1)
        assert await one.spent() == one.status["tokens_today"] == 0
        await server.until(lambda: server.gone == 1)
        assert (await one.ask()).text == "ok"


async def test_cloud_window_grows_with_success_and_halves_with_failure(server: ScriptedCloud, make: Make) -> None:
    """1 at first, 8 at most; nothing is sent beyond it."""
    async with make() as one:
        rooms = []
        for _ in range(9):
            rooms.append(one.cloud.room(ALL))
            await one.ask()
        assert rooms == [1, 2, 3, 4, 5, 6, 7, 8, 8]
        go_on = asyncio.Event()
        server.otherwise = held(go_on)
        tasks = [asyncio.create_task(one.ask()) for _ in range(8)]
        await server.asked(17)
        assert (one.cloud.room(ALL), one.facts.room) == (0, False)
        with pytest.raises(NoLink, match="takes no more beside the 8"):
            await one.ask()
        go_on.set()
        await asyncio.gather(*tasks)
        assert len(server.chats) == 17
        server.will(status(500))
        with pytest.raises(NoLink):
            await one.ask()
        assert one.cloud.room(ALL) == 4


async def test_cloud_tells_when_room_appears(server: ScriptedCloud, make: Make) -> None:
    """Whoever waits is woken by the first of them that ends."""
    async with make() as one:
        await one.ask()
        gates = [asyncio.Event(), asyncio.Event()]
        server.will(*(held(gate) for gate in gates))
        tasks = [asyncio.create_task(one.ask()) for _ in gates]
        await server.asked(3)
        assert one.cloud.room(ALL) == 0
        changes = one.changes
        gates[0].set()
        await one.until(lambda: one.changes > changes)
        assert one.cloud.room(ALL) > 0
        gates[1].set()
        await asyncio.gather(*tasks)


async def test_run_probes_at_the_start_and_says_up(server: ScriptedCloud, make: Make, tmp_path: Path) -> None:
    """With the key, and once: an idle link that is up is left alone for a minute."""
    (tmp_path / "key").write_text(KEY)
    async with make(run=True, api_key_file=str(tmp_path / "key")) as one:
        assert one.status["state"] == "unknown"
        assert one.facts == UP  # it may be tried
        await one.until(lambda: bool(one.told))
        assert one.told == [("link_up", {"upstream": NAME, "reason": "it answers"})]
        assert one.changes >= 1
        assert 40 < one.status["next_probe_s"] < 80
    assert server.probes == 1
    assert server.received[0].path == "/v1/models"
    assert server.received[0].headers["Authorization"] == f"Bearer {KEY}"


async def test_run_probes_an_idle_link_and_finds_it_gone(server: ScriptedCloud, make: Make) -> None:
    """Without a request; and finds it again."""
    async with make(run=True, pace=ProbeTiming(first_s=0.05, longest_s=0.1, idle_s=0.1)) as one:
        await server.until(lambda: server.probes >= 2)
        await server.stop()
        await one.until(lambda: one.told[-1][0] == "link_down")
        assert one.facts.up is False
        await server.start()
        await one.until(lambda: one.told[-1][0] == "link_up")


@pytest.mark.parametrize("code", [404, 405, 501])
async def test_run_server_without_a_list_of_models_is_there(server: ScriptedCloud, make: Make, code: int) -> None:
    """Some compatible servers have only completions."""
    server.models = status(code)
    async with make(run=True) as one:
        await one.until(lambda: one.status["state"] == "up")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (clouds.html_page(), "an HTML page"),
        (clouds.redirect(), "HTTP 302"),
        (status(500, "boom"), "HTTP 500: boom"),
        (clouds.stalled_header(), "not a byte"),
        (status(401, "bad key"), "HTTP 401: bad key"),
        (status(418, "a teapot"), "HTTP 418: a teapot"),
    ],
    ids=["html", "redirect", "500", "stalled", "401", "418"],
)
async def test_run_failed_probes_take_the_link_down_and_a_good_one_brings_it_back(
    server: ScriptedCloud, make: Make, fault: Behaviour, words: str
) -> None:
    """A captive portal that answers everything is no server; the board knows it before it asks anything of it."""
    server.models = fault
    async with make(run=True, first_byte_timeout_s=QUICK_S) as one:
        await one.until(lambda: one.status["state"] == "down")
        assert words in one.told[0][1]["reason"]
        server.models = clouds.listed("anything")
        await one.until(lambda: one.status["state"] == "up")
        assert [name for name, _ in one.told] == ["link_down", "link_up"]
    assert server.chats == []


async def test_run_probe_with_retry_after_is_a_pause(server: ScriptedCloud, make: Make) -> None:
    """A busy server is not broken, and not probed either."""
    server.models = status(429, "slow down", retry_after="600")
    async with make(run=True) as one:
        await server.until(lambda: server.probes == 1)
        async with asyncio.timeout(WAIT_S):
            while one.facts.up:
                await asyncio.sleep(0.01)
        assert one.status["state"] == "unknown"
        assert one.cloud.retry_after_s(ALL) == pytest.approx(600, abs=5)


async def test_run_server_that_lists_models_and_fails_is_tried_ever_more_rarely(
    server: ScriptedCloud, make: Make
) -> None:
    """Each probe brings the link up and one request takes it down; the pauses grow all the same."""
    server.otherwise = status(500)
    async with make(run=True, pace=ProbeTiming(first_s=0.05, longest_s=10.0)) as one:
        pauses: list[float] = []
        while len(pauses) < 4:
            await one.until(lambda: one.facts.up)
            with pytest.raises(NoLink):
                await one.ask()
            if not one.facts.up:
                pauses.append(one.status["next_probe_s"])
        assert len(server.chats) == 3 + 3  # three for the first outage, one for each later
        assert pauses[-1] > pauses[0]


async def test_run_without_upstreams_waits_for_nothing(make: Make) -> None:
    """Most boards have none."""
    async with make() as one:
        nothing = Cloud({}, one.ledger)
        task = asyncio.create_task(nothing.run())
        await asyncio.sleep(0)
        assert not task.done()
        assert nothing.status() == {}
        task.cancel()
        await asyncio.wait([task])
        await nothing.stop()


# -- budget ------------------------------------------------------------------------------------------------------------


async def test_budget_spent_is_over_budget_until_the_next_day(
    server: ScriptedCloud, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 tokens a request; the one that crosses the line is answered, the next is not sent."""
    midnight = 1_800_057_600.0  # 2027-01-16 00:00 UTC
    now = [midnight - 100.0]
    monkeypatch.setattr(clock, "wall", lambda: now[0])
    async with make(daily_token_budget=30) as one:
        await one.ask()
        assert one.facts == UP
        await one.ask()
        assert one.facts == UpstreamFacts(NAME, room=False, budget_left=False)
        assert one.cloud.room(ALL) == 0
        with pytest.raises(OverBudget, match="36 tokens of today's 30") as caught:
            await one.ask()
        assert caught.value.retry_after_s == one.cloud.retry_after_s(ALL) == pytest.approx(100.0)
        assert len(server.chats) == 2
        now[0] = midnight
        assert one.facts == UP
        assert (await one.ask()).text == "ok"
        assert one.status["tokens_today"] == await one.spent() == 18


async def test_budget_outlives_a_restart(make: Make) -> None:
    """It is in the store; facts know it as soon as the task has read it."""
    async with make(daily_token_budget=18) as one:
        await one.ask()
    async with make(run=True, daily_token_budget=18) as one:
        await one.until(lambda: bool(one.told))
        assert one.facts.budget_left is False
        with pytest.raises(OverBudget):
            await one.ask()
    async with make(daily_token_budget=18) as one:  # without the task, the first use reads it
        with pytest.raises(OverBudget):
            await one.ask()


async def test_run_new_day_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that wait for the budget are woken at midnight, UTC."""
    midnight = 1_800_057_600.0
    late = [midnight - 1000.0]
    monkeypatch.setattr(clock, "wall", lambda: late[0])
    async with make(daily_token_budget=18) as one:
        await one.ask()
        started = clock.boot()
        monkeypatch.setattr(clock, "wall", lambda: midnight - 1.0 + clock.boot() - started)
        task = asyncio.create_task(one.cloud.run())
        await one.until(lambda: one.cloud.retry_after_s(ALL) == 0.0)
        assert clock.wall() >= midnight
        assert one.facts == UP
        task.cancel()
        await asyncio.wait([task])


async def test_budget_full_of_reservations_waits_instead_of_failing(server: ScriptedCloud, make: Make) -> None:
    """What others have reserved is not spent yet."""
    async with make(daily_token_budget=200) as one:
        await one.ask()
        await one.ask()
        go_on = asyncio.Event()
        server.will(held(go_on), held(go_on))
        tasks = [asyncio.create_task(one.ask()) for _ in range(2)]
        await server.asked(4)
        assert one.facts == UpstreamFacts(NAME, room=False)
        with pytest.raises(NoLink, match="takes no more"):
            await one.ask()
        go_on.set()
        await asyncio.gather(*tasks)
        assert one.facts == UP
        assert await one.spent() == 72


async def test_retry_after_is_that_of_the_first_upstream_that_comes_back(
    server: ScriptedCloud, make: Make, tmp_path: Path
) -> None:
    """Over several; 0 where one can be used now."""
    async with make() as one:
        gone = Upstream(base_url=f"http://127.0.0.1:{free_port()}/v1", model="m")
        good = Upstream(base_url=server.base_url, model="m")
        both = Cloud({"gone": gone, "paused": good, "good": good}, one.ledger)
        try:
            with pytest.raises(NoLink):
                await both.chat("gone", a_chat())
            server.will(status(429, retry_after="60"))
            with pytest.raises(NoLink):
                await both.chat("paused", a_chat())
            assert both.retry_after_s(["gone"]) == pytest.approx(1.0, abs=0.3)
            assert both.retry_after_s(["paused"]) == pytest.approx(60.0, abs=1)
            assert both.retry_after_s(["paused", "gone"]) == pytest.approx(1.0, abs=0.3)
            assert both.retry_after_s(["gone", "paused", "good"]) == 0.0
            assert [facts.up for facts in both.facts(["good", "gone", "paused"])] == [True, False, False]
            assert both.room(["good", "gone", "paused"]) == 1
            assert list(both.status()) == ["gone", "paused", "good"]
        finally:
            await both.stop()


# -- the key -----------------------------------------------------------------------------------------------------------


async def test_key_is_in_the_header_and_nowhere_else(
    server: ScriptedCloud, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the server repeats it in everything it says."""
    caplog.set_level(logging.DEBUG)
    (tmp_path / "key").write_text(KEY)
    echo = f"key {KEY} is wrong: " + "x" * 270 + KEY + KEY
    told: list[str] = []
    said = json.dumps({"error": {"message": echo, "code": 500}}).encode()
    coded = json.dumps({"error": {"message": echo, "code": KEY, "type": KEY}}).encode()
    faults: list[Behaviour] = [
        status(500, echo), status(400, echo), status(429, echo, retry_after="0"), status(401, echo), status(503, echo),
        raw(echo.encode()), raw(echo.encode(), code=500), raw(b"", code=302, headers={"Location": f"http://x/{KEY}"}),
        raw(said), stream(b"data: " + said + b"\n\n"), stream("one", b"data: " + said + b"\n\n"),
        stream(f"data: {KEY}\n\n".encode()), raw(f"<html>{KEY}".encode(), content_type="text/html"), clouds.cut(KEY),
        status(500, code=KEY, type=KEY), raw(b'{"' + KEY.encode() + b'": 1}'),
        raw(coded), stream(b"data: " + coded + b"\n\n"),
    ]  # fmt: skip
    async with make(run=True, api_key_file=str(tmp_path / "key")) as one:
        for n, fault in enumerate(faults * 2):
            await one.until(lambda: one.facts.up)
            server.will(fault)
            with pytest.raises((NoLink, ModelUnavailable)) as caught:
                await (one.ask() if n % 2 else one.stream())
            told += [str(caught.value), repr(caught.value), json.dumps(one.cloud.status())]
            error: BaseException | None = caught.value
            while error is not None:
                told.append(repr(error))
                error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        await one.until(lambda: one.facts.up)
        server.models = status(500, echo)
        server.will(status(401, echo))
        with pytest.raises(NoLink):
            await one.ask()
        probes = server.probes
        await server.until(lambda: server.probes > probes + 1)
        told.append(json.dumps(one.cloud.status()))
        server.models = clouds.listed("m")
        await one.until(lambda: one.facts.up)
        told += [json.dumps(one.told), json.dumps(one.cloud.status())]
    told += [record.getMessage() + str(vars(record)) for record in caplog.records]
    assert all(request.headers["Authorization"] == f"Bearer {KEY}" for request in server.received)
    assert len(server.chats) >= len(faults)
    assert any("[key]" in line for line in told)
    assert not [line for line in told if KEY in line]
    assert not [line for line in told if KEY[:10] in line]
