"""The OpenAI API (CONTRACT section 6): chat completions of agents and of plain models, the list of both, embeddings.

`model` names either. An agent goes the way of every request: stored, with its own tools, found again under its rid. A
plain model does what the request says, and nothing of it is stored.

A client that goes away ends what it asked for. The server tells of it only with `handler_cancellation=True`: the runner
that serves these routes has to be made so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

import msgspec
from aiohttp import web

from edged.access import policy
from edged.completions.calls import joined
from edged.completions.local import CallPiece, Inexpressible, ModelAsk
from edged.config import Config
from edged.errors import (
    BadRequest,
    ContextExceeded,
    ContextRefused,
    EdgedError,
    Forbidden,
    Internal,
    TooLarge,
    UnknownAgent,
)
from edged.transport.http.core.api import STATUS_OF, Api, retry_after
from edged.transport.http.core.errors import openai_error, should_retry
from edged.transport.http.openai import embeddings as openai_embeddings
from edged.transport.http.openai import reply as shapes
from edged.transport.http.openai import request as openai_request
from edged.transport.http.openai.checks import Wrong
from edged.transport.http.openai.reply import Head
from edged.transport.http.openai.request import ChatRequest
from edged.transport.http.openai.stream import Steady
from edged.types import JSON, Ask, Caller, Fault, Status, TokenLogprob
from edged.wire import MAX_REQUEST_BYTES, fault

log = logging.getLogger("edged.http")

PARAM = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+)*): ")  # how errors of edged's own checks begin
SSE_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

# OpenAI's words for what its clients handle apart
OPENAI_CODES: dict[type[EdgedError], str] = {
    UnknownAgent: "model_not_found",
    ContextExceeded: "context_length_exceeded",
    ContextRefused: "context_length_exceeded",
}

_Words = tuple[str, tuple[TokenLogprob, ...]]
CallerOf = Callable[[web.Request], Caller]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


def routes(api: Api, config: Config, caller_of: CallerOf) -> list[web.RouteDef]:
    """The OpenAI API for an application whose runner has `handler_cancellation=True`.

    Args:
        caller_of: who sent a request; raises Forbidden.
    """
    openai = OpenAI(api, config, caller_of)
    return [
        web.post("/v1/chat/completions", _safe(openai.chat)),
        web.post("/v1/embeddings", _safe(openai.embeddings)),
        web.get("/v1/models", _safe(openai.models)),
        web.get("/v1/models/{model}", _safe(openai.model)),
    ]


def _safe(handler: Handler) -> Handler:
    """A handler whose errors are told in OpenAI's shape."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except EdgedError as error:
            return openai_error(error, param=_param(error), code=_code(error))
        except web.HTTPException:
            raise
        except Exception:
            log.exception("%s %s failed through a bug", request.method, request.path)
            return openai_error(Internal("an error inside edged; its log has the details"))

    return answer


