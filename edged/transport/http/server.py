"""The HTTP listeners: Unix sockets, whose peers the kernel names, TCP ports, whose clients show a key, and ways in
without authentication, each with surfaces of its own.

This module is part of every daemon's start; what needs aiohttp is imported when a server starts.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edged.access.gate import Gate
from edged.errors import ConfigError
from edged.host import tcp_peers
from edged.transport import sockets
from edged.transport.base import Backend, Sockets, Transport
from edged.transport.http.core import keys
from edged.transport.http.core.browsers import Browsers
from edged.transport.http.core.limits import Limits
from edged.types import JSON, Caller

if TYPE_CHECKING:
    from edged.transport.http.core.connection import Peer
    from edged.transport.http.core.surface import Surface
    from edged.transport.http.service import Service

log = logging.getLogger("edged.http")

Listener = Path | tuple[str, int]  # a Unix socket, or host and port
CLOSE_S = 0.5  # each of three steps of a stop: answers may end, connections may end, what they hold may be sent


class HttpTransport(Transport):
    """The listeners and what they serve.

    Args:
        mode, group: of the Unix sockets; group None: the process's own.
        api_keys_file: as in the configuration; needed where one listens on TCP. Read here: a reload with keys that are
            wrong is refused before anything has stopped.
        hosts, origins, ollama_origins, strict: as in the configuration.
        open_ways: listeners without authentication, by their names in [access].

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
        ollama_origins: bool = False,
        strict: bool = False,
        open_ways: Mapping[str, Listener] | None = None,
    ) -> None:
        self._listeners, self._open_ways = tuple(listeners), dict(open_ways or {})
        self.addresses = (*self._listeners, *self._open_ways.values())
        self._mode = mode
        self._gid = sockets.group_id(group)
        self._keys = keys.load(api_keys_file) if api_keys_file else None
        self._gate: Gate
        named = [listener[0] for listener in self.addresses if isinstance(listener, tuple)]
        self._browsers = Browsers([*hosts, *named, *_own_names()], origins, as_ollama=ollama_origins)
        self._inherited: Sockets = {}
        self._limits = limits or Limits()
        self._strict = strict
        for listener in self._listeners:
            if isinstance(listener, tuple) and self._keys is None:
                raise ConfigError(_name(listener), "", "is open to the network: name http.api_keys_file")
        self._services: list[Service] = []
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
        from edged.transport.http.core.surface import Board
        from edged.transport.http.surfaces import OF_OPEN_WAYS, SURFACES

        self._gate = backend.gate
        board = Board(
            api=backend.api,
            ready=backend.ready,
            metrics=backend.metrics,
            heartbeat_s=self._limits.heartbeat_s,
            strict=self._strict,
            ignored=backend.ignored,
        )
        try:
            usual = await self._serve([make(board) for make in SURFACES])
            for listener in self._listeners:
                await self._listen(usual, listener)
            for way, listener in self._open_ways.items():
                service = await self._serve([make(board) for make in OF_OPEN_WAYS[way]])
                await self._listen(service, listener, way)
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
        await asyncio.gather(*(service.stop(CLOSE_S) for service in self._services))
        for path in self._made:
            path.unlink(missing_ok=True)
        self._servers, self._made, self._services = [], [], []

    async def _serve(self, surfaces: Sequence[Surface]) -> Service:
        from edged.transport.http.service import Service

        made = Service(surfaces, keys=self._keys, gate=self._gate, browsers=self._browsers, limits=self._limits)
        self._services.append(made)
        await made.start(CLOSE_S)
        return made

    async def _listen(self, service: Service, listener: Listener, open_way: str = "") -> None:
        # as many may wait as the kernel allows: fewer would also shrink the queue of a socket that was handed over
        create = functools.partial(asyncio.get_running_loop().create_server, backlog=sockets.BACKLOG)
        given = [inherited.dup() for inherited in self._inherited.get(listener, ())]  # its queue stays at a stop
        try:
            if isinstance(listener, tuple):
                identify = functools.partial(self._open_peer, open_way) if open_way else _tcp_peer
                factory = service.factory(identify)
                made = [] if given else [await create(factory, *listener)]
            else:
                # of a socket that was handed over its unit says who may connect
                gid = sockets.gid_of(listener, self._gid) if given else self._gid
                factory = service.factory(functools.partial(self._unix_peer, gid))
                if not given:
                    given = [await asyncio.to_thread(sockets.listen, listener, self._mode, gid)]
                    self._made.append(listener)
                made = []
            self._servers += made
            for each in given:
                self._servers.append(await create(factory, sock=each))
        except OSError as error:
            raise ConfigError(_name(listener), "", f"cannot be listened on: {error.strerror or error}") from None

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

    def _open_peer(self, way: str, connected: socket.socket) -> Peer:
        from edged.transport.http.core.connection import Peer

        port, ours = connected.getpeername()[1], connected.getsockname()[1]

        async def ask() -> Peer:
            pid = await asyncio.to_thread(tcp_peers.descendant_with, port, ours)
            found = self._gate.open_way(way, pid)
            return Peer(found.client, found, is_tcp=True)

        known = self._gate.policy.open_way(way)
        return Peer(known.client, known, ask, is_tcp=True)


def _tcp_peer(connected: socket.socket) -> Peer:
    from edged.transport.http.core.connection import Peer

    return Peer(connected.getpeername()[0], is_tcp=True)


def _own_names() -> list[str]:
    """What the board is called on its network, also by multicast DNS."""
    name = socket.gethostname()
    return [name, f"{name.partition('.')[0]}.local"]


def _name(listener: Listener) -> str:
    """As it is written in the configuration."""
    return f"{listener[0]}:{listener[1]}" if isinstance(listener, tuple) else f"unix:{listener}"
