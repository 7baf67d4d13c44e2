"""A cloud for tests: a real HTTP server on loopback that speaks the OpenAI API and fails as it is told.

    async with ScriptedCloud() as cloud:
        cloud.will(status(500), text("The tank is full."))   # one a request, in order
        cloud.otherwise = by(lambda body: f"You said {body['messages'][-1]['content']}")

A behaviour answers one POST /chat/completions, streamed where the request wants that. `cloud.models` answers the
probes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Self

from aiohttp import web

JSON = Any
WAIT_S = 10.0  # for anything that should happen at once: two busy cores need some patience
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
MODEL = "large"


class Received(NamedTuple):
    """A request as it came. body: decoded JSON, None without one."""

    method: str
    path: str
    headers: dict[str, str]
    body: JSON


class Asked(NamedTuple):
    """A request as a behaviour sees it."""

    request: web.Request
    body: dict[str, JSON]
    cloud: ScriptedCloud

    @property
    def streamed(self) -> bool:
        """Whether pieces are wanted."""
        return bool(self.body.get("stream"))


Behaviour = Callable[[Asked], Awaitable[web.StreamResponse]]


class ScriptedCloud:
    """The server. After `stop` connections are refused; `start` opens it again on the same port.

    Args:
        key: the only one it takes; None: it looks at none. May be changed.
        prefix: of its paths.
    """

    def __init__(self, *, key: str | None = None, prefix: str = "/v1") -> None:
        self.prefix = prefix
        self.received: list[Received] = []
        self.otherwise: Behaviour = text("ok")
        self.models: Behaviour = listed(MODEL)
        self.port = 0
        self.gone = 0  # answers that the client did not wait for
        self.key = key
        self._script: deque[Behaviour] = deque()
        self._news = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def base_url(self) -> str:
        """For [upstreams.NAME]."""
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    @property
    def chats(self) -> list[Received]:
        """The completions that were asked for, oldest first."""
        return [one for one in self.received if one.path.endswith("/chat/completions")]

    @property
    def probes(self) -> int:
        """How often the list of models was asked for."""
        return sum(one.path.endswith("/models") for one in self.received)

    def will(self, *behaviours: Behaviour) -> None:
        """What the next requests get, one each; afterwards it is `otherwise` again."""
        self._script.extend(behaviours)

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=2**26)
        app.router.add_post(f"{self.prefix}/chat/completions", self._chat)
        app.router.add_get(f"{self.prefix}/models", self._models)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        with socket.socket() as taken:  # of our own: a port that was let go is taken again
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", self.port))
            self.port = taken.getsockname()[1]
            await web.SockSite(self._runner, taken.dup()).start()

    async def stop(self) -> None:
        """Cut what is connected and refuse what comes."""
        runner, self._runner = self._runner, None
        if runner:
            for server in runner.sites:
                await server.stop()
            await runner.cleanup()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something about the requests."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def asked(self, times: int = 1) -> None:
        """Wait until so many completions were asked for."""
        await self.until(lambda: len(self.chats) >= times)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._receive(request)
        behaviour = self._script.popleft() if self._script else self.otherwise
        return await self._answer(request, body, behaviour)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        await self._receive(request)
        return await self._answer(request, {}, self.models)

    async def _receive(self, request: web.Request) -> JSON:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        self.received.append(Received(request.method, request.path, dict(request.headers), body))
        self._news.set()
        return body

    async def _answer(self, request: web.Request, body: JSON, behaviour: Behaviour) -> web.StreamResponse:
        asked = Asked(request, body, self)
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            behaviour = status(401, "Incorrect API key provided")
        try:
            return await behaviour(asked)
        except (asyncio.CancelledError, ConnectionError):
            self.gone += 1
            self._news.set()
            raise


# -- good answers ------------------------------------------------------------------------------------------------------


def text(content: str, *, finish: str = "stop", usage: dict[str, JSON] | None = USAGE) -> Behaviour:
    """An answer in words; streamed it comes word by word."""

    async def behave(asked: Asked) -> web.StreamResponse:
        if not asked.streamed:
            return web.json_response(completion({"role": "assistant", "content": content}, finish, usage))
        deltas: list[JSON] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in _words(content)]
        return await _send(asked, [event(delta) for delta in deltas] + ending(finish, usage))

    return behave


def calls(*made: tuple[str, dict[str, JSON]], usage: dict[str, JSON] | None = USAGE) -> Behaviour:
    """Tool calls, as (name, arguments); streamed their arguments come in pieces."""

    async def behave(asked: Asked) -> web.StreamResponse:
        whole = [
            {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for n, (name, arguments) in enumerate(made)
        ]
        if not asked.streamed:
            message = {"role": "assistant", "content": None, "tool_calls": whole}
            return web.json_response(completion(message, "tool_calls", usage))
        sent = []
        for n, call in enumerate(whole):
            arguments = call["function"]["arguments"]  # type: ignore[index]  # built above
            head = {"name": call["function"]["name"], "arguments": ""}  # type: ignore[index]  # likewise
            sent.append(event({"tool_calls": [{"index": n, "id": call["id"], "type": "function", "function": head}]}))
            for at in range(0, len(arguments), 3):
                piece = {"index": n, "function": {"arguments": arguments[at : at + 3]}}
                sent.append(event({"tool_calls": [piece]}))
        return await _send(asked, sent + ending("tool_calls", usage))

    return behave


def by(function: Callable[[dict[str, JSON]], str | Behaviour]) -> Behaviour:
    """What the request's body decides: words, or another behaviour."""

    async def behave(asked: Asked) -> web.StreamResponse:
        chosen = function(asked.body)
        return await (text(chosen) if isinstance(chosen, str) else chosen)(asked)

    return behave