class OpenAI:
    """The handlers."""

    def __init__(self, api: Api, config: Config, caller_of: CallerOf) -> None:
        self._api = api
        self._config = config
        self._caller_of = caller_of
        self._created = int(time.time())  # of agents and models: since when they are as they are

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions. The header Idempotency-Key is the id of an agent's request; a plain model's answer
        has no effect that could happen twice."""
        caller = self._caller_of(request)
        chat = openai_request.parse(await _body(request))
        name = chat.body.model
        if name in self._config.agents:
            fields = openai_request.agent_map(chat, request.headers.get("Idempotency-Key"))
            ask = Ask(request=self._api.request(fields), caller=caller)
            return await (self._stream_agent if chat.body.stream else self._ask_agent)(request, chat, ask)
        if name in self._config.models:
            wanted = openai_request.model_ask(chat)
            answer = self._stream_model if chat.body.stream else self._ask_model
            with _named(chat):
                return await answer(request, caller, wanted, chat)
        raise self._unknown(name, caller)

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models: what this caller may name as `model`."""
        caller = self._caller_of(request)
        return _json(shapes.models(*self._usable(caller), self._created))

    async def model(self, request: web.Request) -> web.Response:
        """GET /v1/models/{model}."""
        caller = self._caller_of(request)
        name = request.match_info["model"]
        for kind, names in zip(("agent", "model"), self._usable(caller), strict=True):
            if name in names:
                return _json(shapes.model(name, self._created, kind))
        raise self._unknown(name, caller)

    async def embeddings(self, request: web.Request) -> web.Response:
        """POST /v1/embeddings."""
        caller = self._caller_of(request)
        job, as_base64 = openai_embeddings.parse(await _body(request))
        if job.model in self._config.agents:
            raise Wrong("model", f"{job.model!r} is an agent, and embeddings are made by embedding models")
        if job.model not in self._config.models:
            raise self._unknown(job.model, caller)
        async with _running(request, self._api.embed(caller, job)) as work:
            await asyncio.wait([work])
        return _json(openai_embeddings.answer(job.model, work.result(), as_base64=as_base64))

    def _usable(self, caller: Caller) -> tuple[list[str], list[str]]:
        """(agents, models)."""
        agents = [name for name in self._config.agents if name in caller.agents]
        return agents, [name for name in self._config.models if policy.may_model(caller, name)]

    def _unknown(self, name: str, caller: Caller) -> EdgedError:
        if name in self._config.agents or name in self._config.models:
            return Forbidden(f"{caller.client} may not use {name!r}")
        agents, models = self._usable(caller)
        return UnknownAgent(f"no model {name!r}: there are {', '.join([*agents, *models]) or 'none for this client'}")

    # -- whole answers ---------------------------------------------------------------------------------------------

    async def _ask_agent(self, request: web.Request, chat: ChatRequest, ask: Ask) -> web.StreamResponse:
        gone = asyncio.Event()
        async with _running(request, self._api.answer(ask, gone=gone), gone) as work:
            await asyncio.wait([work])
        reply = msgspec.json.decode(work.result())
        if reply["status"] != Status.DONE:
            return _refusal(msgspec.convert(reply["error"], Fault), edged=shapes.ours(reply))
        return _json(shapes.of_agent(shapes.head(chat.body.model), reply))

    async def _ask_model(
        self, request: web.Request, caller: Caller, wanted: ModelAsk, chat: ChatRequest
    ) -> web.StreamResponse:
        async with _running(request, self._api.complete(caller, wanted)) as work:
            await asyncio.wait([work])
        head = shapes.head(chat.body.model)
        return _json(shapes.of_model(head, work.result(), logprobs=wanted.logprobs is not None))

    # -- streams ---------------------------------------------------------------------------------------------------

    async def _stream_agent(self, request: web.Request, chat: ChatRequest, ask: Ask) -> web.StreamResponse:
        gone, fresh, steady = asyncio.Event(), _Fresh[str](), Steady()

        def on_delta(offset: int, text: str) -> None:
            if more := steady.feed(offset, text):
                fresh.add(more)

        async def answer(stream: _Stream) -> None:
            async with _running(request, self._api.answer(ask, on_delta, gone=gone), gone) as work:
                while pieces := await fresh.next(work):
                    await stream.send({"content": "".join(pieces)})
                reply = msgspec.json.decode(work.result())
            if reply["status"] != Status.DONE:
                await stream.fail(msgspec.convert(reply["error"], Fault), edged=shapes.ours(reply))
                return
            rest = steady.rest(reply["output"])
            if rest is None:
                problem = f"the answer began anew and is another one now; request {reply['rid']} has it whole"
                await stream.fail(fault(Internal(problem)), edged=shapes.ours(reply))
                return
            if rest:
                await stream.send({"content": rest})
            await stream.end("stop", shapes.agent_usage(reply), edged=shapes.ours(reply))

        return await _streamed(request, chat, answer)

    async def _stream_model(
        self, request: web.Request, caller: Caller, wanted: ModelAsk, chat: ChatRequest
    ) -> web.StreamResponse:
        fresh = _Fresh[_Words | CallPiece]()

        def on_call(pieces: tuple[CallPiece, ...]) -> None:
            for piece in pieces:
                fresh.add(piece)

        async def answer(stream: _Stream) -> None:
            completion = self._api.complete(caller, wanted, lambda *words: fresh.add(words), on_call)
            async with _running(request, completion) as work:
                while pieces := await fresh.next(work):
                    words = [piece for piece in pieces if not isinstance(piece, CallPiece)]
                    if words:  # all of them come before the first call
                        tokens = [token for _, some in words for token in some]
                        logprobs = shapes.logprobs_content(tokens) if wanted.logprobs is not None else None
                        await stream.send({"content": "".join(text for text, _ in words)}, logprobs=logprobs)
                    for piece in joined([piece for piece in pieces if isinstance(piece, CallPiece)]):
                        await stream.send({"tool_calls": [shapes.call_piece(piece)]})
                done = work.result()
            await stream.end(shapes.finish_reason(done), shapes.model_usage(done), **shapes.of_variant(done))

        return await _streamed(request, chat, answer)


class _Fresh(Generic[T]):
    """Pieces on their way from a callback to a writer that may be slow: what has come meanwhile goes out as one."""

    def __init__(self) -> None:
        self._pieces: list[T] = []
        self._news = asyncio.Event()

    def add(self, piece: T) -> None:
        """From the callback."""
        self._pieces.append(piece)
        self._news.set()

    async def next(self, work: asyncio.Task[Any]) -> list[T]:
        """All that has come; none once the work is done."""
        work.add_done_callback(self._over)
        while not self._pieces and not work.done():
            self._news.clear()
            await self._news.wait()
        work.remove_done_callback(self._over)
        pieces, self._pieces = self._pieces, []
        return pieces

    def _over(self, _: object) -> None:
        self._news.set()


