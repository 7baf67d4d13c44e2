"""OpenAI's Responses API (CONTRACT section 6): responses of agents and of plain models, kept so that later ones go on
from them, looked at, ended and deleted.

An agent's response is a request of it like any other, under the response's id: it is done once, and goes on after a
restart. Of a plain model's, the finished one is stored.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from aiohttp import web
from msgspec import Struct, structs

from edged.agent.grammars.precheck import Inexpressible
from edged.api.models import Kind
from edged.api.responses import Found, UnknownResponse
from edged.completions.calls import CallPiece
from edged.errors import BadRequest, EdgedError, Internal, TooLarge
from edged.store.lookup import Row
from edged.store.responses import Kept
from edged.transport.http.core.connection import caller, gone
from edged.transport.http.core.errors import NotFound
from edged.transport.http.core.headers import idempotency_key
from edged.transport.http.core.ignored import Ignored
from edged.transport.http.core.steady import Steady
from edged.transport.http.core.stream import EventStream
from edged.transport.http.core.surface import Board
from edged.transport.http.openai import answers
from edged.transport.http.openai.stream import Piece, Thought
from edged.transport.http.responses import items
from edged.transport.http.responses import reply as shapes
from edged.transport.http.responses import request as requests
from edged.transport.http.responses.items import Item
from edged.transport.http.responses.reply import Response
from edged.transport.http.responses.request import ResponseRequest
from edged.transport.http.responses.stream import Events
from edged.types import JSON, Ask, Caller, Message, Status
from edged.wire import MAX_REQUEST_BYTES, fault
from edged.wire.dialogue import BadParameter

NO_PREVIOUS = "previous_response_not_found"  # OpenAI's word
LISTED = (1, 100)  # items of one page
PAGE = 20


class _Asked(Struct, frozen=True, kw_only=True):
    """One request, ready to be done. kept: what is stored of it, with a body that says that it is under way; also where
    it is not to be stored."""

    who: Caller
    request: ResponseRequest
    messages: tuple[Message, ...]
    response: Response
    kept: Kept

    @property
    def logprobs(self) -> bool:
        """Whether they are told."""
        return self.request.logprobs is not None


class NoPrevious(BadParameter):
    """The response to go on from is not there."""


class Responses:
    """See core.surface.Surface."""

    paths = ("/v1/responses",)
    open_paths = ()

    def __init__(self, board: Board) -> None:
        self._requests = board.api.requests
        self._models = board.api.models
        self._responses = board.api.responses
        self._heartbeat_s = board.heartbeat_s
        self._strict = board.strict
        self._ignored = Ignored(board.ignored)

    def routes(self) -> list[web.RouteDef]:
        """See Surface."""
        return [
            web.post("/v1/responses", self.create),
            web.get("/v1/responses/{id}", self.get),
            web.delete("/v1/responses/{id}", self.delete),
            web.post("/v1/responses/{id}/cancel", self.cancel),
            web.get("/v1/responses/{id}/input_items", self.input_items),
        ]

    def error(self, _: web.BaseRequest, error: EdgedError) -> web.Response:
        """See Surface."""
        return answers.of_error(error, NO_PREVIOUS if isinstance(error, NoPrevious) else None)

    async def create(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/responses."""
        who = caller(request)
        wanted = requests.parse(await request.read(), strict=self._strict)
        is_agent = self._models.kind(who, wanted.body.model) is Kind.AGENT
        self._ignored.note(request, who.client, (*wanted.ignored, *(wanted.samplers.named if is_agent else ())))
        key = idempotency_key(request.headers)
        asked = await self._asked(who, wanted, key, is_agent=is_agent)
        if is_agent:
            # without a name nobody could ask for it again: it ends where its client goes away
            id = asked.kept.id if wanted.is_kept or key is not None else None
            made = requests.agent_request(wanted, asked.messages, id, private=asked.kept.private)
            return await self._of_agent(request, asked, Ask(request=made, caller=who))
        with _named(wanted):
            return await self._of_model(request, asked)

    async def _asked(self, who: Caller, wanted: ResponseRequest, key: str | None, *, is_agent: bool) -> _Asked:
        """With all that it goes on from."""
        id, created = _id(who, key if is_agent else None), time.time()
        earlier, before = await self._before(who, wanted.body.previous_response_id)
        response = shapes.begun(id, created, requests.echo(wanted))
        private = any(kept.private for kept in before)
        kept = Kept(
            id=id,
            client=who.client,
            thread=before[-1].thread if before else id,
            previous=wanted.body.previous_response_id,
            private=private or (is_agent and self._responses.is_private(wanted.body.model)),
            keyed=is_agent and key is not None,
            created_wall=created,
            input=msgspec.json.encode(wanted.items),
            body=msgspec.json.encode(response),
        )
        messages = items.messages(wanted.body.instructions, earlier, wanted.items)
        return _Asked(who=who, request=wanted, messages=messages, response=response, kept=kept)

    async def _before(self, who: Caller, previous: str | None) -> tuple[list[Item], list[Kept]]:
        """The items that a request goes on from, and the responses that they are of."""
        if previous is None:
            return [], []
        try:
            chain = await self._responses.chain(who, previous)
        except UnknownResponse as error:
            raise NoPrevious("previous_response_id", error.message) from None
        except BadRequest as error:
            raise BadParameter("previous_response_id", error.message) from None
        found: list[Item] = []
        size = 0
        for kept in chain:
            body = msgspec.json.decode(kept.body)
            if _is_pending(kept):
                body = await self._looked_up(who, Found(kept, await self._row(who, kept)))
                if body["status"] == shapes.PENDING:
                    raise BadParameter("previous_response_id", f"response {kept.id!r} has no end yet")
            found += [*msgspec.json.decode(kept.input), *body["output"]]
            size += len(kept.input) + len(msgspec.json.encode(body["output"]))
        if size > MAX_REQUEST_BYTES:
            raise TooLarge(f"response {previous!r} ends a dialogue of {size} bytes; at most {MAX_REQUEST_BYTES} go on")
        return found, chain

    # -- agents ----------------------------------------------------------------------------------------------------

    async def _of_agent(self, request: web.Request, asked: _Asked, ask: Ask) -> web.StreamResponse:
        """Stored before the request is taken in, so that whatever happens then can be found under the id."""
        if asked.request.is_kept:
            await self._responses.keep(asked.kept, durable=False, only_new=True)
        try:
            return await (self._stream_agent if ask.request.stream else self._ask_agent)(request, asked, ask)
        except EdgedError:
            if asked.request.is_kept and await self._row(asked.who, asked.kept) is None:
                await self._responses.forget(asked.who, asked.kept.id)  # it was refused
            raise

    async def _ask_agent(self, request: web.Request, asked: _Asked, ask: Ask) -> web.Response:
        reply = msgspec.json.decode(await self._requests.answer(ask, gone=gone(request)))
        response = await self._finished(asked, shapes.of_agent(asked.response, reply))
        if reply["status"] != Status.DONE:
            return answers.of_failed(reply)
        return answers.document(response)

    async def _stream_agent(self, request: web.Request, asked: _Asked, ask: Ask) -> web.StreamResponse:
        events, steady = Events(asked.response), Steady()
        stream = self._stream(request, events)

        def on_delta(offset: int, text: str) -> None:
            if more := steady.feed(offset, text):
                stream.add((more, ()))

        async def work() -> tuple[dict[str, JSON], Response]:
            reply = msgspec.json.decode(await self._requests.answer(ask, on_delta, gone=gone(request)))
            return reply, await self._finished(asked, shapes.of_agent(asked.response, reply))

        def ended(made: tuple[dict[str, JSON], Response]) -> bytes | web.Response:
            reply, response = made
            if reply["status"] != Status.DONE:
                return events.failed(response) if stream.begun else answers.of_failed(reply)
            rest = steady.rest(reply["output"])
            if rest is None:
                problem = f"the answer began anew and is another one now; GET /v1/responses/{asked.kept.id} has it"
                return events.failed(shapes.failed(asked.response, Internal.code, problem))
            return (events.written([(rest, ())]) if rest else b"") + events.end(response)

        return await stream.run(work(), ended=ended, failed=_failing(events, asked.response))

    # -- plain models ----------------------------------------------------------------------------------------------

    async def _of_model(self, request: web.Request, asked: _Asked) -> web.StreamResponse:
        wanted = requests.model_ask(asked.request, asked.messages)
        events = Events(asked.response, logprobs=asked.logprobs)
        stream = self._stream(request, events) if asked.request.body.stream else None

        def on_call(pieces: tuple[CallPiece, ...]) -> None:
            for piece in pieces:
                assert stream is not None
                stream.add(piece)

        async def body() -> bytes:
            if stream is None:
                answer = await self._models.complete(asked.who, wanted)
            else:
                add = stream.add
                thoughts = (lambda text: add(Thought(text))) if asked.request.reasoning else None
                answer = await self._models.complete(asked.who, wanted, lambda *words: add(words), on_call, thoughts)
            shows = asked.request.reasoning
            return msgspec.json.encode(
                shapes.of_model(asked.response, answer, logprobs=asked.logprobs, reasoning=shows)
            )

        work = self._responses.carry(asked.kept, body(), gone(request)) if asked.request.is_kept else body()
        if stream is None:
            return web.Response(body=await work, content_type="application/json")
        return await stream.run(
            work,
            ended=lambda made: events.end(msgspec.json.decode(made)),
            failed=_failing(events, asked.response),
        )

    def _stream(self, request: web.Request, events: Events) -> EventStream[Piece]:
        """It begins late: OpenAI's clients ask again by the status of a refusal, which may come after a long load."""
        longest = self._heartbeat_s
        return EventStream(request, events.written, start_s=longest, heartbeat_s=longest)

    # -- responses that are there ----------------------------------------------------------------------------------

    async def get(self, request: web.Request) -> web.Response:
        """GET /v1/responses/{id}."""
        if request.query.get("stream", "").lower() in ("true", "1"):
            raise BadParameter("stream", "a response that is there is given whole: leave it out")
        found = await self._found(request)
        return answers.document(await self._looked_up(caller(request), found))

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /v1/responses/{id}/cancel. One that has its end keeps it."""
        who, found = caller(request), await self._found(request)
        row = await self._responses.cancel(who, found)
        if row is None and found.running:
            body = shapes.cancelled(msgspec.json.decode(found.kept.body))
            await self._responses.keep(structs.replace(found.kept, body=msgspec.json.encode(body)), durable=True)
            return answers.document(body)
        return answers.document(await self._looked_up(who, structs.replace(found, row=row)))

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /v1/responses/{id}. What is under way ends first."""
        found = await self._found(request)
        await self._responses.delete(caller(request), found)
        return answers.document({"id": found.kept.id, "object": "response", "deleted": True})

    async def input_items(self, request: web.Request) -> web.Response:
        """GET /v1/responses/{id}/input_items: what was sent for it, the newest first unless `order=asc`."""
        found = await self._found(request)
        listed: list[Item] = msgspec.json.decode(found.kept.input)
        if _one_of(request, "order", ("desc", "asc")) == "desc":
            listed.reverse()
        ids = [item["id"] for item in listed]
        if (after := request.query.get("after")) is not None:
            if after not in ids:
                raise BadParameter("after", f"{after!r} is no item of this response")
            listed = listed[ids.index(after) + 1 :]
        page = listed[: _limit(request)]
        return answers.document(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": len(page) < len(listed),
            }
        )

    async def _found(self, request: web.Request) -> Found:
        """The response that the path names. Raises NotFound."""
        try:
            return await self._responses.find(caller(request), request.match_info["id"], unfinished=_is_pending)
        except UnknownResponse as error:
            raise NotFound(error.message) from None

    async def _row(self, who: Caller, kept: Kept) -> Row | None:
        return (await self._responses.find(who, kept.id, unfinished=lambda _: True)).row

    async def _looked_up(self, who: Caller, found: Found) -> Response:
        """The response as it is now. What an agent has answered while nobody waited becomes part of it."""
        body: Response = msgspec.json.decode(found.kept.body)
        if found.running or not _is_pending(found.kept):
            return body
        if found.row is None:
            return shapes.failed(body, Internal.code, "the request behind this response is not known any more")
        if found.row.reply is None:
            return body
        body = shapes.of_agent(body, msgspec.json.decode(found.row.reply))
        await self._responses.keep(structs.replace(found.kept, body=msgspec.json.encode(body)), durable=False)
        return body

    async def _finished(self, asked: _Asked, response: Response) -> Response:
        """The same, kept where it is to be."""
        if asked.request.is_kept:
            kept = structs.replace(asked.kept, body=msgspec.json.encode(response))
            await self._responses.keep(kept, durable=False)  # the reply is on the medium already
        return response


