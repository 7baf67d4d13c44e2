"""The end of a request: its one outcome is stored together with what has to be sent, and everyone who waits hears."""

from __future__ import annotations

import logging
from collections.abc import Callable

import apsw

from edged import wire
from edged.agent.accounting import Accounting
from edged.agent.dispatch import Dispatcher, Routing
from edged.config import Config
from edged.errors import EdgedError
from edged.host import clock
from edged.host.fault_points import point
from edged.requests.attempt import Attempt
from edged.requests.journals import Journals
from edged.requests.signals import Signals
from edged.requests.storing import until_stored
from edged.requests.watchers import Watchers
from edged.store import audit, conversations, learnt, requests
from edged.store.conversations import Turn
from edged.store.database import Database
from edged.store.journal import Journal
from edged.store.learnt import Lesson
from edged.store.lifecycle import State
from edged.store.lookup import Row
from edged.types import JSON, AuditEntry, Finding, Reply, Status, ToolRecord

log = logging.getLogger("edged.requests")


class Settler:
    """Stores outcomes.

    Args:
        changed: called after every outcome.
        settled: gets (agent, reply) of every outcome.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        dispatcher: Dispatcher,
        journals: Journals,
        watchers: Watchers,
        signals: Signals,
        *,
        changed: Callable[[], None],
        settled: Callable[[str, Reply], None],
    ) -> None:
        self._config = config
        self._database = database
        self._dispatcher = dispatcher
        self._journals = journals
        self._watchers = watchers
        self._signals = signals
        self._changed = changed
        self._settled = settled

    async def end(
        self, row: Row, status: Status, error: EdgedError, *, only: tuple[State, ...] = (), quarantine: bool = False
    ) -> bool:
        """Settle a request that nobody works on, without an answer. See `settle`."""
        reply = self.reply(row, status, error, await self._journals.records(row))
        return await self.settle(row, reply, only=only, quarantine=quarantine)

    def reply(
        self,
        row: Row,
        status: Status,
        error: EdgedError,
        records: tuple[ToolRecord, ...],
        attempt: Attempt | None = None,
    ) -> Reply:
        """The reply of a request without an answer; it tells what was done all the same."""
        run = attempt.run if attempt else None
        routing = attempt.routing if attempt else self._routing(row)
        accounting = (attempt.accounting if attempt else None) or Accounting(row.accepted_boot, row.spent)
        return Reply(
            id=row.id,
            rid=row.rid,
            status=Status.REFUSED if _may_be_asked_again(status, error, records) else status,
            tool_calls=records,
            route=self._dispatcher.route(row.agent, routing, run),
            usage=accounting.usage(),
            timing=accounting.timing(),
            error=wire.fault(error),
        )

    def _routing(self, row: Row) -> Routing:
        """Of a request that nobody has begun to work on: where it was going."""
        return Routing(row.findings, _nothing, self._dispatcher.recall(row.request, row.decision))

    async def settle(
        self,
        row: Row,
        reply: Reply,
        messages: Turn = (),
        *,
        journal: Journal | None = None,
        lesson: Lesson | None = None,
        only: tuple[State, ...] = (),
        quarantine: bool = False,
    ) -> bool:
        """Store the one outcome. A disk that refuses is asked again: the answer must not be lost. False where the
        request has its outcome already, or is in none of the states `only`.

        Args:
            messages: the turn as its conversation keeps it.
            journal: of the run that brought it; what it holds back is stored with it.
            lesson: what the request teaches.
        """
        body = wire.reply_bytes(reply)
        expiry = self._config.agents[row.agent].conversation_expiry_s if row.agent in self._config.agents else 0.0
        private = row.agent not in self._config.agents or self._dispatcher.is_private(row.request)

        def store(c: apsw.Connection) -> bool:
            if journal is not None:
                journal.catch_up(c)
            if not requests.settle(c, row.rid, reply.status, body, only=only, quarantine=quarantine):
                return False
            if messages:
                conversations.add_turn(c, row, messages, clock.wall() + expiry, private=private)
            if lesson is not None:
                learnt.keep(c, lesson)
            audit.append(c, _ended(row, reply))
            return True

        settled = await until_stored(lambda: self._database.write(store))
        point("settle.committed")
        if settled:
            self._watchers.ended(row.rid, body)
            self._settled(row.agent, reply)
            about = {"rid": row.rid, "agent": row.agent, "total_ms": round(reply.timing.total_ms)}
            log.info("%s", reply.status, extra={"event": "request_ended", **about})
            self._changed()
            self._signals.outgoing.set()
            self._signals.queued.set()  # the next of a conversation may go
            if row.remote:
                self._signals.parked.set()  # it may have been on its way to an upstream's room
        return settled


async def _nothing(findings: tuple[Finding, ...]) -> None:
    """Nobody keeps them: there will be no more."""


def _ended(row: Row, reply: Reply) -> AuditEntry:
    about: dict[str, JSON] = {"agent": row.agent}
    if reply.route is not None:
        about |= {"where": reply.route.where, "model": reply.route.model}
    outcome = reply.error.code if reply.error else "ok"
    return AuditEntry(what="request.ended", who=row.client, role=row.role, rid=row.rid, outcome=outcome, about=about)


def _may_be_asked_again(status: Status, error: EdgedError, records: tuple[ToolRecord, ...]) -> bool:
    """A retryable failure before anything was done is a refusal: it is not kept under the client's id."""
    return status is Status.FAILED and error.retryable and not records
