"""Requests come in: each is checked, and stored before anyone is told that it was accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

import apsw

from edged import wire
from edged.access.gate import Gate
from edged.agent import router
from edged.agent.dispatch import Dispatcher
from edged.agent.router import Decision
from edged.config import Config
from edged.errors import Busy, EdgedError, Forbidden, NoMemory, UnknownAgent
from edged.host import clock
from edged.host.fault_points import point
from edged.requests.signals import Signals
from edged.requests.storing import STORE_REFUSES
from edged.requests.watchers import OnDelta, Watchers
from edged.requests.worker import Worker
from edged.store import audit, lookup, requests, retention
from edged.store.database import Database
from edged.store.lookup import Row
from edged.store.requests import Accepted
from edged.types import JSON, Ask, AuditEntry


class Inbox:
    """Owns whether requests are taken in.

    Args:
        changed: called when a request was taken in.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        dispatcher: Dispatcher,
        gate: Gate,
        worker: Worker,
        watchers: Watchers,
        signals: Signals,
        *,
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._database = database
        self._dispatcher = dispatcher
        self._gate = gate
        self._worker = worker
        self._watchers = watchers
        self._signals = signals
        self._changed = changed
        self._boot = clock.boot_id()
        self._closed = False

    def close(self) -> None:
        """Take nothing in any more: the daemon stops."""
        self._closed = True

    def refuse(self, error: NoMemory | None) -> None:
        """Take in nothing new that has to be done on this board, with this error; None: take it in again. What is known
        already is answered as ever."""
        self._dispatcher.refusing = error

    async def forget_packets(self) -> None:
        """The broker has forgotten this node: packet ids seen so far mean nothing."""
        await self._database.write(requests.forget_packets)

    async def accept(self, ask: Ask, on_delta: OnDelta | None = None) -> Accepted:
        """Take a request in. When this returns it is on the medium: acknowledge it.

        Args:
            on_delta: gets (offset in characters, text) of the final answer's pieces while the request runs here.

        Raises:
            EdgedError: a typed refusal; nothing was stored.
        """
        point("accept.before")
        try:
            decision = self.check(ask)
            if ask.request.response_schema is not None:
                await self._dispatcher.check_schema(ask.request, decision)
                self._check_open()  # we may have begun to stop meanwhile
        except EdgedError as error:
            if not isinstance(error, Forbidden):  # which the gate has told
                self._gate.refused(ask.caller, "request.refused", error, agent=ask.request.agent)
            raise
        try:
            return await self._store(ask, decision, on_delta)
        except EdgedError as error:
            if isinstance(error, requests.StoreFullError):
                self._signals.crowded.set()
            self._gate.refused(ask.caller, "request.refused", error, agent=ask.request.agent)
            raise
        except STORE_REFUSES as error:
            raise Busy(f"the store cannot be written: {error}", retry_after_s=60.0) from None

    def leave(self, rid: str, ask: Ask, on_delta: OnDelta) -> None:
        """Who asked wants no more pieces of the answer."""
        self._watchers.leave(rid, _listener(ask, on_delta))

    async def _store(self, ask: Ask, decision: Decision, on_delta: OnDelta | None) -> Accepted:
        """In one commit, and begun in it where there is a slot: one write to the medium less."""
        rid = wire.new_rid()
        queue, size, loop = self._config.queue, self._config.store_bytes, asyncio.get_running_loop()
        short = self._gate.short(ask.caller)
        refusal = short or self._dispatcher.refusal(decision)
        slots = self._worker.free(most=1)
        clock_set = self._dispatcher.clock.is_set

        def take(c: apsw.Connection) -> tuple[Accepted, list[Row]]:
            log_bytes = self._database.overgrown
            accepted = requests.accept(
                c,
                ask,
                rid,
                self._boot,
                queue.max_waiting,
                size,
                log_bytes=log_bytes,
                refusal=refusal,
                decision=router.in_words(decision),
                remote=decision.remote,
                clock_set=clock_set,
            )
            if retention.is_crowded(c, size):
                loop.call_soon_threadsafe(self._signals.crowded.set)
            if not accepted.known:
                audit.append(c, _accepted(ask, rid))
            return accepted, requests.claim(c, slots)

        def committed(accepted: Accepted, claimed: list[Row]) -> None:
            if all(row.rid != accepted.rid for row in claimed):
                self._signals.timed.set()  # it waits: for its deadline, too
            if on_delta is not None and accepted.reply is None:
                self._watchers.listen(accepted.rid, _listener(ask, on_delta), on_delta)

        new = False
        try:
            accepted, _ = await self._worker.claiming(take, slots, durable=True, committed=committed)
            new = not accepted.known
        except asyncio.CancelledError:  # of whoever waits: the commit goes on
            new = True
            raise
        finally:
            if short is None and not new:  # what is known, or was not stored, costs nothing
                self._gate.give_back(ask.caller)
        point("accept.committed")
        self._changed()
        self._signals.outgoing.set()  # a known request that is asked for again is delivered again
        return accepted

    async def requeue(self, rid: str) -> Row:
        """Queue a request again that failed, expired or was quarantined: BadRequest where it did none of these."""
        clock_set = self._dispatcher.clock.is_set
        await self._database.write(lambda c: requests.try_again(c, rid, clock_set=clock_set))
        self._signals.queued.set()
        self._changed()
        return await self._database.read(lambda c: lookup.get(c, rid))

    def check(self, ask: Ask) -> Decision:
        """Everything about a request that can be refused without looking at the store; and where it goes. Raises
        EdgedError."""
        request = ask.request
        if request.agent not in self._config.agents and (ask.caller.agents or not self._config.agents):
            known = ", ".join(name for name in self._config.agents if name in ask.caller.agents) or "none"
            raise UnknownAgent(f"no agent {request.agent!r}; there are {known}")
        self._gate.ask(ask.caller, request.agent, request.priority)
        self._check_open()
        return self._dispatcher.decide(request)

    def _check_open(self) -> None:
        if self._closed:
            raise Busy("the daemon is stopping", retry_after_s=5.0)


def _listener(ask: Ask, on_delta: OnDelta) -> Hashable:
    """What names a listener: where its pieces go, so that a redelivered request does not double them."""
    return ask.address or on_delta


def _accepted(ask: Ask, rid: str) -> AuditEntry:
    about: dict[str, JSON] = {"agent": ask.request.agent, "transport": ask.caller.transport}
    return AuditEntry(what="request.accepted", who=ask.caller.client, role=ask.caller.role, rid=rid, about=about)
