"""The application: what is served, and around every handler who asks, how much at once, and errors as responses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import MutableMapping

from aiohttp import web, web_app
from aiohttp.typedefs import Handler

from edged.access.gate import Gate
from edged.errors import Busy, EdgedError, Forbidden, Internal, TooLarge
from edged.transport.http.core import headers, ignored
from edged.transport.http.core.browsers import Browsers
from edged.transport.http.core.connection import Connection, connection
from edged.transport.http.core.errors import (
    BUG,
    ERROR,
    HttpError,
    Malformed,
    MethodNotAllowed,
    NotFound,
    TooSlow,
    Unauthorized,
)
from edged.transport.http.core.keys import Keys
from edged.transport.http.core.limits import BUSY_S, ClientLoad, Limits
from edged.transport.http.core.surface import Surfaces
from edged.types import Caller
from edged.wire import MAX_REQUEST_BYTES

log = logging.getLogger("edged.http")


def application(
    surfaces: Surfaces, *, keys: Keys | None, gate: Gate, browsers: Browsers, limits: Limits
) -> web.Application:
    """The surfaces behind the guard. keys: of clients that the kernel does not name."""
    guard = _Guard(surfaces, keys, gate, browsers, limits)

    @web.middleware
    async def outermost(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await guard.serve(request, handler)

    made = web.Application(middlewares=[outermost], client_max_size=MAX_REQUEST_BYTES)
    made.add_routes(surfaces.routes())

    async def common_headers(request: web.Request, response: web.StreamResponse) -> None:
        _common_headers(response.headers)
        if ignored.NAMED in request:
            response.headers[headers.IGNORED] = request[ignored.NAMED]
        response.headers.update(browsers.cors_headers(request.headers))

    made.on_response_prepare.append(common_headers)
    return made


def forget() -> None:
    """Let go of applications that were served. aiohttp keeps the handlers it has put its middlewares around in a cache
    of the whole process, 1024 of them: with each a daemon that a reload replaced long ago."""
    cached = getattr(web_app, "_cached_build_middleware", None)
    if cached is not None:
        cached.cache_clear()


def _common_headers(headers: MutableMapping[str, str]) -> None:
    headers["Server"] = "edged"  # the versions of what it is made of are nobody's business
    headers.setdefault("Cache-Control", "no-store")  # how far a request is changes with every look


class _Guard:
    """Around every handler."""

    def __init__(self, surfaces: Surfaces, keys: Keys | None, gate: Gate, browsers: Browsers, limits: Limits) -> None:
        self._surfaces = surfaces
        self._keys = keys
        self._gate = gate
        self._browsers = browsers
        self._limits = limits
        self._in_flight = ClientLoad()

    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The response to a request, whatever happens on the way."""
        mine, began = connection(request), time.monotonic()
        with mine.answering():
            await mine.identified()
            response = await self._respond(mine, request, handler)
        if mine.caller is not None and ERROR in response:
            self._gate.unread(mine.caller, response[ERROR])
        if mine.crowded or (not request.content.is_eof() and not response.prepared):
            response.force_close()  # what is left of a body that nobody wants would come before the next request
        if log.isEnabledFor(logging.DEBUG):
            who = mine.caller.client if mine.caller else "somebody"
            took_ms = 1000 * (time.monotonic() - began)
            path = self._surfaces.shown(request)
            log.debug("%s %s %s %d %.1f ms", who, request.method, path, response.status, took_ms)
        return response

    async def _respond(self, mine: Connection, request: web.Request, handler: Handler) -> web.StreamResponse:
        error: EdgedError
        try:
            if (answer := self._of_browser(mine, request)) is not None:
                return answer
            mine.caller = self._caller(mine, request)
            self._admit(mine, request)
            if request.method != "POST":  # looks, and ends what is in flight
                if request.method == "DELETE":  # some say in a body what
                    await self._read(request)
                return await handler(request)
            with self._in_flight.one_more(mine.caller.client, self._limits.in_flight):
                await self._read(request)
                return await handler(request)
        except EdgedError as raised:
            error = raised
        except web.HTTPException as response:
            if response.status < 400:
                raise
            if isinstance(response, web.HTTPMethodNotAllowed) and request.method == "OPTIONS":
                return web.Response(status=204, headers={"Allow": _allowed(response)})
            error = _of_aiohttp(response, request)
        except Exception as bug:
            if isinstance(bug, ConnectionError) and (request.transport is None or request.transport.is_closing()):
                raise  # the client has left
            log.exception("%s %s failed through a bug", request.method, self._surfaces.shown(request))
            error = Internal(BUG)
        return self._surfaces.of(request.path).error(request, error)

    def _of_browser(self, mine: Connection, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks whether a page may ask; None: it is something else. Raises Forbidden."""
        try:
            self._browsers.check(request.headers, is_tcp=mine.peer.is_tcp)
        except Forbidden as error:
            raise self._gate.stranger(mine.peer.origin, error) from None
        allowed = self._browsers.preflight(request.method, request.headers)
        return None if allowed is None else web.Response(status=204, headers=allowed)

    def _caller(self, mine: Connection, request: web.Request) -> Caller:
        """Who asks: as the kernel says, else by the key. SDKs send a key always; on a Unix socket it means nothing."""
        if mine.peer.caller is not None:
            return mine.peer.caller
        in_path = self._surfaces.key_in(request.path)
        if self._keys is not None and (name := self._keys.name_of(request.headers, in_path)) is not None:
            caller = self._gate.policy.key(name)
            mine.is_of(caller.client)
            return caller
        if self._surfaces.is_open(request.path):
            return Caller(mine.peer.origin, "http", frozenset(), admitted=False)
        needed = "name a key that is in [http] api_keys_file, as `Authorization: Bearer KEY` or `X-Api-Key`"
        raise self._gate.stranger(mine.peer.origin, Unauthorized(needed))

    def _admit(self, mine: Connection, request: web.Request) -> None:
        """Raises what keeps a known caller out: Busy, Forbidden."""
        assert mine.caller is not None
        if mine.crowded:
            most = self._limits.connections
            raise Busy(f"too many connections are open; {mine.caller.client} may have {most}", retry_after_s=BUSY_S)
        if not self._surfaces.is_open(request.path):
            self._gate.enter(mine.caller, "join the group of this socket")

    async def _read(self, request: web.Request) -> None:
        """Take the body in, for handlers to find. Raises TooLarge, TooSlow, Malformed."""
        if request.match_info.http_exception is not None:
            return  # nobody will look at it
        if (request.content_length or 0) > MAX_REQUEST_BYTES:
            raise TooLarge(f"the request has {request.content_length} bytes; at most {MAX_REQUEST_BYTES} are taken")
        try:
            async with asyncio.timeout(self._limits.body_s):
                await request.read()
        except TimeoutError:
            raise TooSlow(f"the body did not come within {self._limits.body_s:g} s") from None
        except web.RequestPayloadError as error:
            said = str(error).rpartition("\n")[2].strip()  # aiohttp puts its own status in front
            raise Malformed(f"the body is not as its headers say: {said or 'it cannot be read'}") from None


def _of_aiohttp(raised: web.HTTPException, request: web.Request) -> EdgedError:
    """An error of aiohttp's as one of ours."""
    if isinstance(raised, web.HTTPMethodNotAllowed):
        allowed = _allowed(raised)
        return MethodNotAllowed(
            f"{request.path} does not take {request.method}; it takes {allowed}", {"Allow": allowed}
        )
    if isinstance(raised, web.HTTPNotFound):
        return NotFound(f"there is no {request.path}; there are {', '.join(_served(request.app))}")
    if isinstance(raised, web.HTTPRequestEntityTooLarge):
        return TooLarge(f"the request has more than {MAX_REQUEST_BYTES} bytes")
    return HttpError(f"{raised.reason} ({raised.status})")


def _allowed(raised: web.HTTPMethodNotAllowed) -> str:
    return ", ".join(sorted({*raised.allowed_methods, "OPTIONS"}))


def _served(app: web.Application) -> list[str]:
    """Every method and path, as the contract writes them."""
    pairs = {(route.resource.canonical, route.method) for route in app.router.routes() if route.resource is not None}
    return [f"{method} {path}" for path, method in sorted(pairs) if method != "HEAD"]
