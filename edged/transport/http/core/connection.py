"""One connection of a client, on top of aiohttp's: who is at the other end, whether it is still there, and whether it
gets on with what it sends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

from aiohttp import web
from msgspec import Struct

from edged.errors import EdgedError, Internal
from edged.transport.http.core.errors import BUG, Malformed
from edged.transport.http.core.limits import ClientLoad, Limits
from edged.transport.http.core.surface import Surfaces
from edged.types import Caller

log = logging.getLogger("edged.http")


class Peer(Struct, frozen=True):
    """The other end: whose connections are counted together, and the caller where the kernel knows it; None: an API key
    in each request says it."""

    origin: str
    caller: Caller | None = None


NOBODY = Peer("nobody")


class Connections:
    """All of them. closing: the daemon ends them itself, so nobody went away."""

    def __init__(self, limits: Limits, surfaces: Surfaces) -> None:
        self.limits = limits
        self.surfaces = surfaces
        self.closing = False
        self.answering: set[asyncio.Task[Any]] = set()
        self._open: set[Connection] = set()
        self._tally = ClientLoad()
        self._none = asyncio.Event()
        self._none.set()

    def add(self, connection: Connection, origin: str) -> int:
        """One more; how many its origin has now."""
        self._open.add(connection)
        self._none.clear()
        return self._tally.add(origin)

    def remove(self, connection: Connection, origin: str) -> None:
        """It is closed."""
        self._tally.remove(origin)
        self._open.discard(connection)
        if not self._open:
            self._none.set()

    def __len__(self) -> int:
        return len(self._open)

    async def end(self, patience_s: float) -> None:
        """Wait for what is closing; what a slow reader keeps open is cut."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._none.wait()
        for connection in list(self._open):
            connection.cut()
        await self._none.wait()
        if self.answering:  # cancelled by now
            await asyncio.wait(self.answering, timeout=patience_s)


class Connection(web.RequestHandler):
    """aiohttp's protocol with time limits and an end that can be seen.

    gone: set when the client went away, before its requests are cancelled.
    caller: of the request being answered; one at a time is.
    crowded: the client has too many; this one is answered `busy`.
    """

    def __init__(
        self, server: web.Server, connections: Connections, identify: Callable[[socket.socket], Peer], **options: Any
    ) -> None:
        # no access log of aiohttp's: the application writes its own line, at debug
        options |= {"access_log": None, "lingering_time": connections.limits.linger_s}
        super().__init__(server, keepalive_timeout=connections.limits.idle_s, **options)
        self.gone = asyncio.Event()
        self.caller: Caller | None = None
        self.crowded = False
        self.peer = NOBODY
        self._all = connections
        self._identify = identify
        self._busy = False
        self._head: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None  # aiohttp forgets its own before it is closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        limits, self._wire = self._all.limits, cast(asyncio.Transport, transport)
        try:
            self.peer = self._identify(transport.get_extra_info("socket"))
        except OSError:  # it left before it was looked at
            self.peer = NOBODY
        mine = self._all.add(self, self.peer.origin)
        self.crowded = mine > limits.connections
        super().connection_made(transport)
        if mine > 2 * limits.connections or len(self._all) > limits.all_connections:
            self.cut()
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if data and not self._busy and self._head is None:
            self._expect_head()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio.Protocol."""
        self._forget_head()
        self.leave()
        self._all.remove(self, self.peer.origin)
        super().connection_lost(exc)  # cancels what is being answered

    def leave(self) -> None:
        """The client is not there any more. Where the daemon ends the connection, its requests go on another time."""
        if not self._all.closing:
            self.gone.set()

    def cut(self) -> None:
        """End it at once, whatever it holds."""
        if self._wire is not None:
            self._wire.abort()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Around the answer to a request, whose head is here."""
        task = asyncio.current_task()
        assert task is not None  # aiohttp makes one for each request
        self.caller = None
        self._busy = True
        self._forget_head()
        self._all.answering.add(task)
        try:
            yield
        finally:
            self._all.answering.discard(task)
            self._busy = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is not HTTP, and to a bug outside of all handlers. aiohttp's own would log the traceback
        of every port scan."""
        if isinstance(exc, ConnectionError):
            raise exc
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: it cannot be replaced")
        if status < 500:
            said = (message or "").strip().partition("\n")[0].rstrip(":")
            error: EdgedError = Malformed(f"this is not HTTP as it should be: {said or 'it cannot be read'}")
        else:
            log.error("an answer failed through a bug", exc_info=exc)
            error = Internal(BUG)
        response = self._all.surfaces.of(request.path).error(request, error)
        response.force_close()
        response.headers["Server"] = "edged"  # what is sent from here does not pass the application's hook
        return response

    def log_exception(self, *args: Any, **more: Any) -> None:
        """What aiohttp has to say of failures between two requests. A broken body was told to who sent it: others could
        fill the log with it."""
        if not isinstance(more.get("exc_info"), web.RequestPayloadError):
            log.error(*args, **more)

    def _expect_head(self) -> None:
        self._head = asyncio.get_running_loop().call_later(self._all.limits.head_s, self.cut)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def connection(request: web.BaseRequest) -> Connection:
    """The connection a request came on."""
    return cast(Connection, request.protocol)


def caller(request: web.BaseRequest) -> Caller:
    """Who asks."""
    known = connection(request).caller
    assert known is not None  # set before any handler runs
    return known


def gone(request: web.BaseRequest) -> asyncio.Event:
    """Set when the client of a request went away, before its handler is cancelled. Not when the daemon stops."""
    return connection(request).gone
