"""How many completions, or embeddings, are worked on at once and may wait, and no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from edged.errors import Busy, NoMemory

AT_ONCE = 16  # as many as a model has places for
REMOTE = AT_ONCE // 2  # of these, in servers beside us: one that hangs must not hold up the board's own models
RETRY_S = 5.0  # when to ask again where too many wait: about two answers of a small board


class Slots:
    """Slots for work that nobody stores.

    refusing: set: work that takes memory of this board is refused with this error.

    Args:
        what: the work is called, in the plural.
        max_waiting: how many may wait for a slot, half of them for one of REMOTE; one more is refused.
    """

    refusing: NoMemory | None = None

    def __init__(self, what: str, *, max_waiting: int) -> None:
        self._what = what
        self._free, self._remote = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(REMOTE)
        self._max_waiting = max_waiting
        self._waiting = self._waiting_remotely = 0

    @contextlib.asynccontextmanager
    async def one(self, *, remote: bool = False) -> AsyncIterator[None]:
        """One of the slots, in the order of asking.

        Args:
            remote: a server beside us does the work: it takes no memory of ours, and at most half of the slots.

        Raises:
            NoMemory: the board is short of memory.
            Busy: too many wait already.
        """
        if self.refusing is not None and not remote:
            raise NoMemory(self.refusing.message, retry_after_s=self.refusing.retry_after_s)
        self._check_room(remote)
        async with contextlib.AsyncExitStack() as taken:
            self._waiting += 1
            self._waiting_remotely += remote
            try:
                if remote:  # first: who waits here holds none of the slots
                    await taken.enter_async_context(self._remote)
                await taken.enter_async_context(self._free)
            finally:
                self._waiting -= 1
                self._waiting_remotely -= remote
            yield

    def _check_room(self, remote: bool) -> None:
        if self._free.locked() and self._waiting >= self._max_waiting:
            raise Busy(f"{self._waiting} {self._what} wait already", retry_after_s=RETRY_S)
        full = self._free.locked() or self._remote.locked()
        if remote and full and self._waiting_remotely >= self._max_waiting // 2:
            waiting = f"{self._waiting_remotely} {self._what} wait already for the servers on this board"
            raise Busy(waiting, retry_after_s=RETRY_S)
