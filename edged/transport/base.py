"""The one shape of all transports: what brings requests in and carries replies out.

A transport is made of the configuration alone, before anything runs: `assembly.TRANSPORTS` lists who makes them. The
daemon then hands it its listening sockets, starts it with the backend that its callers reach, and asks it for nothing
else than what is here.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from edged.access.gate import Gate
from edged.api import Api
from edged.config import Config
from edged.types import JSON, Delivery

SocketAddress = Path | tuple[str, int]  # a Unix socket, or (host, port), as the configuration names it
Sockets = Mapping[SocketAddress, Sequence[socket.socket]]


class Readiness(Struct, frozen=True):
    """Whether the daemon takes requests.

    missing: what is not there yet, by the name of the part, each with the reason. Requests may be taken without it.
    """

    taking: bool
    missing: dict[str, str] = field(default_factory=dict)


class Backend(Struct, frozen=True):
    """What the callers of a transport reach.

    api: what a caller may do. gate: who may come in. state: makes the document of base/state. ready: whether requests
    are taken. metrics: the page and its content type. ignored: gets how many parameters without an effect a request
    had.
    """

    settings: Config
    api: Api
    gate: Gate
    state: Callable[[], dict[str, JSON]]
    ready: Callable[[], Readiness]
    metrics: Callable[[], tuple[bytes, str]]
    ignored: Callable[[int], None] = lambda count: None


class Transport(ABC):
    """A way in.

    name: as `Caller.transport` of its callers; replies are delivered to the transport of that name.
    addresses: where it wants to listen. The sockets are made for it, outlive it, and come by `inherit`.
    """

    name: str
    addresses: Sequence[SocketAddress] = ()

    def inherit(self, sockets: Sockets) -> None:
        """Before the start: the sockets of its addresses, which listen already. They belong to their maker, so serve
        a duplicate. A host name may have several."""
        return

    @abstractmethod
    async def start(self, backend: Backend) -> asyncio.Task[None] | None:
        """Let callers in. Returns a task to be watched, where there is one: it ends by `stop` only, or by a bug.

        Raises:
            ConfigError: it cannot be started as it is configured. Nothing of it is left then.
        """

    @abstractmethod
    def stop_taking(self) -> None:
        """Take nothing new. What was taken goes on, and so do replies."""

    @abstractmethod
    async def stop(self) -> None:
        """End all connections; without effect where it was not started."""

    async def until_ready(self) -> None:
        """Return as soon as nothing is `missing`."""
        return

    def missing(self) -> str | None:
        """What keeps callers from getting in, though it was started: for people. None: nothing."""
        return None

    def status(self) -> JSON:
        """Its part of `edged status`, under its name; None: it has none."""
        return None

    def state_changed(self) -> None:
        """The document of base/state has changed."""
        return


class ReplyTransport(Transport):
    """A transport that carries replies to callers who do not wait for them. Implements `interfaces.Deliverer`."""

    @abstractmethod
    async def deliver(self, delivery: Delivery) -> None:
        """See interfaces.Deliverer."""


def deliverers(transports: Sequence[Transport]) -> dict[str, ReplyTransport]:
    """The transports that carry replies, by name."""
    return {each.name: each for each in transports if isinstance(each, ReplyTransport)}
