"""Answers of /api/chat and /api/generate: by an agent, whose request is stored as any other, or by a plain model, whose
is not; whole or line by line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from edged.agent.grammars.precheck import Inexpressible
from edged.api.library import Library
from edged.api.models import Models
from edged.api.requests import Requests
from edged.completions.request import ModelAnswer
from edged.errors import EdgedError, Internal
from edged.host.clock import Stopwatch
from edged.transport.http.core import errors
from edged.transport.http.core.connection import gone
from edged.transport.http.core.steady import Steady
from edged.transport.http.core.stream import LINES, EventStream
from edged.transport.http.ollama import reply as shapes
from edged.transport.http.ollama import request as ollama_request
from edged.transport.http.ollama.reply import Shape
from edged.transport.http.ollama.request import Asked
from edged.types import JSON, Ask, Caller, Fault, Sampling, Status, TokenLogprob
from edged.wire import fault
from edged.wire.dialogue import BadParameter
from edged.wire.sampling import read_samplers, sampling

Words = tuple[str, tuple[TokenLogprob, ...]]
Piece = Words | str  # words of the answer, or what is thought before it


class Answers:
    """Who answers, and in which shape."""

    def __init__(self, requests: Requests, models: Models, library: Library, *, heartbeat_s: float) -> None:
        self._requests, self._models, self._library = requests, models, library
        self._heartbeat_s = heartbeat_s

    async def by_agent(self, http: web.Request, asked: Asked, ask: Ask) -> web.StreamResponse:
        """An agent's answer."""
        name, shape = ask.request.agent, Shape(asked.model, generates=asked.generates)

        def end(reply: dict[str, JSON]) -> dict[str, JSON]:
            self._keep(ask.caller, name, asked)
            finish = reply.get("finish") or "stop"  # replies that an earlier edged stored do not say
            return {**self._ended(asked, finish, shapes.spent_by_agent(reply), reply["output"]), **shapes.ours(reply)}

        if not asked.stream:
            reply = msgspec.json.decode(await self._requests.answer(ask, gone=gone(http)))
            if reply["status"] != Status.DONE:
                return _failed(reply)
            return json(shape.part(reply["output"], end=end(reply)))
        steady = Steady()
        stream = self._stream(http, shape)

        def on_delta(offset: int, text: str) -> None:
            if more := steady.feed(offset, text):
                stream.add((more, ()))

        def ended(body: bytes) -> bytes | web.Response:
            reply = msgspec.json.decode(body)
            if reply["status"] != Status.DONE:
                failure = msgspec.convert(reply["error"], Fault)
                return error_line(failure) if stream.begun else _failed(reply)
            rest = steady.rest(reply["output"])
            if rest is None:
                problem = f"the answer began anew and is another one now; request {reply['rid']} has it whole"
                return error_line(fault(Internal(problem)))
            return (line(shape.part(rest)) if rest else b"") + line(shape.part(end=end(reply)))

        answer = self._requests.answer(ask, on_delta, gone=gone(http))
        return await stream.run(answer, ended=ended, failed=lambda error: error_line(fault(error)))

    async def by_model(self, http: web.Request, asked: Asked, who: Caller, name: str) -> web.StreamResponse:
        """A plain model's answer. name: as it is configured."""
        watch, shape = Stopwatch(), Shape(asked.model, generates=asked.generates)
        shows = asked.think is not False

        def last(answer: ModelAnswer) -> dict[str, JSON]:
            spent = shapes.spent_by_model(answer, watch.ms())
            return self._ended(asked, shapes.finish(answer), spent, answer.text)

        if not asked.stream:
            answer = await self._answer(asked, who, name)
            thoughts = answer.reasoning if shows else ""
            logprobs = answer.logprobs if asked.logprobs is not None else None
            calls = shapes.whole(answer.calls)
            return json(shape.part(answer.text, thoughts=thoughts, calls=calls, logprobs=logprobs, end=last(answer)))
        stream = self._stream(http, shape, logprobs=asked.logprobs is not None)

        def ended(answer: ModelAnswer) -> bytes:
            calls = shapes.whole(answer.calls)
            return (line(shape.part(calls=calls)) if calls else b"") + line(shape.part(end=last(answer)))

        def on_piece(text: str, tokens: tuple[TokenLogprob, ...]) -> None:
            stream.add((text, tokens))

        work = self._answer(asked, who, name, on_piece, stream.add if shows else None)
        return await stream.run(work, ended=ended, failed=lambda error: error_line(fault(error)))

    async def _answer(
        self,
        asked: Asked,
        who: Caller,
        name: str,
        on_piece: Callable[[str, tuple[TokenLogprob, ...]], None] | None = None,
        on_thought: Callable[[str], None] | None = None,
    ) -> ModelAnswer:
        how = _sampling(asked)
        if asked.is_bare:
            text = ollama_request.text_ask(asked, name, how, self._models.context(name))
            answer = await self._models.continue_text(who, text, on_piece)
        else:
            wanted = ollama_request.model_ask(asked, name, how)
            answer = await _named(asked, self._models.complete(who, wanted, on_piece, None, on_thought))
        self._keep(who, name, asked)
        return answer

    def _keep(self, who: Caller, name: str, asked: Asked) -> None:
        if asked.keep_alive is not None:
            self._library.keep(who, name, asked.keep_alive)

    def _ended(self, asked: Asked, finish: str, spent: shapes.Spent, answer: str) -> dict[str, JSON]:
        """Fields of the last document."""
        fields = shapes.ended(finish, spent)
        if asked.generates and not asked.is_bare:
            fields["context"] = ollama_request.context(asked.messages, answer)
        return fields

    def _stream(self, http: web.Request, shape: Shape, *, logprobs: bool = False) -> EventStream[Piece]:
        """It begins late, so that an error that comes after a long load still has its status."""

        def written(pieces: list[Piece]) -> bytes:
            return b"".join(line(document) for document in _documents(shape, pieces, logprobs=logprobs))

        longest = self._heartbeat_s
        return EventStream(
            http,
            written,
            start_s=longest,
            heartbeat_s=longest,
            heartbeat=lambda: line(shape.part()),  # an empty line would be no document
            content_type=LINES,
        )


