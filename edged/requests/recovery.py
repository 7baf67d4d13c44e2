"""After a start: what ran when the daemon died goes on, unless it killed the daemon too often."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from edged.config import Config
from edged.errors import Quarantined
from edged.host import clock
from edged.requests.settle import Settler
from edged.requests.worker import Worker
from edged.store import requests
from edged.store.database import Database
from edged.types import JSON, Status

log = logging.getLogger("edged.requests")

Tell = Callable[[str, dict[str, JSON]], None]


class Recovery:
    """Puts back what an earlier daemon has left. `run` is called once, before the worker works.

    Args:
        tell: gets (event name, data): request_quarantined.
    """

    def __init__(self, config: Config, database: Database, settler: Settler, worker: Worker, *, tell: Tell) -> None:
        self._config = config
        self._database = database
        self._settler = settler
        self._worker = worker
        self._tell = tell

    async def run(self) -> None:
        """What ran goes back into the queue, and is suspected; or into quarantine. What waits for a link and no longer
        can, because its agent or the upstreams are gone from the configuration, is queued, too."""
        boot = clock.boot_id()
        running = await self._database.write(lambda c: requests.recover(c, boot))
        for row in running:
            if row.attempts >= self._config.queue.max_attempts:
                error = Quarantined(f"the daemon died {row.attempts} times while working on this request")
                log.error("request quarantined", extra={"rid": row.rid})
                self._tell("request_quarantined", {"rid": row.rid, "attempts": row.attempts})
                await self._settler.end(row, Status.FAILED, error, quarantine=True)
            else:
                await self._database.write(functools.partial(requests.requeue, rid=row.rid))
                self._worker.suspect([row.rid])
        if running:
            log.info("%d requests were running when the daemon ended", len(running))
        able = tuple(name for name in self._config.agents if self._config.upstreams_of(name))
        await self._database.write(lambda c: requests.resume_others(c, able))
