"""What one upstream may cost a day, in tokens. The memory knows what the ledger knows, so that asking costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from edged.interfaces import Ledger

log = logging.getLogger("edged.upstreams")


class _Day:
    """Tokens of one UTC day. spent: of requests that ended; held: reserved by those that have not."""

    def __init__(self, name: str, spent: int) -> None:
        self.name = name
        self.spent = spent
        self.held = 0
        self.holds = 0


class Reservation:
    """Tokens held for a request. used: what it has really cost; 0 until that is known."""

    def __init__(self, day: _Day, tokens: int) -> None:
        self.day = day
        self.tokens = tokens
        self.used = 0


class Budget:
    """The tokens of one upstream. A request may begin while anything is left, so the last one of a day can exceed the
    budget by its own size; while the reservations of others fill it, a request waits for what they really cost.

    Args:
        limit: tokens of one UTC day; None: no bound.
    """

    def __init__(self, upstream: str, limit: int | None, ledger: Ledger) -> None:
        self.limit = limit
        self._upstream, self._ledger = upstream, ledger
        self._days: dict[str, _Day] = {}  # the current one, and others whose requests have not ended
        self._owed: dict[str, int] = {}  # what the ledger could not take
        self._in_order = asyncio.Lock()  # for the ledger: it never goes below 0, so order matters
        self._writes: set[asyncio.Task[None]] = set()

    async def load(self, day: str) -> None:
        """Read what the ledger has for a day, unless it was read before."""
        if day in self._days:
            return
        async with self._in_order:
            if day not in self._days:
                spent = await self._ledger.spent(self._upstream, day) + self._owed.get(day, 0)
                self._days = {d.name: d for d in self._days.values() if d.holds}
                self._days[day] = _Day(day, spent)

    def tokens(self, day: str) -> int:
        """Tokens of that day, with what is reserved."""
        known = self._days.get(day)
        return known.spent + known.held if known else 0

    def is_left(self, day: str) -> bool:
        """Whether the requests that ended have left something; so it seems until the day is loaded."""
        known = self._days.get(day)
        return self.limit is None or known is None or known.spent < self.limit

    def has_room(self, day: str) -> bool:
        """Whether something is left beside what is reserved."""
        return self.limit is None or self.tokens(day) < self.limit

    @contextlib.asynccontextmanager
    async def reserved(self, day: str, tokens: int) -> AsyncIterator[Reservation]:
        """Hold tokens of a loaded day while the block runs, in the ledger too; then only what was used is spent."""
        hold = Reservation(self._days[day], tokens)
        hold.day.held += tokens
        hold.day.holds += 1
        try:
            await self._write(day, tokens)
            yield hold
        finally:
            hold.day.held -= tokens
            hold.day.spent += hold.used
            await self._write(day, hold.used - tokens, hold.day)

    async def stop(self) -> None:
        """Let the ledger take what it has not yet."""
        if self._writes:
            await asyncio.wait(self._writes)

    async def _write(self, day: str, tokens: int, ends: _Day | None = None) -> None:
        """Tell the ledger, all the same when the caller is cancelled meanwhile."""
        task = asyncio.create_task(self._add(day, tokens, ends), name=f"edged.upstreams.ledger.{self._upstream}")
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        await asyncio.shield(task)

    async def _add(self, day: str, tokens: int, ends: _Day | None) -> None:
        async with self._in_order:
            tokens += self._owed.pop(day, 0)
            try:
                if tokens:
                    await self._ledger.add(self._upstream, day, tokens)
            except Exception as error:  # a full disk; the answer is worth more, and the memory goes on counting
                self._owed[day] = tokens
                log.error("the tokens of upstream %s cannot be written down: %s", self._upstream, error)
            finally:
                if ends:
                    ends.holds -= 1
