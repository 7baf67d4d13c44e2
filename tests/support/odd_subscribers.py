"""Subscribers that edged does not know. A daemon gets them by EDGED_TEST_MEMBERS; one writes what it hears into the
file EDGED_TEST_HEARD, a line of JSON each, and the others do what a subscriber must not."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from edged.daemon.parts import Parts
from edged.daemon.subscribers import SUBSCRIBERS
from edged.interfaces import Heard
from edged.types import Event


def raising(_: Parts) -> Heard:
    """Raises at every event."""

    def heard(event: Event) -> None:
        raise RuntimeError(f"nobody wants to hear of {event.name}")

    return heard


def hanging(_: Parts) -> Heard:
    """Never comes back from the first event."""

    async def heard(event: Event) -> None:
        await asyncio.Event().wait()

    return heard


def writing(parts: Parts) -> Heard:
    """Takes its time to write things down."""
    path = Path(os.environ["EDGED_TEST_HEARD"])

    async def heard(event: Event) -> None:
        await asyncio.sleep(0.05)
        line = {"name": event.name, "node": parts.settings.node.id, "data": event.data}
        with path.open("a", encoding="utf-8") as file:  # noqa: ASYNC230  # a line
            file.write(json.dumps(line, default=str) + "\n")

    return heard


def nobody(_: Parts) -> Heard | None:
    """One that the configuration has no use for."""
    return None


SUBSCRIBERS[:0] = [raising, hanging, writing, nobody]
