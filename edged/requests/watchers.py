"""Who listens for a request: those that wait for its reply or for a link, and
those that get the pieces of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from edged.agent.stream import Stream
from edged.store import lookup
from edged.store.database import Database
from edged.store.lifecycle import State
from edged.types import Request

OnDelta = Callable[[int, str], None]


class Watchers:
    """Owns the futures of replies and the listeners of pieces, by rid."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._results: dict[str, set[asyncio.Future[bytes]]] = {}
        self._listeners: dict[str, dict[Hashable, OnDelta]] = {}
        self._parked: dict[str, set[asyncio.Event]] = {}

    async def result(self, rid: str) -> bytes:
        """The reply's canonical bytes, as soon as there is one. KeyError: no such request."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._results.setdefault(rid, set()).add(future)
        try:
            row = await self._database.read(lambda c: lookup.get(c, rid))
            return row.reply if row.reply is not None else await future
        finally:
            waiting = self._results.get(rid, set())
            waiting.discard(future)
            if not waiting:
                self._results.pop(rid, None)

    def is_awaited(self, rid: str) -> bool:
        """Whether somebody waits in `result`."""
        return bool(self._results.get(rid))

    async def until_parked(self, rid: str) -> None:
        """Return as soon as the request waits for a link. One that has ended never will: cancel this. KeyError: no such
        request."""
        event = asyncio.Event()
        self._parked.setdefault(rid, set()).add(event)
        try:
            row = await self._database.read(lambda c: lookup.get(c, rid))
            if row.state is not State.WAITING_LINK:
                await event.wait()
        finally:
            waiting = self._parked[rid]
            waiting.discard(event)
            if not waiting:
                del self._parked[rid]

    def parked(self, rid: str) -> None:
        """The request waits for a link now."""
        for event in self._parked.get(rid, ()):
            event.set()

    def listen(self, rid: str, key: Hashable, listener: OnDelta) -> None:
        """From now on the listener gets the pieces of the answer, until the request ends or the listener leaves. One
        that comes again with the same key takes its own place."""
        self._listeners.setdefault(rid, {})[key] = listener

    def leave(self, rid: str, key: Hashable) -> None:
        """The listener hears no more, if it listened."""
        listeners = self._listeners.get(rid, {})
        listeners.pop(key, None)
        if not listeners:
            self._listeners.pop(rid, None)

    def stream(self, request: Request, rid: str) -> Stream | None:
        """Feeds the listeners. Characters that came before somebody listened are not repeated (the offset tells)."""
        if not request.stream:
            return None

        def send(offset: int, text: str) -> None:
            for listener in tuple(self._listeners.get(rid, {}).values()):
                listener(offset, text)

        return Stream(send)

    def ended(self, rid: str, body: bytes) -> None:
        """The request has its outcome."""
        self._listeners.pop(rid, None)
        for future in self._results.pop(rid, set()):
            if not future.done():
                future.set_result(body)
