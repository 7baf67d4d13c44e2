"""HTTP (CONTRACT section 6): the OpenAI API, requests with their replies, health and metrics."""

from __future__ import annotations

from pathlib import Path

from edged.config import Config
from edged.config.settings import parse_listener
from edged.transport.http.server import HttpTransport
from edged.transport.sockets import group_of

__all__ = ["HttpTransport", "make"]


def make(settings: Config) -> HttpTransport:
    """Of a configuration. ConfigError where keys are missing or not as they should be."""
    runtime = Path(settings.node.runtime_dir)
    return HttpTransport(
        settings.http_listeners,
        mode=int(settings.ipc.mode, 8),
        group=group_of(settings),
        api_keys_file=settings.http.api_keys_file,
        hosts=settings.http.hosts,
        origins=settings.http.origins,
        ollama_origins=settings.http.ollama_origins,
        strict=settings.http.strict,
        open_ways={  # of HTTP: other transports have theirs
            way: parse_listener(text, runtime)
            for way, ((table, *_), text) in settings.open_ways.items()
            if table == "http"
        },
    )
