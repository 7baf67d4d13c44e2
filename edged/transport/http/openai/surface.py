"""The OpenAI API (CONTRACT section 6): chat completions of agents and of plain models, the list of both, embeddings.

`model` names either. An agent goes the way of every request: stored, with its own tools, found again under its rid. A
plain model does what the request says, and nothing of it is stored.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import msgspec
from aiohttp import web

from edged.agent.grammars.precheck import Inexpressible
from edged.api.models import Kind
from edged.completions.calls import CallPiece
from edged.completions.request import ModelAnswer, ModelAsk
from edged.errors import EdgedError, Forbidden, Internal
from edged.transport.http.core.connection import caller, gone
from edged.transport.http.core.headers import IDEMPOTENCY_KEY, idempotency_key
from edged.transport.http.core.ignored import Ignored
from edged.transport.http.core.steady import Steady
from edged.transport.http.core.stream import EventStream
from edged.transport.http.core.surface import Board
from edged.transport.http.openai import answers
from edged.transport.http.openai import embeddings as openai_embeddings
from edged.transport.http.openai import reply as shapes
from edged.transport.http.openai import request as openai_request
from edged.transport.http.openai import text as openai_text
from edged.transport.http.openai.request import ChatRequest
from edged.transport.http.openai.stream import Chunks, Piece, Thought
from edged.types import JSON, Ask, Caller, Fault, Status
from edged.wire import fault
from edged.wire.dialogue import BadParameter


class OpenAI:
    """See core.surface.Surface."""

    paths = ("/v1/chat", "/v1/completions", "/v1/embeddings", "/v1/models", "/props")
    open_paths = ()

    def __init__(self, board: Board) -> None:
        self._requests = board.api.requests
        self._models = board.api.models
        self._heartbeat_s = board.heartbeat_s
        self._strict = board.strict
        self._ignored = Ignored(board.ignored)
        self._created = int(time.time())  # of agents and models: since when they are as they are

    def routes(self) -> list[web.RouteDef]:
        """See Surface."""
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.text),
            web.post("/v1/embeddings", self.embeddings),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.model),  # an id may hold anything, also a `/`
            web.get("/props", self.props),
        ]

    def error(self, _: web.BaseRequest, error: EdgedError) -> web.Response:
        """See Surface."""
        return answers.of_error(error)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions. The header Idempotency-Key is the id of an agent's request; a plain model's answer
        has no effect that could happen twice."""
        who = caller(request)
        chat = openai_request.parse(await request.read(), strict=self._strict)
        to_agent = self._models.kind(who, chat.body.model) is Kind.AGENT
        # an agent decides about calls, too: what makes words rarer would make them wrong
        self._ignored.note(request, who.client, (*chat.ignored, *(chat.for_models if to_agent else ())))
        if to_agent:
            asked = openai_request.agent_request(chat, await self._id(request, who))
            ask = Ask(request=asked, caller=who)
            return await (self._stream_agent if chat.body.stream else self._ask_agent)(request, chat, ask)
        wanted = openai_request.model_ask(chat)
        with _named(chat):
            return await (self._stream_model if chat.body.stream else self._ask_model)(request, chat, who, wanted)

    async def text(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions: what a plain model goes on with after a bare text."""
        who = caller(request)
        asked = openai_text.parse(await request.read(), strict=self._strict)
        ask = asked.ask
        if self._models.kind(who, ask.model) is Kind.AGENT:
            raise BadParameter("model", f"{ask.model!r} is an agent, which is asked by POST /v1/chat/completions")
        self._ignored.note(request, who.client, asked.ignored)
        head, logprobs = openai_text.head(ask.model), ask.logprobs is not None
        if not asked.stream:
            return answers.document(
                openai_text.answer(head, await self._models.continue_text(who, ask), logprobs=logprobs)
            )
        chunks = openai_text.Chunks(head, include_usage=asked.include_usage, logprobs=logprobs)
        longest = self._heartbeat_s
        stream = EventStream(request, chunks.written, start_s=longest, heartbeat_s=longest)
        work = self._models.continue_text(who, ask, lambda *words: stream.add(words))
        return await stream.run(
            work, ended=chunks.end, failed=lambda error: chunks.failed(fault(error), answers.code_of(error))
        )

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models: what this caller may name as `model`."""
        usable = self._models.usable(caller(request))
        return answers.document({"object": "list", "data": [self._shown(name, kind) for name, kind in usable.items()]})

    async def model(self, request: web.Request) -> web.Response:
        """GET /v1/models/{model}."""
        name = request.match_info["model"]
        return answers.document(self._shown(name, self._usable(caller(request), name)))

    async def props(self, request: web.Request) -> web.Response:
        """GET /props?model=NAME, as llama.cpp's server has it; without a name it is of the first model."""
        who = caller(request)
        name = request.query.get("model") or next(iter(self._models.usable(who)), "")
        takes_tools = self._usable(who, name) is Kind.MODEL
        return answers.document(shapes.props(self._models.context(name), takes_tools=takes_tools))

    def _usable(self, who: Caller, name: str) -> Kind:
        """What a name stands for. Raises UnknownAgent, and Forbidden where the caller may not use it."""
        kind = self._models.kind(who, name)
        if name not in self._models.usable(who):
            raise Forbidden(f"{who.client} may not use {name!r}")
        return kind

    def _shown(self, name: str, kind: Kind) -> JSON:
        return shapes.model(name, self._created, kind, self._models.context(name))

    async def embeddings(self, request: web.Request) -> web.Response:
        """POST /v1/embeddings."""
        who = caller(request)
        job, as_base64 = openai_embeddings.parse(await request.read())
        if self._models.kind(who, job.model) is Kind.AGENT:
            raise BadParameter("model", f"{job.model!r} is an agent, and embeddings are made by embedding models")
        made = await self._models.embed(who, job)
        return answers.document(openai_embeddings.answer(job.model, made, as_base64=as_base64))

    async def _id(self, request: web.Request, who: Caller) -> str | None:
        """The id of an agent's request: its Idempotency-Key. Quotes around it were part of the id once, on this
        surface; what was stored under such an id is found under it, by either spelling."""
        key = idempotency_key(request.headers)
        if key is None or not await self._requests.has(who, quoted := f'"{key}"'):
            return key
        is_quoted = request.headers[IDEMPOTENCY_KEY] == quoted
        return key if not is_quoted and await self._requests.has(who, key) else quoted

    # -- whole answers ---------------------------------------------------------------------------------------------

    async def _ask_agent(self, request: web.Request, chat: ChatRequest, ask: Ask) -> web.Response:
        reply = msgspec.json.decode(await self._requests.answer(ask, gone=gone(request)))
        if reply["status"] != Status.DONE:
            return answers.of_failed(reply)
        return answers.document(shapes.of_agent(shapes.head(chat.body.model), reply))

    async def _ask_model(self, _: web.Request, chat: ChatRequest, who: Caller, wanted: ModelAsk) -> web.Response:
        answer = await self._models.complete(who, wanted)
        logprobs = wanted.logprobs is not None
        head = shapes.head(chat.body.model)
        return answers.document(shapes.of_model(head, answer, logprobs=logprobs, reasoning=chat.reasoning))

    # -- streams ---------------------------------------------------------------------------------------------------

    async def _stream_agent(self, request: web.Request, chat: ChatRequest, ask: Ask) -> web.StreamResponse:
        chunks, steady = self._chunks(chat), Steady()
        stream = self._stream(request, chunks)

        def on_delta(offset: int, text: str) -> None:
            if more := steady.feed(offset, text):
                stream.add((more, ()))

        def ended(body: bytes) -> bytes | web.Response:
            reply = msgspec.json.decode(body)
            ours = shapes.ours(reply)
            if reply["status"] != Status.DONE:
                failure = msgspec.convert(reply["error"], Fault)
                return chunks.failed(failure, edged=ours) if stream.begun else answers.of_failed(reply)
            rest = steady.rest(reply["output"])
            if rest is None:
                problem = f"the answer began anew and is another one now; request {reply['rid']} has it whole"
                return chunks.failed(fault(Internal(problem)), edged=ours)
            last = chunks.written([(rest, ())]) if rest else b""
            return last + chunks.end(shapes.agent_finish(reply), shapes.agent_usage(reply), {"edged": ours})

        answer = self._requests.answer(ask, on_delta, gone=gone(request))
        return await stream.run(
            answer, ended=ended, failed=lambda error: chunks.failed(fault(error), answers.code_of(error))
        )

    async def _stream_model(
        self, request: web.Request, chat: ChatRequest, who: Caller, wanted: ModelAsk
    ) -> web.StreamResponse:
        chunks = self._chunks(chat)
        stream = self._stream(request, chunks)

        def on_call(pieces: tuple[CallPiece, ...]) -> None:
            for piece in pieces:
                stream.add(piece)

        def ended(answer: ModelAnswer) -> bytes:
            return chunks.end(shapes.finish_reason(answer), shapes.model_usage(answer), shapes.of_variant(answer))

        def on_thought(text: str) -> None:
            stream.add(Thought(text))

        thoughts = on_thought if chat.reasoning else None
        answer = self._models.complete(who, wanted, lambda *words: stream.add(words), on_call, thoughts)
        return await stream.run(
            answer, ended=ended, failed=lambda error: chunks.failed(fault(error), answers.code_of(error))
        )

    def _chunks(self, chat: ChatRequest) -> Chunks:
        logprobs = bool(chat.body.logprobs)
        return Chunks(shapes.head(chat.body.model), include_usage=chat.include_usage, logprobs=logprobs)

    def _stream(self, request: web.Request, chunks: Chunks) -> EventStream[Piece]:
        """It begins late: OpenAI's clients ask again by the status of a refusal, which may come after a long load."""
        longest = self._heartbeat_s
        return EventStream(request, chunks.written, start_s=longest, heartbeat_s=longest)


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
        raise BadParameter(param, f"this schema cannot be kept: {error.reason}") from None
