"""Waiting requests end at their deadline; running ones have a timeout of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from edged.errors import Expired
from edged.host.alarms import Alarms
from edged.requests.settle import Settler
from edged.requests.signals import Signals
from edged.store import lifecycle, lookup
from edged.store.database import Database
from edged.store.lifecycle import State
from edged.types import Status


class Deadlines:
    """Owns the timer of the earliest deadline. `run` is its task.

    Args:
        expired: gets the rid of every request that ended so.
    """

    def __init__(
        self,
        database: Database,
        settler: Settler,
        alarms: Alarms,
        signals: Signals,
        *,
        expired: Callable[[str], None],
    ) -> None:
        self._database = database
        self._settler = settler
        self._alarms = alarms
        self._signals = signals
        self._expired = expired

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._signals.timed.clear()
            overdue, deadline = await self._database.read(lookup.deadlines)
            for row in overdue:
                waited = "waiting for a link" if row.state is State.WAITING_LINK else "in the queue"
                error = Expired(f"the deadline passed {waited}")
                if await self._settler.end(row, Status.EXPIRED, error, only=lifecycle.WAITING):
                    self._expired(row.rid)
            with contextlib.suppress(TimeoutError):
                async with self._alarms.timeout_at(deadline):
                    await self._signals.timed.wait()
