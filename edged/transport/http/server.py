"""The HTTP listeners: Unix sockets, whose peers the kernel names, and TCP ports, whose clients show a key.

This module is part of every daemon's start; what needs aiohttp is imported when a server starts.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edged.access.gate import Gate
from edged.errors import ConfigError
from edged.transport import sockets
from edged.transport.base import Backend, Sockets, Transport
from edged.transport.http.core import keys
from edged.transport.http.core.browsers import Browsers
from edged.transport.http.core.limits import Limits
from edged.types import JSON, Caller

if TYPE_CHECKING:
    from aiohttp import web

    from edged.transport.http.core.connection import Connection, Connections, Peer

log = logging.getLogger("edged.http")

Listener = Path | tuple[str, int]  # a Unix socket, or host and port
CLOSE_S = 0.5  # each of three steps of a stop: answers may end, connections may end, what they hold may be sent


class HttpTransport(Transport):
    """The listeners and what they serve.

    Args:
        mode, group: of the Unix sockets; group None: the process's own.
        api_keys_file: as in the configuration; needed where one listens on TCP. Read here: a reload with keys that are
            wrong is refused before anything has stopped.
        hosts, origins, strict: as in the configuration.

    Raises:
        ConfigError: the keys are not as they should be, or a TCP listener has none.

    Sockets that it inherits are used in the place of its own, and left there at a stop.
    """

    name = "http"

    def __init__(
        self,
        listeners: Sequence[Listener],
        *,
        mode: int,
        group: str | None,
        api_keys_file: str | None,
        limits: Limits | None = None,
        hosts: Collection[str] = (),
        origins: Collection[str] = (),
        strict: bool = False,
    ) -> None:
        self.addresses = self._listeners = tuple(listeners)
        self._mode = mode
        self._gid = sockets.group_id(group)
        self._keys = keys.load(api_keys_file) if api_keys_file else None
        self._gate: Gate
        named = [listener[0] for listener in self._listeners if isinstance(listener, tuple)]
        self._browsers = Browsers([*hosts, *named, *_own_names()], origins)
        self._inherited: Sockets = {}
        self._limits = limits or Limits()
        self._strict = strict
        for listener in self._listeners:
            if isinstance(listener, tuple) and self._keys is None:
                raise ConfigError(_name(listener), "", "is open to the network: name http.api_keys_file")
        self._connections: Connections | None = None
        self._runner: web.AppRunner | None = None
        self._servers: list[asyncio.Server] = []
        self._made: list[Path] = []

    @property
    def bound(self) -> list[str | tuple[str, int]]:
        """Where it listens: paths, and (host, port) as they came to be."""
        names = [each.getsockname() for server in self._servers for each in server.sockets]
        return [name if isinstance(name, str) else name[:2] for name in names]

    def status(self) -> dict[str, JSON]:
        """{listeners: [path or host:port]}."""
        return {"listeners": [name if isinstance(name, str) else f"{name[0]}:{name[1]}" for name in self.bound]}

    def inherit(self, sockets: Sockets) -> None:
        """See Transport."""
        self._inherited = sockets

    async def start(self, backend: Backend) -> None:
        """See Transport. ConfigError where a socket cannot be made, or another process answers on it."""
        from edged.transport.http.core.application import application
        from edged.transport.http.core.connection import Connections
        from edged.transport.http.core.surface import Board, Surfaces
        from edged.transport.http.surfaces import SURFACES

        self._gate = backend.gate
        board = Board(
            api=backend.api,
            ready=backend.ready,
            metrics=backend.metrics,
            heartbeat_s=self._limits.heartbeat_s,
            strict=self._strict,
            ignored=backend.ignored,
        )
        surfaces = Surfaces(make(board) for make in SURFACES)
        app = application(surfaces, keys=self._keys, gate=self._gate, browsers=self._browsers, limits=self._limits)
        self._connections = Connections(self._limits, surfaces)
        self._runner = await self._run(app)
        try:
            for listener in self._listeners:
                await self._listen(listener)
        except BaseException:
            await self.stop()
            raise

    def stop_taking(self) -> None:
        """See Transport. Clients that connect to an inherited socket wait in its queue."""
        for server in self._servers:
            server.close()

    async def stop(self) -> None:
        """See Transport. Removes the sockets that were made here."""
        self.stop_taking()
        if self._connections is not None:
            self._connections.closing = True
        if self._runner is not None:
            from edged.transport.http.core.application import forget

            await self._runner.cleanup()
            forget()
        if self._connections is not None:
            await self._connections.end(CLOSE_S)
        for path in self._made:
            path.unlink(missing_ok=True)
        self._servers, self._made, self._runner, self._connections = [], [], None, None

    async def _run(self, app: web.Application) -> web.AppRunner:
        from aiohttp import web

        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=CLOSE_S)
        await runner.setup()
        return runner

    async def _listen(self, listener: Listener) -> None:
        # as many may wait as the kernel allows: fewer would also shrink the queue of a socket that was handed over
        create = functools.partial(asyncio.get_running_loop().create_server, backlog=sockets.BACKLOG)
        given = [inherited.dup() for inherited in self._inherited.get(listener, ())]  # its queue stays at a stop
        try:
            if isinstance(listener, tuple):
                factory = self._factory(_tcp_peer)
                made = [] if given else [await create(factory, *listener)]
            else:
                # of a socket that was handed over its unit says who may connect
                gid = sockets.gid_of(listener, self._gid) if given else self._gid
                factory = self._factory(functools.partial(self._unix_peer, gid))
                if not given:
                    given = [await asyncio.to_thread(sockets.listen, listener, self._mode, gid)]
                    self._made.append(listener)
                made = []
            self._servers += made
            for each in given:
                self._servers.append(await create(factory, sock=each))
        except OSError as error:
            raise ConfigError(_name(listener), "", f"cannot be listened on: {error.strerror or error}") from None

    def _factory(self, identify: Callable[[socket.socket], Peer]) -> Callable[[], Connection]:
        from edged.transport.http.core.connection import Connection

        assert self._connections is not None
        assert self._runner is not None
        assert self._runner.server is not None  # since its setup
        return functools.partial(
            Connection, self._runner.server, self._connections, identify, loop=asyncio.get_running_loop()
        )

    def _unix_peer(self, gid: int, connected: socket.socket) -> Peer:
        from edged.transport.http.core.connection import Peer

        def caller(peer: sockets.Peer) -> Caller:
            groups = peer.groups or ()
            return self._gate.unix(peer.pid, peer.uid, groups, socket_group=gid, transport="http")

        async def ask() -> Peer:
            found = caller(await sockets.with_groups(peer))
            return Peer(found.client, found)

        peer = sockets.peer(connected)
        known = caller(peer)
        return Peer(known.client, known, None if peer.groups is not None else ask)


def _tcp_peer(connected: socket.socket) -> Peer:
    from edged.transport.http.core.connection import Peer

    return Peer(connected.getpeername()[0])


def _own_names() -> list[str]:
    """What the board is called on its network, also by multicast DNS."""
    name = socket.gethostname()
    return [name, f"{name.partition('.')[0]}.local"]


def _name(listener: Listener) -> str:
    """As it is written in the configuration."""
    return f"{listener[0]}:{listener[1]}" if isinstance(listener, tuple) else f"unix:{listener}"
