"""From a claimed request to its stored outcome: one attempt, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging

import apsw

from edged.access import policy
from edged.access.gate import Gate
from edged.agent import router
from edged.agent.accounting import Accounting
from edged.agent.dispatch import Dispatcher, Routing
from edged.agent.learning import Learning
from edged.agent.loop import Run
from edged.agent.router import Decision
from edged.config import Config
from edged.errors import Cancelled, EdgedError, Expired, Internal, UnknownAgent
from edged.host.alarms import Alarms
from edged.host.fault_points import point
from edged.host.log import request_id
from edged.requests.attempt import Attempt, NoRemoteSlot
from edged.requests.estimate import Needs
from edged.requests.journals import Journals
from edged.requests.parking import Parking
from edged.requests.settle import Settler
from edged.requests.signals import Signals
from edged.requests.storing import STORE_REFUSES, until_stored
from edged.requests.watchers import Watchers
from edged.store import lifecycle, requests
from edged.store.database import Database
from edged.store.journal import Journal
from edged.store.lookup import Row
from edged.tools.toolbox import Toolbox
from edged.types import Finding, Reply, Status

log = logging.getLogger("edged.requests")


class Answering:
    """Makes attempts. Keeps nothing itself: what is known of one is in its Attempt.

    Args:
        needs: learns what answered requests took.
        learning: judges what they teach.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        dispatcher: Dispatcher,
        toolbox: Toolbox,
        gate: Gate,
        journals: Journals,
        settler: Settler,
        parking: Parking,
        watchers: Watchers,
        alarms: Alarms,
        signals: Signals,
        needs: Needs,
        learning: Learning,
    ) -> None:
        self._config = config
        self._database = database
        self._dispatcher = dispatcher
        self._toolbox = toolbox
        self._gate = gate
        self._journals = journals
        self._settler = settler
        self._parking = parking
        self._watchers = watchers
        self._alarms = alarms
        self._signals = signals
        self._needs = needs
        self._learning = learning

    async def work(self, row: Row, attempt: Attempt) -> None:
        """From a claimed row to its stored outcome."""
        request_id.set(row.rid)
        point("work.claimed")
        accounting = attempt.accounting = Accounting(row.accepted_boot, row.spent)
        limit: asyncio.Timeout | None = None
        outcome: Reply | tuple[Status, EdgedError]
        try:
            with attempt.may_be_interrupted():
                async with self._alarms.timeout_at(row.deadline_boot) as limit:
                    answered = await self._answer(row, attempt, accounting)
            if answered is None:
                return
            outcome = answered
        except asyncio.CancelledError:
            if not attempt.cancelled:
                # a disk that refuses: it stays marked as running, and `recover` finds it; or it was parked just now
                with contextlib.suppress(*STORE_REFUSES, lifecycle.IllegalTransition):
                    await self._database.write(lambda c: requests.release(c, row.rid, accounting.spent()))
                raise
            outcome = Status.CANCELLED, Cancelled("the request was cancelled")
        except EdgedError as error:
            outcome = Status.FAILED, error
        except Exception as error:
            if isinstance(error, TimeoutError) and limit is not None and limit.expired():
                outcome = Status.EXPIRED, Expired("the deadline passed")
            else:
                log.exception("request failed through a bug", extra={"event": "request_bug"})
                text = "an error inside edged; its log has the details under this rid"
                outcome = Status.FAILED, Internal(text)
        if not isinstance(outcome, Reply):
            records = await self._journals.records(row, attempt.run)
            outcome = self._settler.reply(row, *outcome, records, attempt)
        attempt.settling = True
        self._signals.queued.set()  # its slot is free
        lesson = None
        if attempt.run is not None and outcome.status is Status.DONE:
            lesson = await self._learning.lesson(attempt.run, outcome.outcome, follows=attempt.follows)
        await self._settler.settle(row, outcome, attempt.messages, journal=attempt.journal, lesson=lesson)

    async def _answer(self, row: Row, attempt: Attempt, accounting: Accounting) -> Reply | None:
        """The reply; None: it is parked, or in the queue again."""
        agent = self._config.agents.get(row.agent)
        if agent is None:
            raise UnknownAgent(f"agent {row.agent!r} was taken out of the configuration while the request waited")
        caller = self._gate.policy.later(row.client, row.transport, row.role)  # a reload may have changed what it may
        self._gate.ask(caller, row.agent, None)
        history, steps = await self._journals.known(row)
        attempt.journal, attempt.follows = self._journals.of(row), bool(history)
        run = attempt.run = Run(
            row.rid,
            policy.for_caller(caller, agent),
            row.request,
            toolbox=self._toolbox,
            permit=functools.partial(self._gate.tool, caller, rid=row.rid),
            journal=attempt.journal,
            history=history,
            steps=steps,
            stream=self._watchers.stream(row.request, row.rid),
            accounting=accounting,
            client=row.client,
            role=caller.role,
            moment=self._dispatcher.clock.moment(row.accepted_wall if row.clock_set else None),
        )
        routing = attempt.routing = Routing(
            row.findings,
            functools.partial(self._keep_findings, row.rid),
            self._dispatcher.recall(row.request, row.decision),
            entering=functools.partial(self._enter, row, attempt),
        )
        try:
            outcome = await self._dispatcher.answer(run, routing)
        except NoRemoteSlot:
            await self._put_back(row, accounting, attempt.journal)
            return None
        if outcome is None:
            why = router.in_words(routing.decision) if routing.decision else ""
            await self._parking.park(row.rid, accounting.spent(), attempt.journal, why)
            return None
        attempt.messages = outcome.messages
        self._needs.learn(row.agent, accounting.need())
        return Reply(
            id=row.id,
            rid=row.rid,
            status=Status.DONE,
            output=outcome.output,
            finish=outcome.finish,
            outcome=outcome.kind,
            tool_calls=run.records,
            route=self._dispatcher.route(row.agent, attempt.routing, run),
            usage=accounting.usage(),
            timing=accounting.timing(),
            degraded=attempt.routing.degraded,
        )

    def _enter(self, row: Row, attempt: Attempt, decision: Decision) -> None:
        """A mind is about to be asked. Raises NoRemoteSlot."""
        attempt.go(remote=decision.remote)
        if row.remote and not attempt.remote:  # a slot, and an upstream's room, for somebody else
            self._signals.queued.set()
            self._signals.parked.set()

    async def _put_back(self, row: Row, accounting: Accounting, journal: Journal) -> None:
        """Wait in the queue for a slot."""

        def put_back(c: apsw.Connection) -> None:
            journal.catch_up(c)
            requests.release(c, row.rid, accounting.spent(), remote=True)

        # lazy: losing it with the power only means that it runs at the next start
        await until_stored(lambda: self._database.write(put_back, durable=False))
        self._signals.timed.set()

    async def _keep_findings(self, rid: str, findings: tuple[Finding, ...]) -> None:
        # lazy: losing it with the power only means that the board tries once more
        await until_stored(lambda: self._database.write(lambda c: requests.note(c, rid, findings), durable=False))
