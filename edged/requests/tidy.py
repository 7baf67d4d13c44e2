"""What is older than the retention is forgotten, and the oldest at once where there is no room."""

from __future__ import annotations

import asyncio
import contextlib

import apsw

from edged.config import Config
from edged.host import clock
from edged.requests.signals import Signals
from edged.store import audit, retention
from edged.store.database import Database

HOUSEKEEPING_S = 60.0  # how often finished requests are forgotten; cheap when there is nothing to do
CROWDED_S = 1.0  # in a full store where nothing could be forgotten it is looked again so soon: a look reads all of it


class Tidy:
    """Forgets. Nothing else depends on it, so a full disk may skip a turn. `run` is its task.

    Args:
        transports: that carry replies: what one of them has yet to deliver is kept.
    """

    def __init__(self, config: Config, database: Database, transports: tuple[str, ...], signals: Signals) -> None:
        self._config = config
        self._database = database
        self._transports = transports
        self._signals = signals
        self._boot = clock.boot_id()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            crowded, forgotten = self._signals.crowded.is_set(), 0
            self._signals.crowded.clear()
            with contextlib.suppress(apsw.Error):
                while count := await self._database.write(self._forget, durable=False):
                    forgotten += count  # in small transactions: requests that come in do not wait for it
            if crowded and not forgotten:
                await asyncio.sleep(CROWDED_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HOUSEKEEPING_S):
                    await self._signals.crowded.wait()

    def _forget(self, c: apsw.Connection) -> int:
        keep_s, size = self._config.store.retention_days * 86400, self._config.store_bytes
        forgotten = retention.trim(c, keep_s, self._boot, size, self._transports)
        crowded = not forgotten and retention.is_crowded(c, size)
        return forgotten + audit.forget(c, self._config.audit.keep_days * 86400, crowded=crowded)
