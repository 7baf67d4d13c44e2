"""What one owner of the pipeline wakes another by, so that they need not know each other."""

from __future__ import annotations

import asyncio


class Signals:
    """Events. Anyone sets one after making work for its owner; only its owner waits for it and clears it.

    queued: there may be something to claim (worker). parked: something may be resumed (parking). timed: a deadline is
    new or gone (deadlines). outgoing: a reply may go out (outbox). crowded: the store is nearly full (tidy).
    """

    def __init__(self) -> None:
        self.queued = asyncio.Event()
        self.parked = asyncio.Event()
        self.timed = asyncio.Event()
        self.outgoing = asyncio.Event()
        self.crowded = asyncio.Event()

    def everything(self) -> None:
        """At the start: everyone looks at what an earlier daemon has left."""
        for event in (self.queued, self.parked, self.timed, self.outgoing):
            event.set()