def _documents(shape: Shape, pieces: Sequence[Piece], *, logprobs: bool) -> list[dict[str, JSON]]:
    """As few as possible: what is thought comes before the words."""
    thoughts = "".join(piece for piece in pieces if isinstance(piece, str))
    words = [piece for piece in pieces if not isinstance(piece, str)]
    made = [shape.part(thoughts=thoughts)] if thoughts else []
    if words:
        tokens = [token for _, some in words for token in some]
        made.append(shape.part("".join(text for text, _ in words), logprobs=tokens if logprobs else None))
    return made


def _sampling(asked: Asked) -> Sampling:
    options = asked.options
    samplers = read_samplers(dict(options.samplers), "options")
    return sampling(options.temperature, options.top_p, options.seed, samplers)


async def _named(asked: Asked, work: Awaitable[ModelAnswer]) -> ModelAnswer:
    """Names the parameter whose schema cannot be kept."""
    try:
        return await work
    except Inexpressible as error:
        param = "format"
        if error.tool is not None:
            place = [tool.name for tool in asked.tools].index(error.tool)
            param = f"tools[{place}].function.parameters"
        raise BadParameter(param, f"this schema cannot be kept: {error.reason}") from None


def line(document: JSON) -> bytes:
    """A document of a stream."""
    return msgspec.json.encode(document) + b"\n"


def error_line(failure: Fault) -> bytes:
    """The last line of a stream that fails."""
    return line({"error": failure.message})


def json(document: JSON, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A whole answer."""
    body: Any = msgspec.json.encode(document)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def _failed(reply: dict[str, JSON]) -> web.Response:
    """The response to a request of an agent that was taken in and has no answer."""
    failure = msgspec.convert(reply["error"], Fault)
    after = errors.retry_after(failure)
    body = {"error": failure.message, **shapes.ours(reply)}
    return json(body, status=errors.STATUS_OF[failure.code], headers={"Retry-After": after} if after else None)


def failure(error: EdgedError) -> bytes:
    """An error as the body of a response of its own."""
    return msgspec.json.encode({"error": fault(error).message})
