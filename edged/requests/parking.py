"""What waits for a link: it is parked durably, and queued again when its upstreams have room."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import apsw

from edged.config import Config
from edged.host.fault_points import point
from edged.requests.signals import Signals
from edged.requests.storing import until_stored
from edged.store import lookup, requests
from edged.store.database import Database
from edged.store.journal import Journal
from edged.types import Spent
from edged.upstreams import Cloud

log = logging.getLogger("edged.requests")


class Parking:
    """Queues again what is parked. What is parked, and what is on its way to an upstream's room, the store knows. `run`
    is its task.

    Args:
        changed: called when a request was parked.
        parked: gets its rid.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        cloud: Cloud,
        signals: Signals,
        *,
        changed: Callable[[], None],
        parked: Callable[[str], None],
    ) -> None:
        self._config = config
        self._database = database
        self._cloud = cloud
        self._signals = signals
        self._changed = changed
        self._parked = parked

    async def park(self, rid: str, spent: Spent, journal: Journal, decision: str) -> None:
        """Wait for an upstream, durably.

        Args:
            spent: what the request has taken so far.
            journal: of the run; what it holds back is stored with it.
            decision: why it waits, see `router.in_words`.
        """

        def park(c: apsw.Connection) -> None:
            journal.catch_up(c)
            requests.park(c, rid, self._config.queue.max_waiting, spent, decision)

        await until_stored(
            # lazy: losing it with the power only means that it runs at the next start
            lambda: self._database.write(park, durable=False)
        )
        point("link.parked")
        log.info("waits for a link", extra={"event": "request_parked", "rid": rid})
        self._changed()
        self._parked(rid)
        self._signals.timed.set()
        self._signals.parked.set()

    def link_changed(self) -> None:
        """An upstream came back, or has room again."""
        self._signals.parked.set()

    async def run(self) -> None:
        """Queue what waits for a link, no more of it than the upstreams have room for: a link that comes back is not
        buried under everything at once. Until cancelled."""
        shares: dict[tuple[str, ...], list[str]] = {}
        for agent in self._config.agents:
            if upstreams := self._config.upstreams_of(agent):
                shares.setdefault(upstreams, []).append(agent)
        while True:
            await self._signals.parked.wait()
            self._signals.parked.clear()
            for upstreams, agents in shares.items():
                await self._resume(upstreams, tuple(agents))

    async def _resume(self, upstreams: tuple[str, ...], agents: tuple[str, ...]) -> None:
        room = self._cloud.room(upstreams)
        if room <= 0 or not await self._database.read(lambda c: lookup.is_parked(c, agents)):
            return  # mostly: a write is for when there is something to move
        resume = functools.partial(requests.resume, agents=agents, room=room)
        if await until_stored(lambda: self._database.write(resume, durable=False)):
            self._signals.queued.set()