def _is_pending(kept: Kept) -> bool:
    """Whether an agent has not answered yet, as far as the stored response knows."""
    return bool(msgspec.json.decode(kept.body)["status"] == shapes.PENDING)


def _id(who: Caller, key: str | None) -> str:
    """Of a response. The same Idempotency-Key of the same client is the same response."""
    if key is None:
        return requests.new_id("resp")
    return f"resp_{hashlib.sha256(f'{who.client}/{key}'.encode()).hexdigest()[:32]}"


def _failing(events: Events, response: Response) -> Callable[[EdgedError], bytes]:
    """The last events where an error comes after the first."""
    return lambda error: events.failed(shapes.failure(response, fault(error), answers.code_of(error)))


@contextmanager
def _named(wanted: ResponseRequest) -> Iterator[None]:
    """Names the parameter whose schema cannot be kept."""
    try:
        yield
    except Inexpressible as error:
        names = [tool.name for tool in wanted.tools]
        param = "text.format" if error.tool is None else f"tools[{names.index(error.tool)}].parameters"
        raise BadParameter(param, f"this schema cannot be kept: {error.reason}") from None


def _limit(request: web.Request) -> int:
    given, (low, high) = request.query.get("limit", str(PAGE)), LISTED
    if not given.isascii() or not given.isdigit() or not low <= int(given) <= high:
        raise BadParameter("limit", f"{low} to {high}")
    return int(given)


def _one_of(request: web.Request, name: str, allowed: Sequence[str]) -> str:
    given = request.query.get(name, allowed[0])
    if given not in allowed:
        raise BadParameter(name, f"{given!r}; allowed are {', '.join(allowed)}")
    return given
