"""So many at once, so many waiting, and no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from edged.errors import Busy, NoMemory

AT_ONCE = 16  # as many as a model has places for
RETRY_S = 5.0  # when to ask again where too many wait: about two answers of a small board


class Places:
    """Places for work that nobody stores.

    refusing: set: work that takes memory of this board is refused, and this is what it is told.

    Args:
        max_waiting: so many wait for a place; one more is refused.
        what: the work is called, in the plural.
    """

    refusing: NoMemory | None = None

    def __init__(self, what: str, *, max_waiting: int) -> None:
        self._what = what
        self._free = asyncio.Semaphore(AT_ONCE)
        self._waiting, self._max_waiting = 0, max_waiting

    @contextlib.asynccontextmanager
    async def one(self, *, takes_memory: bool = True) -> AsyncIterator[None]:
        """One of the places, in the order of asking. Raises Busy, NoMemory."""
        if self.refusing is not None and takes_memory:
            raise NoMemory(self.refusing.message, retry_after_s=self.refusing.retry_after_s)
        if self._free.locked() and self._waiting >= self._max_waiting:
            raise Busy(f"{self._waiting} {self._what} wait already", retry_after_s=RETRY_S)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()
