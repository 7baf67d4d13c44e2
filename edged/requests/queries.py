"""What may be asked about requests: where one is, how long it will take, how many there are, where one would go."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import msgspec

from edged.access import policy
from edged.access.gate import Gate
from edged.agent.dispatch import Dispatcher
from edged.config import Config
from edged.errors import Forbidden
from edged.host import clock
from edged.requests import estimate
from edged.requests.attempt import Attempt
from edged.requests.estimate import Needs
from edged.requests.inbox import Inbox
from edged.requests.worker import Worker
from edged.store import audit, lifecycle, lookup
from edged.store import outbox as deliveries
from edged.store.database import Database
from edged.store.journal import Journal
from edged.store.lifecycle import State
from edged.store.lookup import Row
from edged.tools.toolbox import Toolbox
from edged.types import JSON, Ask, Speed

COUNTED_S = 30.0  # how old the count of finished requests in the state document may be


class Queries:
    """Owns the last count of requests.

    Args:
        transports: that carry replies.
        speeds: the measured speeds of models, by name.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        dispatcher: Dispatcher,
        toolbox: Toolbox,
        gate: Gate,
        inbox: Inbox,
        worker: Worker,
        needs: Needs,
        transports: tuple[str, ...],
        *,
        speeds: Callable[[], Mapping[str, Speed]],
    ) -> None:
        self._config = config
        self._database = database
        self._dispatcher = dispatcher
        self._toolbox = toolbox
        self._gate = gate
        self._inbox = inbox
        self._worker = worker
        self._needs = needs
        self._transports = transports
        self._speeds = speeds
        self._counted: dict[str, int] = {}  # requests by state, and when
        self._counted_at = -math.inf

    async def get(self, rid: str) -> Row:
        """A request by rid; KeyError."""
        return await self._database.read(lambda c: lookup.get(c, rid))

    async def find(
        self, name: str, client: str | None = None, *, role: str | None = None, transport: str | None = None
    ) -> Row | None:
        """A request by rid or by its client's id."""
        return await self._database.read(lambda c: lookup.find(c, name, client, role=role, transport=transport))

    async def latest(self, limit: int, states: tuple[State, ...] = (), client: str | None = None) -> list[Row]:
        """The newest requests; of one client, where it is named."""
        return await self._database.read(lambda c: lookup.latest(c, limit, states, client))

    async def counts(self, *, exactly: bool = True) -> dict[str, JSON]:
        """Requests by state, replies on their way, and the head of the audit log: {requests: {STATE: N}, running,
        outbox_waiting, audit: {seq, head}}.

        Args:
            exactly: also what has its outcome. Else that is as it was up to COUNTED_S ago: under load it is asked every
                second, and goes through all rows.
        """
        if exactly or time.monotonic() - self._counted_at > COUNTED_S:
            self._counted = await self._database.read(lookup.counts)
            self._counted_at = time.monotonic()
        waiting, outbox, head = await self._database.read(
            lambda c: (lookup.unfinished(c), deliveries.waiting(c, self._transports), audit.head(c))
        )
        ended = {state: count for state, count in self._counted.items() if state not in lifecycle.UNFINISHED}
        known = {"seq": head.seq, "head": head.hash}
        running = len(self._worker.running)
        return {"requests": {**ended, **waiting}, "running": running, "outbox_waiting": outbox, "audit": known}

    async def outlook(self, row: Row) -> tuple[int, float | None]:
        """How many requests are taken before a waiting one, and the seconds until this one is answered, by measured
        rates (see `estimate`); None where that cannot be told, as for what waits for a link."""
        speeds, running = self._speeds(), self._worker.running
        if row.state is State.RUNNING:
            attempt = running.get(row.rid)
            return 0, self._left_s(attempt, speeds, len(running)) if attempt else None
        agents = await self._database.read(lambda c: lookup.ahead(c, row))
        if row.state is State.WAITING_LINK:
            return len(agents), None
        slots = self._worker.slots
        beside = min(slots, len(running) + len(agents) + 1)
        left = [self._left_s(attempt, speeds, beside) for attempt in running.values()]
        *before, mine = (self._work_s(agent, speeds, beside) for agent in (*agents, row.agent))
        return len(agents), _tenths(estimate.eta_s(mine, left, before, slots))

    async def explain(self, ask: Ask, *, decide: bool, measuring: bool = False) -> dict[str, JSON]:
        """Where a request would go now and why (see Dispatcher.explain); nothing is stored or done.

        Args:
            decide: also let the board's model choose a call, as it would, and count that in.
            measuring: it is one of many, of a caller who may manage: it counts for no limit, and the model gets no
                second look.
        """
        self._inbox.check(ask)
        if decide and not measuring:
            self._gate.spend(ask.caller, "request.refused")
        journal = Journal(self._database, "")  # nothing is written to it
        agent = policy.for_caller(ask.caller, self._config.agents[ask.request.agent])
        priority = ask.request.priority or ask.caller.highest  # as it would be stored
        request = msgspec.structs.replace(ask.request, priority=priority)
        explained = await self._dispatcher.explain(
            request,
            agent,
            self._toolbox,
            journal,
            decide=decide,
            second_look=not measuring,
            role=ask.caller.role,
        )
        if (call := explained["call"]) and call["name"] in agent.tools:
            try:
                policy.check_tool(ask.caller, call["name"])
            except Forbidden as error:
                explained["error"] = {"code": error.code, "message": error.message}
        return explained

    def _left_s(self, attempt: Attempt, speeds: Mapping[str, Speed], beside: int) -> float | None:
        elapsed_s = clock.boot() - attempt.began_boot
        return _tenths(estimate.left_s(self._work_s(attempt.agent, speeds, beside), elapsed_s))

    def _work_s(self, agent: str, speeds: Mapping[str, Speed], beside: int) -> float | None:
        """Seconds of work on a request of this agent."""
        settings = self._config.agents.get(agent)
        speed = speeds.get(settings.model) if settings else None
        return estimate.work_s(self._needs.of(agent), speed, beside)


def _tenths(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
