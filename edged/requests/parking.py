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
from edged.store import requests
from edged.store.database import Database
from edged.store.journal import Journal
from edged.types import Spent
from edged.upstreams import Cloud

log = logging.getLogger("edged.requests")


class Parking:
    """Owns what was queued for an upstream's room and is not there yet. `run` is its task.

    Args:
        changed: called when a request was parked.
    """

    def __init__(
        self, config: Config, database: Database, cloud: Cloud, signals: Signals, *, changed: Callable[[], None]
    ) -> None:
        self._config = config
        self._database = database
        self._cloud = cloud
        self._signals = signals
        self._changed = changed
        self._resumed: set[str] = set()

    async def park(self, rid: str, spent: Spent, journal: Journal) -> None:
        """Wait for an upstream, durably. What the journal holds back is stored with it."""

        def park(c: apsw.Connection) -> None:
            journal.catch_up(c)
            requests.park(c, rid, self._config.queue.max_waiting, spent)

        await until_stored(
            # lazy: losing it with the power only means that it runs at the next start
            lambda: self._database.write(park, durable=False)
        )
        point("link.parked")
        log.info("waits for a link", extra={"rid": rid})
        self._changed()
        self._signals.timed.set()
        self._signals.parked.set()

    def link_changed(self) -> None:
        """An upstream came back, or has room again."""
        self._signals.parked.set()

    def worked(self, rid: str) -> None:
        """An attempt is over."""
        if rid in self._resumed:
            self._resumed.discard(rid)
            self._signals.parked.set()

    async def run(self) -> None:
        """Queue what waits for a link, no more of it than the upstreams have room for: a link that comes back is not
        buried under everything at once. Until cancelled."""
        shares: dict[tuple[str, ...], list[str]] = {}
        for agent in self._config.agents:
            shares.setdefault(self._config.upstreams_of(agent), []).append(agent)
        while True:
            await self._signals.parked.wait()
            self._signals.parked.clear()
            for upstreams, agents in shares.items():
                room = self._cloud.room(upstreams) - len(self._resumed)
                if room > 0:
                    resume = functools.partial(requests.resume, agents=tuple(agents), limit=room)
                    rids = await until_stored(lambda: self._database.write(resume, durable=False))  # noqa: B023
                    self._resumed.update(rids)
                    if rids:
                        self._signals.queued.set()
