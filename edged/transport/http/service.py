"""Surfaces as they are served on some of the listeners: an application with its connections. Loads aiohttp."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable, Iterable

from aiohttp import web

from edged.access.gate import Gate
from edged.transport.http.core.application import application, forget
from edged.transport.http.core.browsers import Browsers
from edged.transport.http.core.connection import Connection, Connections, Peer
from edged.transport.http.core.keys import Keys
from edged.transport.http.core.limits import Limits
from edged.transport.http.core.surface import Surface, Surfaces


class Service:
    """One set of surfaces. Its pools of connections are its own, so listeners of other sets lose nothing to it.

    connections: all that are open.
    """

    def __init__(
        self, surfaces: Iterable[Surface], *, keys: Keys | None, gate: Gate, browsers: Browsers, limits: Limits
    ) -> None:
        mounted = Surfaces(surfaces)
        self.connections = Connections(limits, mounted)
        self._app = application(mounted, keys=keys, gate=gate, browsers=browsers, limits=limits)
        self._runner: web.AppRunner | None = None

    async def start(self, stop_s: float) -> None:
        """Serve. stop_s: how long answers may take to end at a stop."""
        self._runner = web.AppRunner(self._app, handler_cancellation=True, shutdown_timeout=stop_s)
        await self._runner.setup()

    def factory(self, identify: Callable[[socket.socket], Peer]) -> Callable[[], Connection]:
        """Makes the protocol of a new connection. identify: finds out who is at its other end."""
        assert self._runner is not None
        assert self._runner.server is not None  # since its setup
        loop = asyncio.get_running_loop()
        return functools.partial(Connection, self._runner.server, self.connections, identify, loop=loop)

    async def stop(self, patience_s: float) -> None:
        """End all connections. patience_s: for what they still have to send."""
        self.connections.closing = True
        if self._runner is not None:
            await self._runner.cleanup()
            forget()
        await self.connections.end(patience_s)
