"""Wyoming: a sentence in, what an agent says to it out. For Home Assistant's Assist and other voice assistants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edged.config import Config

if TYPE_CHECKING:
    from edged.transport.wyoming.server import WyomingTransport

__all__ = ["make"]


def make(settings: Config) -> WyomingTransport | None:
    """Of a configuration; None where it has no [wyoming]: nothing else of this folder is imported then."""
    if settings.wyoming is None:
        return None
    from edged.transport.wyoming.server import WyomingTransport

    cancels = settings.wyoming.when_gone == "cancel"
    return WyomingTransport(settings.wyoming_listener, settings.wyoming_agent, cancels=cancels)
