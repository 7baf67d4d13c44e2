"""HTTP (CONTRACT section 6): the OpenAI API, requests with their replies, health and metrics."""

from __future__ import annotations

from edged.config import Config
from edged.transport.http.server import HttpTransport
from edged.transport.sockets import group_of

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
        strict=settings.http.strict,
    )
