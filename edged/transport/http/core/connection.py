"""One connection of a client, on top of aiohttp's: who is at the other end, whether it is still there, and whether it
gets on with what it sends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
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
    """The other end: where it comes from (a client, or an address), and the caller where that is known already; None:
    an API key in each request says it. ask: to be awaited for all that the kernel does not say of the caller; None: it
    says all. is_tcp: a browser may be led there by a name."""

    origin: str
    caller: Caller | None = None
    ask: Callable[[], Awaitable[Peer]] | None = None
    is_tcp: bool = False


NOBODY = Peer("nobody", is_tcp=True)


class Pool:
    """Connections that share a bound. most: how many there may be."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._load = ClientLoad()
        self._members: dict[Connection, str] = {}  # with whose they are, the oldest first

    def __len__(self) -> int:
        return len(self._members)

    def add(self, connection: Connection, whose: str) -> int:
        """One more; how many these have now."""
        self._members[connection] = whose
        return self._load.add(whose)

    def remove(self, connection: Connection) -> None:
        """It is closed, or in another pool now."""
        if (whose := self._members.pop(connection, None)) is not None:
            self._load.remove(whose)

    def whose(self, connection: Connection) -> str | None:
        """Whose a connection is; None: it is not in this pool."""
        return self._members.get(connection)

    def oldest_of_the_largest(self) -> Connection:
        """The oldest connection of the client, or address, that has the most; there is one."""
        largest = self._load.largest
        return next(each for each, whose in self._members.items() if whose == largest)


class Connections:
    """All of them, in pools that take nothing from one another: of the Unix sockets' clients, of clients that showed a
    key on TCP, and of strangers, which are all others.

    closing: the daemon ends them itself, so nobody went away.
    """

    def __init__(self, limits: Limits, surfaces: Surfaces) -> None:
        self.limits = limits
        self.surfaces = surfaces
        self.closing = False
        self.answering: set[asyncio.Task[Any]] = set()
        self._unix, self._tcp = Pool(limits.unix_connections), Pool(limits.tcp_connections)
        self._strangers = Pool(limits.strangers)
        self._open: set[Connection] = set()
        self._none = asyncio.Event()
        self._none.set()

    def add(self, connection: Connection, peer: Peer) -> bool:
        """A new one. Returns whether it may stay."""
        self._open.add(connection)
        self._none.clear()
        if peer.caller is not None and (peer.caller.admitted or peer.ask is not None):
            return self._join(self._unix, connection, peer.origin)
        self._strangers.add(connection, peer.origin)
        if len(self._strangers) > self._strangers.most:
            goes = self._strangers.oldest_of_the_largest()
            self._strangers.remove(goes)  # now: it is closed a moment later, and more may come until then
            goes.cut()
        return True

    def known(self, connection: Connection, client: str) -> None:
        """It showed the key of this client."""
        if self._tcp.whose(connection) != client:
            self.forget(connection)
            if not self._join(self._tcp, connection, client):
                connection.crowded = True

    def remove(self, connection: Connection) -> None:
        """It is closed."""
        self.forget(connection)
        self._open.discard(connection)
        if not self._open:
            self._none.set()

    def forget(self, connection: Connection) -> None:
        """It counts for nobody any more."""
        for pool in (self._unix, self._tcp, self._strangers):
            pool.remove(connection)

    def _join(self, pool: Pool, connection: Connection, whose: str) -> bool:
        mine = pool.add(connection, whose)
        connection.crowded = mine > self.limits.connections
        return mine <= 2 * self.limits.connections and len(pool) <= pool.most

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
    crowded: the client has too many; this one is answered `busy`, and ends.
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
        self._wire = cast(asyncio.Transport, transport)
        try:
            self.peer = self._identify(transport.get_extra_info("socket"))
        except OSError:  # it left before it was looked at
            self.peer = NOBODY
        may_stay = self._all.add(self, self.peer)
        super().connection_made(transport)
        if may_stay:
            self._expect_head()
        else:
            self.cut()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if data and not self._busy and self._head is None:
            self._expect_head()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio.Protocol."""
        self._forget_head()
        self.leave()
        self._all.remove(self)
        super().connection_lost(exc)  # cancels what is being answered

    def is_of(self, client: str) -> None:
        """It showed the key of this client. `crowded` says whether that has too many."""
        self._all.known(self, client)

    async def identified(self) -> None:
        """Returns when all is known of the peer. Before a request is looked at; one at a time is."""
        if self.peer.ask is not None:
            self.peer = await self.peer.ask()

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
        """What aiohttp has to say of failures between two requests. A broken body has had its answer: in the log it
        would be a way to fill that."""
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