class _Stream:
    """Server-sent events of one answer. The status line goes out with the first of them: until then a refusal is an
    ordinary response."""

    def __init__(self, request: web.Request, head: Head, *, include_usage: bool) -> None:
        self.response = web.StreamResponse(headers=SSE_HEADERS)
        self._request = request
        self._head = head
        self._no_usage: dict[str, JSON] = {"usage": None} if include_usage else {}

    async def send(self, delta: dict[str, JSON], *, logprobs: JSON = None) -> None:
        """More of the answer."""
        await self._begin("" if "content" in delta else None)
        await self._write({**shapes.chunk(self._head, delta, logprobs=logprobs), **self._no_usage})

    async def end(
        self, finish_reason: str, usage: JSON, *, edged: JSON = None, system_fingerprint: str | None = None
    ) -> None:
        """The answer is whole."""
        await self._begin("")
        ours: dict[str, JSON] = {"edged": edged} if edged else {}
        if system_fingerprint:
            ours["system_fingerprint"] = system_fingerprint
        last = shapes.chunk(self._head, {}, finish_reason=finish_reason)
        await self._write({**last, **self._no_usage, **ours})
        if self._no_usage:
            await self._write({**self._head.fields("chat.completion.chunk"), "choices": [], "usage": usage})
        await self.response.write(b"data: [DONE]\n\n")
        await self.response.write_eof()

    async def fail(self, failure: Fault, *, code: str | None = None, edged: JSON = None) -> None:
        """There will be no more of it."""
        if not self.response.prepared:
            self.response = _refusal(failure, edged=edged)
            return
        await self._write({**shapes.error(failure, code=code), **({"edged": edged} if edged else {})})
        await self.response.write_eof()

    async def _begin(self, content: str | None) -> None:
        if not self.response.prepared:
            await self.response.prepare(self._request)
            first = shapes.chunk(self._head, {"role": "assistant", "content": content, "refusal": None})
            await self._write({**first, **self._no_usage})

    async def _write(self, event: dict[str, JSON]) -> None:
        await self.response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")


async def _streamed(
    request: web.Request, chat: ChatRequest, answer: Callable[[_Stream], Awaitable[None]]
) -> web.StreamResponse:
    """Send an answer as it comes. An error that comes too late for a status is the last event."""
    stream = _Stream(request, shapes.head(chat.body.model), include_usage=chat.include_usage)
    try:
        await answer(stream)
    except ConnectionError:
        log.debug("the reader of a stream has gone")
    except Exception as error:
        if not stream.response.prepared:
            raise
        if not isinstance(error, EdgedError):
            log.exception("a stream failed through a bug")
            error = Internal("an error inside edged; its log has the details")
        with contextlib.suppress(ConnectionError):
            await stream.fail(fault(error), code=_code(error))
    return stream.response


@contextlib.asynccontextmanager
async def _running(
    request: web.Request, work: Coroutine[Any, Any, T], gone: asyncio.Event | None = None
) -> AsyncIterator[asyncio.Task[T]]:
    """Work that does not outlive the block. `gone` is set before it is cancelled because the client has left, and not
    when the server stops: then the requests of agents go on after the next start."""
    task = asyncio.create_task(work, name="edged.http.completion")
    try:
        yield task
    except (asyncio.CancelledError, ConnectionError) as error:
        # What the body's stream was ended with says why; a server that stops ends it with a CancelledError.
        lost = isinstance(error, ConnectionError) or isinstance(request.content.exception(), Exception)
        if gone and lost:
            gone.set()
        raise
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # whoever is interested has seen it


@contextlib.contextmanager
def _named(chat: ChatRequest) -> Iterator[None]:
    """Names the parameter whose schema cannot be kept."""
    try:
        yield
    except Inexpressible as error:
        param = "response_format"
        if error.tool is not None:
            place = [tool.name for tool in chat.tools].index(error.tool)
            param = f"tools[{place}].function.parameters"
        raise Wrong(param, f"this schema cannot be kept: {error.reason}") from None


async def _body(request: web.Request) -> bytes:
    """The whole body, whoever has read it before. TooLarge beyond MAX_REQUEST_BYTES."""
    try:
        body = await request.read()
    except (web.RequestPayloadError, ConnectionError) as error:
        raise BadRequest(f"the request's body cannot be read: {error}") from None
    if len(body) > MAX_REQUEST_BYTES:
        raise TooLarge(f"the request is longer than {MAX_REQUEST_BYTES} bytes")
    return body


def _param(error: EdgedError) -> str | None:
    """The parameter an error is about; those of edged begin with it."""
    if isinstance(error, Wrong):
        return error.param
    if isinstance(error, UnknownAgent):
        return "model"
    named = PARAM.match(error.message) if isinstance(error, BadRequest) else None
    return named[1] if named else None


def _code(error: EdgedError) -> str | None:
    return OPENAI_CODES.get(type(error))


def _refusal(failure: Fault, *, edged: JSON = None) -> web.Response:
    """The response to a request that was taken in and failed."""
    headers = should_retry(failure.retryable)
    if (after := retry_after(failure)) is not None:
        headers["Retry-After"] = after
    return _json({**shapes.error(failure), **({"edged": edged} if edged else {})}, STATUS_OF[failure.code], headers)


def _json(document: JSON, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(document), status=status, headers=headers, content_type="application/json"
    )