def listed(*models: str) -> Behaviour:
    """A list of models."""

    async def behave(_: Asked) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in models]})

    return behave


def held(until: asyncio.Event, then: Behaviour | None = None) -> Behaviour:
    """Waits for the test, then answers."""

    async def behave(asked: Asked) -> web.StreamResponse:
        await until.wait()
        return await (then or text("ok"))(asked)

    return behave


# -- faults ------------------------------------------------------------------------------------------------------------


def status(http: int, message: str = "it is broken", *, retry_after: str | None = None, **error: JSON) -> Behaviour:
    """An error of the OpenAI API; `error` is more of its error object."""

    async def behave(_: Asked) -> web.StreamResponse:
        headers = {"Retry-After": retry_after} if retry_after is not None else {}
        return web.json_response({"error": {"message": message, **error}}, status=http, headers=headers)

    return behave


def wrong_model(name: str = MODEL) -> Behaviour:
    """It does not have the model."""
    return status(404, f"The model `{name}` does not exist", code="model_not_found")


def raw(
    body: bytes, *, content_type: str = "application/json", code: int = 200, headers: dict[str, str] | None = None
) -> Behaviour:
    """These bytes, whatever was asked."""

    async def behave(_: Asked) -> web.StreamResponse:
        return web.Response(body=body, status=code, headers={"Content-Type": content_type, **(headers or {})})

    return behave


def invalid_json() -> Behaviour:
    """Half an answer, as if it were a whole one."""
    return raw(b'{"choices": [{"message": {"content": "hal')


def html_page() -> Behaviour:
    """What a captive portal answers to everything."""
    return raw(b"<!DOCTYPE html><html><body>Please log in</body></html>", content_type="text/html")


def redirect(to: str = "http://login.hotel.example/start") -> Behaviour:
    """What another captive portal answers."""
    return raw(b"", code=302, headers={"Location": to})


def stalled_header() -> Behaviour:
    """Takes the request and says nothing."""

    async def behave(_: Asked) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return behave


def stalled_body(content: str = "one two") -> Behaviour:
    """Begins to answer and stops."""

    async def behave(asked: Asked) -> web.StreamResponse:
        await begin(asked, content)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return behave


def trickle(pause_s: float) -> Behaviour:
    """Sends a byte now and then, and never an answer."""

    async def behave(asked: Asked) -> web.StreamResponse:
        response = await begin(asked, "")
        while True:
            await asyncio.sleep(pause_s)
            await response.write(b": still here\n" if asked.streamed else b" ")

    return behave


def dropped() -> Behaviour:
    """Reads the request and closes the connection without a word."""

    async def behave(asked: Asked) -> web.StreamResponse:
        assert asked.request.transport is not None
        asked.request.transport.close()
        return web.Response()

    return behave


def cut(content: str = "one two") -> Behaviour:
    """Begins to answer, and the connection breaks."""

    async def behave(asked: Asked) -> web.StreamResponse:
        response = await begin(asked, content)
        assert asked.request.transport is not None
        asked.request.transport.abort()
        return response

    return behave


def stream(*pieces: str | bytes, finish: str | None = "stop", usage: dict[str, JSON] | None = USAGE) -> Behaviour:
    """A stream made of these: a text becomes an event, bytes go out as they are. finish None: nothing follows."""

    async def behave(asked: Asked) -> web.StreamResponse:
        sent = [piece if isinstance(piece, bytes) else event({"content": piece}) for piece in pieces]
        return await _send(asked, sent + (ending(finish, usage) if finish else []))

    return behave


# -- the shapes --------------------------------------------------------------------------------------------------------


def completion(message: JSON, finish: str | None, usage: dict[str, JSON] | None) -> JSON:
    """The body of an answer that is not streamed."""
    choice = {"index": 0, "message": message, "finish_reason": finish}
    counted = {"usage": usage} if usage else {}
    return {"id": "c-1", "object": "chat.completion", "model": MODEL, "choices": [choice], **counted}


def event(delta: JSON, finish: str | None = None) -> bytes:
    """One event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _data({"id": "c-1", "object": "chat.completion.chunk", "choices": [choice]})


def ending(finish: str, usage: dict[str, JSON] | None) -> list[bytes]:
    """The last events of a stream."""
    counted = [_data({"choices": [], "usage": usage})] if usage else []
    return [event({}, finish), *counted, b"data: [DONE]\n\n"]


def _data(value: JSON) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _words(content: str) -> list[str]:
    words = content.split(" ")
    return [word + (" " if n < len(words) - 1 else "") for n, word in enumerate(words)]


async def begin(asked: Asked, content: str) -> web.StreamResponse:
    """The head, and the beginning of an answer; more can be written to it."""
    kind = "text/event-stream" if asked.streamed else "application/json"
    response = web.StreamResponse(headers={"Content-Type": kind})
    await response.prepare(asked.request)
    if asked.streamed:
        for word in _words(content) if content else []:
            await response.write(event({"content": word}))
    else:
        await response.write(json.dumps(completion({"content": content}, "stop", None)).encode()[:-10])
    return response


async def _send(asked: Asked, pieces: list[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(asked.request)
    for piece in pieces:
        await response.write(piece)
        await asyncio.sleep(0)  # each in a packet of its own, mostly
    with contextlib.suppress(ConnectionError):
        await response.write_eof()
    return response
