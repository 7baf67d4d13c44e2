"""Addresses of servers on this board. Pure: nothing is looked up, so no name server can lead elsewhere."""

from __future__ import annotations

import ipaddress
from urllib.parse import unquote, urlsplit

from msgspec import Struct

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
        socket = unquote(url.netloc)
        if not socket.startswith("/") or "\0" in socket:
            raise ValueError(f"{base_url!r}: the socket is an absolute path with %2F for /; write {SHAPES}")
        return Server(f"http://localhost{path}", socket)
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
