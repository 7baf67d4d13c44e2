"""The way of a request, top to bottom, and the owners it passes. Each has its own file and its own state:

1. `inbox` takes it in: checked, then committed before anyone is told.
2. `worker` claims it, interactive before batch, earliest deadline first, a conversation in order.
3. `answering` makes the attempt: `agent.dispatch` says where, the run acts, `journals` knows what was done before.
4. `parking` keeps what needs an upstream that cannot take it now, and queues it again when one can.
5. `settle` stores the one outcome together with what has to be sent.
6. `watchers` hear: who waits for the reply, who gets the pieces of the answer.
7. `outbox` hands replies to their transport until they are confirmed.

Beside the way: `deadlines` ends what waited too long, `tidy` forgets what is old, `queries` answers questions about
requests. After a crash `recovery` puts what ran back into the queue: there is no second way to start. The owners wake
one another by `signals`, and write by `storing` what must be written whatever the disk says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from edged.access.gate import Gate
from edged.agent.dispatch import Dispatcher
from edged.agent.learning import Learning
from edged.config import Config
from edged.host.alarms import Alarms
from edged.host.last_end import LastEnd
from edged.interfaces import Deliverer
from edged.requests.answering import Answering
from edged.requests.deadlines import Deadlines
from edged.requests.estimate import Needs
from edged.requests.inbox import Inbox
from edged.requests.journals import Journals
from edged.requests.outbox import Outbox
from edged.requests.parking import Parking
from edged.requests.queries import Queries
from edged.requests.recovery import Recovery, Tell
from edged.requests.settle import Settler
from edged.requests.signals import Signals
from edged.requests.tidy import Tidy
from edged.requests.watchers import Watchers
from edged.requests.worker import Worker
from edged.store.database import Database
from edged.tools.toolbox import Toolbox
from edged.types import Reply, Speed
from edged.upstreams import Cloud


class Pipeline:
    """The owners, put together, and the face that the rest of the daemon sees. `run` is its task.

    Args:
        deliverers: who carries replies, by the name of the transport.
        last_end: how the last process ended; None: it was this one.
        tell: gets (event name, data).
        changed: called whenever the counts may be others.
        settled: gets (agent, reply) of every outcome.
        speeds: the measured speeds of models, by name.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        dispatcher: Dispatcher,
        toolbox: Toolbox,
        cloud: Cloud,
        gate: Gate,
        learning: Learning,
        *,
        deliverers: Mapping[str, Deliverer],
        last_end: Callable[[], LastEnd | None],
        tell: Tell = lambda name, data: None,
        changed: Callable[[], None] = lambda: None,
        settled: Callable[[str, Reply], None] = lambda agent, reply: None,
        speeds: Callable[[], Mapping[str, Speed]] = dict,
    ) -> None:
        self._signals = signals = Signals()
        self._alarms = alarms = Alarms()
        self._needs = needs = Needs()
        self._watchers = watchers = Watchers(database)
        journals = Journals(database, toolbox)
        settler = Settler(config, database, dispatcher, journals, watchers, signals, changed=changed, settled=settled)
        self._parking = parking = Parking(config, database, cloud, signals, changed=changed, parked=watchers.parked)
        answering = Answering(
            config,
            database,
            dispatcher,
            toolbox,
            gate,
            journals,
            settler,
            parking,
            watchers,
            alarms,
            signals,
            needs,
            learning,
        )
        recovery = Recovery(config, database, settler, last_end=last_end, tell=tell)
        self._worker = worker = Worker(database, answering, settler, recovery, signals)
        self._inbox = inbox = Inbox(config, database, dispatcher, gate, worker, watchers, signals, changed=changed)
        self._deadlines = Deadlines(database, settler, alarms, signals, expired=worker.clear)
        self._outbox = Outbox(database, deliverers, signals)
        self._tidy = Tidy(config, database, tuple(deliverers), signals)
        queries = Queries(
            config, database, dispatcher, toolbox, gate, inbox, worker, needs, tuple(deliverers), speeds=speeds
        )

        self.crowded = signals.crowded.set
        self.accept = inbox.accept
        self.leave = inbox.leave
        self.forget_packets = inbox.forget_packets
        self.requeue = inbox.requeue
        self.refuse = inbox.refuse
        self.pause_batch = worker.pause_batch
        self.cancel = worker.cancel
        self.link_changed = parking.link_changed
        self.result = watchers.result
        self.until_parked = watchers.until_parked
        self.is_awaited = watchers.is_awaited
        self.get = queries.get
        self.find = queries.find
        self.latest = queries.latest
        self.counts = queries.counts
        self.outlook = queries.outlook
        self.explain = queries.explain
        self.recover = recovery.begin

    async def run(self) -> None:
        """Work, expire, deliver and tidy until cancelled; ends with an exception if one of them does."""
        self._signals.everything()
        with self._alarms:
            async with asyncio.TaskGroup() as group:
                for owner in (self._worker, self._parking, self._deadlines, self._outbox, self._tidy):
                    group.create_task(owner.run(), name=f"edged.requests.{type(owner).__name__.lower()}")

    async def stop(self) -> None:
        """Take nothing more, finish what runs within a grace, put the rest back, let replies go out."""
        self._inbox.close()
        await self._worker.stop()
        await self._outbox.flush()
