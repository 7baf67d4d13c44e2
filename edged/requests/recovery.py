"""After a start: what ran when the daemon ended goes on, unless it is to blame for the end.

Every end makes what ran a suspect: until all suspects are over one request runs at a time, so that the next end has one
cause. Only ends that were the process's own fault count as attempts (see `host.last_end`): a board on a weak supply, or
an administrator, must not bring innocent requests into quarantine. But nobody can tell every fault from a SIGKILL; so a
request that was the only one to run at MAX_ALONE ends in a row is to blame, whatever is said of their causes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import apsw

from edged.config import Config
from edged.errors import Quarantined
from edged.host import clock
from edged.host.last_end import LastEnd
from edged.requests.settle import Settler
from edged.requests.storing import STORE_REFUSES, until_stored
from edged.store import requests
from edged.store.database import Database
from edged.store.lookup import Row
from edged.types import JSON, Status

log = logging.getLogger("edged.requests")

Tell = Callable[[str, dict[str, JSON]], None]

# Ends in a row at which a request was the only one to run. A board that browns out again and again while it starts does
# so three or four times before somebody looks at it; six would hold up everybody else longer than is of use.
MAX_ALONE = 5
PATIENCE_S = 2.0  # of the start, where the disk refuses what says so
POWER = "the board was switched off, or started anew"


class Recovery:
    """Owns what an earlier daemon left running, until that is put back or in quarantine.

    Args:
        last_end: how the last process ended; None: it was this one. Called once, in a thread.
        tell: gets (event name, data): request_quarantined.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        settler: Settler,
        *,
        last_end: Callable[[], LastEnd | None],
        tell: Tell,
    ) -> None:
        self._config = config
        self._database = database
        self._settler = settler
        self._last_end = last_end
        self._tell = tell
        self._ended: LastEnd | None = None
        self._to_blame: list[Row] = []
        self._begun = False

    async def begin(self) -> None:
        """Put back what ran. A store that cannot be written does not hold up the start: `finish` goes on."""
        self._ended = await asyncio.to_thread(self._last_end)
        try:
            await self._put_back()
            async with asyncio.timeout(PATIENCE_S):
                await self._quarantine()
        except TimeoutError:
            pass  # the log says why
        except STORE_REFUSES as error:
            log.error(
                "the store cannot be written, so what ran or waits goes on only when it can: %s",
                error,
                extra={"event": "recovery_waits"},
            )

    async def finish(self) -> None:
        """Returns when all of it is done. Before that nothing is to be worked on."""
        if not self._begun:
            await until_stored(self._put_back)
        await self._quarantine()

    async def _put_back(self) -> None:
        rows, how = await self._database.write(self._recover)
        self._begun = True
        self._to_blame = [row for row in rows if self._is_to_blame(row)]
        if rows:
            told = "%d requests were running when the daemon ended (%s): until they are over, one runs at a time"
            log.info(told, len(rows), how, extra={"event": "recovered"})
            if self._ended is not None and self._ended.stacks:
                log.error("the stacks of the process that died:\n%s", self._ended.stacks)

    def _recover(self, c: apsw.Connection) -> tuple[list[Row], str]:
        """In the writer: (what ran, how the daemon ended). All of it but what is to blame is in the queue again."""
        interrupted = requests.recover(c, clock.boot_id())
        able = tuple(name for name in self._config.agents if self._config.upstreams_of(name))
        requests.resume_others(c, able)  # what waits for a link, and has no agent or no upstream any more
        if interrupted.another_boot:
            rows, how = requests.count_end(c, interrupted, own_fault=False), POWER
        elif self._ended is None:  # a reload found the store full, and could not put it back
            rows, how = requests.uncount(c, [row.rid for row in interrupted.rows]), "for a reload"
        else:
            rows, how = requests.count_end(c, interrupted, own_fault=self._ended.own), self._ended.how
        for row in rows:
            if not self._is_to_blame(row):
                requests.put_back(c, row.rid)
        return rows, how

    def _is_to_blame(self, row: Row) -> bool:
        return row.attempts >= self._config.queue.max_attempts or row.alone >= MAX_ALONE

    async def _quarantine(self) -> None:
        while self._to_blame:
            await self._blame(self._to_blame[0])
            del self._to_blame[0]

    async def _blame(self, row: Row) -> None:
        if row.alone >= MAX_ALONE:
            why = f"the daemon ended {row.alone} times in a row while this was all that it worked on"
        else:
            why = f"the daemon died {row.attempts} times while working on this request"
        log.error("request quarantined: %s", why, extra={"rid": row.rid, "event": "request_quarantined"})
        self._tell("request_quarantined", {"rid": row.rid, "attempts": row.attempts})
        await self._settler.end(row, Status.FAILED, Quarantined(why), quarantine=True)
