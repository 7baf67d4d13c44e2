"""Servers on this board: their addresses, and connections to them and to nothing else. Nothing is looked up, so no name
server can lead elsewhere."""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from msgspec import Struct

if TYPE_CHECKING:
    import aiohttp

UNIX = "http+unix"
ADDRESSES = {"localhost": ("127.0.0.1", "::1")}  # the one name that is taken, and what it means here
SHAPES = "http://127.0.0.1:PORT/v1, http://localhost:PORT/v1 or http+unix://%2Frun%2FNAME.sock/v1"


class Server(Struct, frozen=True):
    """Where a server on this board listens. url: for HTTP; socket: path of its Unix socket, None for TCP."""

    url: str
    socket: str | None = None


def parse(base_url: str) -> Server:
    """A server from its address. ValueError: it is none on this board; says what to write."""
    try:
        url = urlsplit(base_url)
        port_ok = url.scheme == UNIX or url.port is None or url.port > 0
    except ValueError:  # an IPv6 address without its bracket, a port that is none
        raise ValueError(f"{base_url!r} is no address; write {SHAPES}") from None
    if url.username is not None or url.password is not None:
        raise ValueError("holds a secret; use api_key_file")
    if url.scheme not in ("http", UNIX) or not url.netloc or url.query or url.fragment or not port_ok:
        raise ValueError(f"{base_url!r}; write {SHAPES}")
    path = url.path.rstrip("/")
    if url.scheme == UNIX:
        where = unquote(url.netloc)
        if not where.startswith("/") or "\0" in where:
            raise ValueError(f"{base_url!r}: the socket is an absolute path with %2F for /; write {SHAPES}")
        return Server(f"http://localhost{path}", where)
    if not is_here(url.hostname or ""):
        raise ValueError(
            f"{base_url!r} is not on this board: nothing may leave it by a model; write {SHAPES}, and for a server "
            "elsewhere an [upstreams.NAME] table"
        )
    return Server(f"http://{url.netloc}{path}")


def is_here(host: str) -> bool:
    """Whether a host, as a name or an address, is this board and nothing else."""
    if host in ADDRESSES:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback and "%" not in host


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
                for address in ADDRESSES.get(host, ())
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
    if not is_here(where[0]):
        raise OSError(errno.EHOSTUNREACH, f"{where[0]} is not on this board")
    return socket.socket(family, kind, protocol)
