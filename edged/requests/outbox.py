"""Replies on their way: each is handed to its transport until it is confirmed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from edged.host.fault_points import point
from edged.interfaces import Deliverer
from edged.requests.signals import Signals
from edged.requests.storing import until_stored
from edged.store import outbox as deliveries
from edged.store.database import Database
from edged.types import Delivery

MAX_SENDING = 64  # replies on their way at once; the broker's Receive Maximum bounds it further
FLUSH_S = 2.0  # a stop waits this long for them; what is not confirmed is sent after the next start


class Outbox:
    """Owns the deliveries that are under way. `run` is its task.

    Args:
        deliverers: who carries replies, by the name of the transport.
    """

    def __init__(self, database: Database, deliverers: Mapping[str, Deliverer], signals: Signals) -> None:
        self._database = database
        self._deliverers = deliverers
        self._signals = signals
        self._sent = asyncio.Event()
        self._sending: set[int] = set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._signals.outgoing.wait()
                self._signals.outgoing.clear()
                for delivery in await self._database.read(
                    lambda c: deliveries.ready(c, tuple(self._deliverers), tuple(self._sending), MAX_SENDING)
                ):
                    if len(self._sending) < MAX_SENDING:
                        self._sending.add(delivery.id)
                        group.create_task(self._deliver(delivery), name=f"edged.deliver.{delivery.id}")

    async def flush(self) -> None:
        """Let replies go out, for FLUSH_S at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                self._sent.clear()
                while await self._database.read(lambda c: deliveries.waiting(c, tuple(self._deliverers))):
                    await self._sent.wait()
                    self._sent.clear()

    async def _deliver(self, delivery: Delivery) -> None:
        """One reply until it is confirmed."""
        try:
            await self._deliverers[delivery.transport].deliver(delivery)
            point("deliver.confirmed")
            # lazy: losing it with the power only means that the same bytes go out again
            await until_stored(
                lambda: self._database.write(lambda c: deliveries.confirm(c, delivery), durable=False, patient=True)
            )
            point("deliver.marked")
        finally:
            self._sending.discard(delivery.id)
            self._signals.outgoing.set()
            self._sent.set()
