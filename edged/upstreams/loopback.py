"""Connections to a server on this board, and to nothing else."""

from __future__ import annotations

import errno
import functools
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edged.host import loopback
from edged.host.loopback import Server

if TYPE_CHECKING:
    import aiohttp


def connector(server: Server) -> Callable[[float], aiohttp.BaseConnector]:
    """Makes what connects to it; gets the seconds that connections wait for their next request."""
    return functools.partial(_connector, server)


def _connector(server: Server, keep_alive_s: float) -> aiohttp.BaseConnector:
    import aiohttp

    if server.socket is not None:
        return aiohttp.UnixConnector(server.socket, limit=0, keepalive_timeout=keep_alive_s)
    return aiohttp.TCPConnector(
        limit=0,  # how many at once is the callers' business, and the server's
        keepalive_timeout=keep_alive_s,
        resolver=_resolver(),
        socket_factory=_socket,
    )


def _resolver() -> aiohttp.abc.AbstractResolver:
    """Knows the names of this board without asking anybody."""
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Loopback(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            found = [
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=port,
                    family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST,
                )
                for address in loopback.ADDRESSES.get(host, ())
            ]
            if not found:
                raise OSError(errno.EHOSTUNREACH, f"{host} is not on this board")
            return found

        async def close(self) -> None:
            pass

    return Loopback()


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """The last look before a connection is made. OSError: it would leave the board."""
    family, kind, protocol, _, where = address
    if not loopback.is_here(where[0]):
        raise OSError(errno.EHOSTUNREACH, f"{where[0]} is not on this board")
    return socket.socket(family, kind, protocol)
