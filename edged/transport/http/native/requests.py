"""Requests to agents and what became of them (CONTRACT section 6): /v1/agents/{agent}/requests, /v1/requests/{id}."""

from __future__ import annotations

import msgspec
from aiohttp import web
from msgspec import Struct

from edged import wire
from edged.api.requests import Requests
from edged.errors import BadRequest
from edged.store.lookup import Row
from edged.transport.http.core import stream
from edged.transport.http.core.connection import caller, gone
from edged.transport.http.core.errors import STATUS_OF, NotFound, UnsupportedMedia, retry_after
from edged.transport.http.core.headers import idempotency_key
from edged.transport.http.core.stream import EventStream, event
from edged.types import Ask, Fault, Format, Request

FORM = "application/x-www-form-urlencoded"  # what `curl -d` says of everything
EVENTS = "text/event-stream"

Delta = tuple[int, str]  # offset in the answer, in characters, and text


class _Outcome(Struct):
    """What of a reply decides the status."""

    error: Fault | None = None


REQUEST = web.RequestKey("edged.request", tuple[str | None, Format])  # id and format of what is asked: errors have them


class Agents:
    """The handlers."""

    def __init__(self, requests: Requests, *, heartbeat_s: float) -> None:
        self._requests = requests
        self._heartbeat_s = heartbeat_s

    def routes(self) -> list[web.RouteDef]:
        """For the application."""
        named = "/v1/requests/{id:[^/]+}"  # an id may hold anything; a `/` in it comes percent-encoded
        return [
            web.post("/v1/agents/{agent}/requests", self.ask),
            web.get(named, self.get),
            web.delete(named, self.cancel),
        ]

    async def ask(self, http: web.Request) -> web.StreamResponse:
        """A request: its reply, a stream that ends with it, or 202 and where it will be."""
        payload = await http.read()
        content_type = _content_type(http, payload)
        http[REQUEST] = None, wire.FORMATS.get(content_type or "", Format.JSON)
        request, fmt = wire.decode_request(payload, agent=http.match_info["agent"], content_type=content_type)
        http[REQUEST] = request.id, fmt
        request = _with_headers(request, http)
        http[REQUEST] = request.id, fmt
        ask = Ask(request=request, caller=caller(http))
        if request.stream:
            return await self._stream(http, ask)
        if _prefers_async(http):
            return await self._submit(http, ask, fmt)
        return _reply(await self._requests.answer(ask, gone=gone(http)), fmt)

    async def get(self, http: web.Request) -> web.Response:
        """The reply of a request by id or rid, or how far it is."""
        try:
            row = await self._requests.find(caller(http), http.match_info["id"])
        except BadRequest as error:
            raise NotFound(error.message) from None
        return await self._view(row, _wanted(http))

    async def cancel(self, http: web.Request) -> web.Response:
        """End a request. 200 with its reply: it was cancelled, or had come to its end before."""
        try:
            row = await self._requests.cancel(caller(http), http.match_info["id"])
        except BadRequest as error:
            raise NotFound(error.message) from None
        if row.reply is None:
            return await self._view(row, _wanted(http))
        return _response(row.reply, _wanted(http), 200)

    async def _submit(self, http: web.Request, ask: Ask, fmt: Format) -> web.Response:
        accepted = await self._requests.submit(ask)
        if accepted.reply is not None:
            return _reply(accepted.reply, fmt)
        response = await self._view(await self._requests.find(ask.caller, accepted.rid), fmt)
        if response.status == 202:
            response.headers["Location"] = f"/v1/requests/{accepted.rid}"
            response.headers["Preference-Applied"] = "respond-async"
        return response

    async def _view(self, row: Row, fmt: Format) -> web.Response:
        if row.reply is not None:
            return _reply(row.reply, fmt)
        return _response(msgspec.json.encode(await self._requests.view(row)), fmt, 202)

    async def _stream(self, http: web.Request, ask: Ask) -> web.StreamResponse:
        """Events `delta` {offset, text}, and at the end `reply`. A refusal that comes before them is raised."""
        start_s, id = stream.START_S, ask.request.id
        events = EventStream[Delta](http, _deltas, start_s=start_s, heartbeat_s=self._heartbeat_s)

        def watch(offset: int, text: str) -> None:
            events.offer((offset, text), len(text))

        return await events.run(
            self._requests.answer(ask, watch, gone=gone(http)),
            ended=lambda reply: event(reply, "reply"),
            failed=lambda error: event(wire.refusal(error, id=id), "reply"),
        )


def _deltas(pieces: list[Delta]) -> bytes:
    documents = ({"offset": offset, "text": text} for offset, text in pieces)
    return b"".join(event(msgspec.json.encode(document), "delta") for document in documents)


def _content_type(http: web.Request, payload: bytes) -> str | None:
    """The content type without its parameters; None where nobody said one. Raises UnsupportedMedia."""
    header = http.headers.get("Content-Type")
    if header is None:
        return None
    bare = header.partition(";")[0].strip().lower()
    if bare == FORM and payload.lstrip()[:1] == b"{":
        return wire.CONTENT_TYPES[Format.JSON]
    if bare not in wire.FORMATS:
        raise UnsupportedMedia(f"content type {bare!r}: allowed are {', '.join(wire.CONTENT_TYPES.values())}")
    return bare


def _with_headers(request: Request, http: web.Request) -> Request:
    """The request with what headers say of it. Raises BadRequest."""
    if request.reply_to is not None:
        raise BadRequest("reply_to: is for MQTT 3.1.1; here the reply comes back the way the request came")
    if request.id is None and (key := idempotency_key(http.headers)) is not None:
        request = msgspec.structs.replace(request, id=key)
    if EVENTS in (accepted := _accepted(http)) and not accepted & {"application/json", "*/*"}:
        request = msgspec.structs.replace(request, stream=True)
    if request.stream and _prefers_async(http):
        raise BadRequest("a stream and `Prefer: respond-async` exclude each other: ask for one of them")
    return request


def _prefers_async(http: web.Request) -> bool:
    """Whether `Prefer` (RFC 7240) says respond-async."""
    preferences = ",".join(http.headers.getall("Prefer", ())).split(",")
    return any(each.partition(";")[0].strip().lower() == "respond-async" for each in preferences)


def _wanted(http: web.Request) -> Format:
    """The format of a reply to a request without a body."""
    return Format.MSGPACK if any(wire.FORMATS.get(each) is Format.MSGPACK for each in _accepted(http)) else Format.JSON


def _accepted(http: web.Request) -> set[str]:
    return {each.partition(";")[0].strip().lower() for each in http.headers.get("Accept", "").split(",")}


def _reply(body: bytes, fmt: Format) -> web.Response:
    """A reply with the status its error has."""
    error = msgspec.json.decode(body, type=_Outcome).error
    response = _response(body, fmt, 200 if error is None else STATUS_OF[error.code])
    if error is not None and (after := retry_after(error)) is not None:
        response.headers["Retry-After"] = after
    return response


def _response(body: bytes, fmt: Format, status: int) -> web.Response:
    headers = {"Content-Type": wire.content_type(fmt)}
    return web.Response(body=wire.encode_reply(body, fmt), status=status, headers=headers)
