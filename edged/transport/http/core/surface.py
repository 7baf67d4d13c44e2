"""What an HTTP surface is: routes below paths of its own, and the shape of its errors. The core does the rest for all
surfaces: who asks, limits, keys, origins, streaming."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from aiohttp import web
from msgspec import Struct

from edged.api import Api
from edged.errors import EdgedError
from edged.transport.base import Readiness


class Board(Struct, frozen=True, kw_only=True):
    """What surfaces are made of.

    api: what callers may do.
    ready: whether requests are taken, and which parts of the daemon are not there yet.
    metrics: the document and its content type.
    heartbeat_s: the longest silence in a stream of events, in seconds.
    strict: whether parameters without an effect are refused, as in the configuration.
    ignored: gets how many parameters without an effect a request had.
    """

    api: Api
    ready: Callable[[], Readiness]
    metrics: Callable[[], tuple[bytes, str]]
    heartbeat_s: float
    strict: bool = False
    ignored: Callable[[int], None] = lambda count: None


class Surface(Protocol):
    """One way to speak HTTP with edged.

    paths: what lies at or below them is this surface's, whether it has a route there or not: its errors have this
        surface's shape, too. Of two surfaces the longer path wins; "/" is everything that is nobody else's.
    open_paths: whole paths that need no key, and no role.
    secret_paths: one may have these, too: what lies below one of them is a key, for clients that can show no other.
    """

    @property
    def paths(self) -> Collection[str]:
        """See above."""
        ...

    @property
    def open_paths(self) -> Collection[str]:
        """See above."""
        ...

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """The handlers. What they raise becomes a response by `error`. `core.connection` knows who asks,
        `core.stream` streams."""
        ...

    def error(self, request: web.BaseRequest, error: EdgedError) -> web.Response:
        """The response to a request that failed, wherever it did: in a handler, or in the core before one was asked.
        `core.errors.response` makes it of a body."""
        ...


class Surfaces:
    """All that are mounted. One of them has the path "/"."""

    def __init__(self, surfaces: Iterable[Surface]) -> None:
        self._all = list(surfaces)
        by_path = {path: surface for surface in self._all for path in surface.paths}
        self._by_path = sorted(by_path.items(), key=lambda item: len(item[0]), reverse=True)

    def routes(self) -> list[web.AbstractRouteDef]:
        """Of all."""
        return [route for surface in self._all for route in surface.routes()]

    def of(self, path: str) -> Surface:
        """The surface that a path belongs to."""
        return next(surface for base, surface in self._by_path if _is_below(path, base))

    def key_in(self, path: str) -> str | None:
        """The key that a path holds; None: it holds none."""
        for base in getattr(self.of(path), "secret_paths", ()):
            if path.startswith(f"{base}/"):
                return path[len(base) + 1 :]
        return None

    def shown(self, request: web.BaseRequest) -> str:
        """The path of a request as logs show it."""
        key = self.key_in(request.path)
        return request.rel_url.raw_path if key is None else f"{request.path[: -len(key)]}..."

    def is_open(self, path: str) -> bool:
        """Whether a path needs no key."""
        return path in self.of(path).open_paths


def _is_below(path: str, base: str) -> bool:
    return base == "/" or path == base or path.startswith(f"{base}/")
