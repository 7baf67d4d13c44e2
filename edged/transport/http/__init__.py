"""HTTP (CONTRACT section 6): the OpenAI API, requests with their replies, health and metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edged.config import Config
from edged.transport.base import Door
from edged.transport.http.core.server import HttpTransport
from edged.transport.sockets import group_of

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["HttpTransport", "make"]


def make(settings: Config) -> HttpTransport:
    """Of a configuration. ConfigError where keys are missing or not as they should be."""
    return HttpTransport(
        settings.http_listeners,
        mode=int(settings.ipc.mode, 8),
        group=group_of(settings),
        api_keys_file=settings.http.api_keys_file,
        hosts=settings.http.hosts,
        origins=settings.http.origins,
        routes=_openai,
    )


def _openai(door: Door) -> Iterable[web.AbstractRouteDef]:
    from edged.transport.http.core.connection import caller  # only now: they carry aiohttp
    from edged.transport.http.openai.routes import routes

    return routes(door.api, door.settings, caller)
