"""The way of a request, top to bottom: accept -> work -> settle -> deliver.

`accept` commits before anybody is told. `work` claims one row at a time and runs its agent. `settle` stores the one
outcome together with what has to be sent. `deliver` hands replies to their transport until they are confirmed. After a
crash `recover` puts what ran back into the queue: there is no second way to start.

Between `work` and `settle` lies the route: `router.decide` says where to try next, an attempt answers or shows why it
could not, and so on. What needs an upstream that cannot take it now is parked; `_link_loop` queues it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TypeVar

import apsw

from edged import wire
from edged.access import policy
from edged.access.gate import Gate
from edged.access.policy import Policy
from edged.agent.accounting import Accounting
from edged.agent.dispatch import Dispatcher, Trail
from edged.agent.loop import Run, Stream
from edged.config import Config, Tool
from edged.errors import (
    Busy,
    Cancelled,
    EdgedError,
    Expired,
    Forbidden,
    Internal,
    NoMemory,
    Quarantined,
    ToolFailed,
    UnknownAgent,
)
from edged.host import clock
from edged.host.fault_points import point
from edged.host.log import request_id
from edged.interfaces import Deliverer
from edged.requests import estimate
from edged.requests.estimate import Needs
from edged.store import audit, conversations, journal, lifecycle, lookup, requests, retention
from edged.store import outbox as deliveries
from edged.store.database import Database, Work
from edged.store.journal import Journal, Result, Step
from edged.store.lifecycle import State
from edged.store.lookup import Row
from edged.store.requests import Accepted, FreeSlots
from edged.tools.toolbox import Toolbox
from edged.types import (
    JSON,
    Ask,
    AuditEntry,
    Delivery,
    Finding,
    PastTurn,
    Priority,
    Reply,
    Request,
    Speed,
    Status,
    ToolCall,
    ToolRecord,
)
from edged.upstreams import Cloud

log = logging.getLogger("edged.requests.pipeline")

MAX_RUNNING = 16  # requests worked on at once: as many as a model has places for
MAX_HELD = 64  # with those whose outcome is being stored: a disk that refuses holds so many in memory
MAX_BATCH = 8  # of these, batch work: more gain nothing on boards of 2 to 8 cores, and the rest is for who waits
MAX_SENDING = 64  # replies on their way at once; the broker's Receive Maximum bounds it further
GRACE_S = 5.0  # a stop waits this long for running requests; what is not done goes back into the queue
FLUSH_S = 2.0  # and this long for replies on their way; what is not confirmed is sent after the next start
HOUSEKEEPING_S = 60.0  # how often finished requests are forgotten; cheap when there is nothing to do
CROWDED_S = 1.0  # in a full store where nothing could be forgotten it is looked again so soon: a look reads all of it
COUNTED_S = 30.0  # how old the count of finished requests in the state document may be
RETRY_S = (0.5, 10.0)  # first and longest pause before something that the disk refused is tried again
# A full, failing or read-only disk, or somebody else's lock: what another try may find otherwise.
STORE_REFUSES = (apsw.FullError, apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.BusyError)

OnDelta = Callable[[int, str], None]
Tell = Callable[[str, dict[str, JSON]], None]
UntilStored = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
T = TypeVar("T")


class Pipeline:
    """Owns the life of requests. `run` is its task; `deliverers` maps a transport to whoever carries its replies."""

    def __init__(
        self,
        config: Config,
        database: Database,
        dispatcher: Dispatcher,
        toolbox: Toolbox,
        cloud: Cloud,
        *,
        tell: Tell = lambda name, data: None,
        changed: Callable[[], None] = lambda: None,
        settled: Callable[[str, Reply], None] = lambda agent, reply: None,
        speeds: Callable[[], Mapping[str, Speed]] = dict,
        gate: Gate | None = None,
    ) -> None:
        self._gate = gate or Gate(Policy(config.agents, config.roles, config.access))
        self._config = config
        self._database = database
        self._dispatcher = dispatcher
        self._toolbox = toolbox
        self._cloud = cloud
        self._tell = tell
        self._changed = changed
        self._settled = settled
        self._speeds = speeds
        self._needs = Needs()
        self.deliverers: Mapping[str, Deliverer] = {}
        self._boot = clock.boot_id()
        self._waiting, self._outgoing, self._deadlines = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle, self._sent, self._link = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._crowded = asyncio.Event()
        self._idle.set()
        self._running: dict[str, _Attempt] = {}
        self._promised = 0  # places that a claim may fill which is being written
        self._group: asyncio.TaskGroup | None = None
        self._suspects: set[str] = set()
        self._counted: dict[str, int] = {}  # requests by state, and when
        self._counted_at = -math.inf
        self._resumed: set[str] = set()  # queued for an upstream's room, and not there yet
        self._sending: set[int] = set()
        self._results: dict[str, set[asyncio.Future[bytes]]] = {}
        self._watchers: dict[str, list[OnDelta]] = {}
        self._stopping = self._batch_paused = False

    # -- accept ----------------------------------------------------------------------------------------------------

    async def accept(self, ask: Ask, on_delta: OnDelta | None = None) -> Accepted:
        """Take a request in. When this returns it is on the medium: acknowledge it.

        Args:
            on_delta: gets (offset in characters, text) of the final answer's pieces while the request runs here.

        Raises:
            EdgedError: a typed refusal; nothing was stored.
        """
        point("accept.before")
        try:
            self._check(ask)
            if ask.request.response_schema is not None:
                await self._dispatcher.check_schema(ask.request)
                self._check(ask)  # we may have begun to stop meanwhile
        except EdgedError as error:
            if not isinstance(error, Forbidden):  # which the gate has told
                self._gate.refused(ask.caller, "request.refused", error, agent=ask.request.agent)
            raise
        rid = wire.new_rid()
        queue, size, loop = self._config.queue, self._config.store_bytes, asyncio.get_running_loop()
        short = self._gate.short(ask.caller)
        refusal = short or self._dispatcher.refusal(ask.request)
        if on_delta:
            self._watchers.setdefault(rid, []).append(on_delta)
        places = self._free(most=1)

        def take(c: apsw.Connection) -> tuple[Accepted, list[Row]]:
            log_bytes = self._database.overgrown
            accepted = requests.accept(
                c, ask, rid, self._boot, queue.max_waiting, size, log_bytes=log_bytes, refusal=refusal
            )
            if retention.is_crowded(c, size):
                loop.call_soon_threadsafe(self._crowded.set)
            if not accepted.known:
                audit.append(c, _accepted(ask, rid))
            # Begun in the same commit where there is a place: one write to the medium less.
            return accepted, requests.claim(c, places)

        try:
            accepted, _ = await self._claiming(take, places, durable=True)
        except STORE_REFUSES as error:
            raise Busy(f"the store cannot be written: {error}", retry_after_s=60.0) from None
        except EdgedError as error:
            if isinstance(error, requests.StoreFullError):
                self._crowded.set()
            self._gate.refused(ask.caller, "request.refused", error, agent=ask.request.agent)
            if short is None:
                self._gate.give_back(ask.caller)
            raise
        finally:
            watchers = self._watchers.pop(rid, [])
        if accepted.known and short is None:
            self._gate.give_back(ask.caller)
        if watchers and accepted.reply is None:
            self._watchers.setdefault(accepted.rid, []).extend(watchers)
        point("accept.committed")
        self._changed()
        self._outgoing.set()  # a known request that is asked for again is delivered again
        return accepted

    def _check(self, ask: Ask) -> None:
        """Everything about a request that can be refused without looking at the store."""
        request = ask.request
        if request.agent not in self._config.agents and (ask.caller.agents or not self._config.agents):
            known = ", ".join(name for name in self._config.agents if name in ask.caller.agents) or "none"
            raise UnknownAgent(f"no agent {request.agent!r}; there are {known}")
        self._gate.ask(ask.caller, request.agent, request.priority)
        self._dispatcher.check(request)
        if self._stopping:
            raise Busy("the daemon is stopping", retry_after_s=5.0)

    def pause_batch(self, paused: bool) -> None:
        """Begin no batch work while paused; it waits in the queue."""
        self._batch_paused = paused
        self._waiting.set()

    def refuse(self, error: NoMemory | None) -> None:
        """Take in nothing new that has to be done on this board, with this error; None: take it in again. What is known
        already is answered as ever."""
        self._dispatcher.refusing = error

    # -- what callers may ask --------------------------------------------------------------------------------------

    async def result(self, rid: str) -> bytes:
        """The reply's canonical bytes, as soon as there is one. KeyError: no such request."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._results.setdefault(rid, set()).add(future)
        try:
            row = await self.get(rid)
            return row.reply if row.reply is not None else await future
        finally:
            waiting = self._results.get(rid, set())
            waiting.discard(future)
            if not waiting:
                self._results.pop(rid, None)

    def is_awaited(self, rid: str) -> bool:
        """Whether somebody waits in `result`."""
        return bool(self._results.get(rid))

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

    async def outlook(self, row: Row) -> tuple[int, float | None]:
        """How many requests are taken before a waiting one, and the seconds until this one is answered, by measured
        rates (see `estimate`); None where that cannot be told, as for what waits for a link."""
        speeds = self._speeds()
        if row.state is State.RUNNING:
            attempt = self._running.get(row.rid)
            return 0, self._left_s(attempt, speeds, len(self._running)) if attempt else None
        agents = await self._database.read(lambda c: lookup.ahead(c, row))
        if row.state is State.WAITING_LINK:
            return len(agents), None
        places = self._places()
        beside = min(places, len(self._running) + len(agents) + 1)
        running = [self._left_s(attempt, speeds, beside) for attempt in self._running.values()]
        *before, mine = (self._work_s(agent, speeds, beside) for agent in (*agents, row.agent))
        return len(agents), _tenths(estimate.eta_s(mine, running, before, places))

    def _left_s(self, attempt: _Attempt, speeds: Mapping[str, Speed], beside: int) -> float | None:
        elapsed_s = clock.boot() - attempt.began_boot
        return _tenths(estimate.left_s(self._work_s(attempt.agent, speeds, beside), elapsed_s))

    def _work_s(self, agent: str, speeds: Mapping[str, Speed], beside: int) -> float | None:
        """Seconds of work on a request of this agent."""
        settings = self._config.agents.get(agent)
        speed = speeds.get(settings.model) if settings else None
        return estimate.work_s(self._needs.of(agent), speed, beside)

    async def counts(self, *, exactly: bool = True) -> dict[str, JSON]:
        """Requests by state, replies on their way, and the head of the audit log.

        Args:
            exactly: also what has its outcome. Else that is as it was up to COUNTED_S ago: under load it is asked every
                second, and goes through all rows.
        """
        if exactly or time.monotonic() - self._counted_at > COUNTED_S:
            self._counted = await self._database.read(lookup.counts)
            self._counted_at = time.monotonic()
        waiting, outbox, head = await self._database.read(
            lambda c: (lookup.unfinished(c), deliveries.waiting(c), audit.head(c))
        )
        ended = {state: count for state, count in self._counted.items() if state not in lifecycle.UNFINISHED}
        counted = {**ended, **waiting}
        known = {"seq": head.seq, "head": head.hash}
        return {"requests": counted, "running": len(self._running), "outbox_waiting": outbox, "audit": known}

    async def cancel(self, name: str, client: str | None = None) -> Row | None:
        """End a request by rid or id; None where there is none. One that has its outcome keeps it."""
        row = await self.find(name, client)
        if row is None or row.state not in lifecycle.UNFINISHED:
            return row
        if row.rid not in self._running:
            error = Cancelled("the request was cancelled")
            reply = self._ended(row, Status.CANCELLED, error, await self._records_so_far(row))
            if await self._settle(row, reply, only=lifecycle.WAITING):
                return await self.get(row.rid)
        if attempt := self._running.get(row.rid):  # it may have been claimed just now
            attempt.cancelled = True
            attempt.interrupt()
            await attempt.ended.wait()
        return await self.get(row.rid)

    async def requeue(self, rid: str) -> Row:
        """Queue a request again that failed, expired or was quarantined: BadRequest where it did none of these."""
        await self._database.write(lambda c: requests.try_again(c, rid))
        self._waiting.set()
        self._changed()
        return await self.get(rid)

    async def explain(self, ask: Ask, *, decide: bool) -> dict[str, JSON]:
        """Where a request would go now and why; nothing is stored or done.

        Args:
            decide: also let the board's model choose a call, as it would, and count that in.
        """
        self._check(ask)
        if decide:
            self._gate.spend(ask.caller, "request.refused")
        journal = Journal(self._database, "")  # nothing is written to it
        agent = policy.for_caller(ask.caller, self._config.agents[ask.request.agent])
        explained = await self._dispatcher.explain(ask.request, agent, self._toolbox, journal, decide=decide)
        if (call := explained["call"]) and call["name"] in agent.tools:
            try:
                policy.check_tool(ask.caller, call["name"])
            except Forbidden as error:
                explained["error"] = {"code": error.code, "message": error.message}
        return explained

    # -- work ------------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Once, before `run`: what ran when the daemon died goes on, unless it killed the daemon too often. Until all
        of it is over one request runs at a time: so the next death is counted against its cause only."""
        running = await self._database.write(lambda c: requests.recover(c, self._boot))
        for row in running:
            if row.attempts >= self._config.queue.max_attempts:
                error = Quarantined(f"the daemon died {row.attempts} times while working on this request")
                log.error("request quarantined", extra={"rid": row.rid})
                self._tell("request_quarantined", {"rid": row.rid, "attempts": row.attempts})
                reply = self._ended(row, Status.FAILED, error, await self._records_so_far(row))
                await self._settle(row, reply, quarantine=True)
            else:
                await self._database.write(functools.partial(requests.requeue, rid=row.rid))
                self._suspects.add(row.rid)
        if running:
            log.info("%d requests were running when the daemon ended", len(running))
        # what waits for a link and no longer could: its agent or the upstreams are gone from the configuration
        able = tuple(name for name in self._config.agents if self._config.upstreams_of(name))
        await self._database.write(lambda c: requests.resume_others(c, able))

    async def run(self) -> None:
        """Work, expire, deliver and tidy until cancelled; ends with an exception if one of them does."""
        self._waiting.set()
        self._outgoing.set()
        self._deadlines.set()
        self._link.set()
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._work_loop(), name="edged.requests.pipeline.work")
            group.create_task(self._link_loop(), name="edged.requests.pipeline.link")
            group.create_task(self._expire_loop(), name="edged.requests.pipeline.expire")
            group.create_task(self._deliver_loop(group), name="edged.requests.pipeline.deliver")
            group.create_task(self._tidy_loop(), name="edged.requests.pipeline.tidy")

    async def stop(self) -> None:
        """Take nothing more, finish what runs within GRACE_S, put the rest back, let replies go out."""
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._idle.wait()
        for attempt in list(self._running.values()):
            attempt.interrupt()
        with contextlib.suppress(TimeoutError):  # an outcome the disk refuses is worked out again after the next start
            async with asyncio.timeout(FLUSH_S):
                await self._idle.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                self._sent.clear()
                while await self._database.read(deliveries.waiting):
                    await self._sent.wait()
                    self._sent.clear()

    async def _work_loop(self) -> None:
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            while (places := self._free()).all > 0:
                # lazy: a claim that is lost with the power only means that the attempt is not counted
                _, rows = await self._until_stored(
                    functools.partial(self._claiming, lambda c: (None, requests.claim(c, places)), places)
                )
                if not rows:
                    break

    async def _claiming(
        self, work: Callable[[apsw.Connection], tuple[T, list[Row]]], places: FreeSlots, *, durable: bool = False
    ) -> tuple[T, list[Row]]:
        """Write what claims rows for these places, and begin the work on them, also where the caller leaves meanwhile:
        what is written is written. It is begun before anybody can hear of a later commit, a cancel's for one."""
        writing = self._database.post(work, durable=durable)
        self._promised += places.all
        self._idle.clear()

        def written(done: asyncio.Future[tuple[T, list[Row]]]) -> None:
            self._promised -= places.all
            rows = [] if done.cancelled() or done.exception() else done.result()[1]
            for row in rows:
                self._begin(row)
            self._look_whether_idle()
            if len(rows) == places.all:  # there may be more of them, and places again
                self._waiting.set()
            self._deadlines.set()

        writing.add_done_callback(written)
        return await asyncio.shield(writing)

    def _begin(self, row: Row) -> None:
        assert self._group is not None, "nothing is claimed before"
        attempt = self._running[row.rid] = _Attempt(row.agent, batch=row.request.priority is Priority.BATCH)
        if self._stopping:
            attempt.interrupt()
        task = self._group.create_task(self._work(row, attempt), name=f"edged.request.{row.rid}")
        task.add_done_callback(functools.partial(self._worked, row.rid))

    def _free(self, most: int = MAX_RUNNING) -> FreeSlots:
        """FreeSlots for requests to begin with."""
        if self._stopping or self._group is None:
            return FreeSlots(0, 0)
        batch = sum(attempt.batch for attempt in self._running.values())
        working = sum(not attempt.settling or bool(self._suspects) for attempt in self._running.values())
        held = len(self._running) + self._promised
        left = min(most, self._places() - working - self._promised, MAX_HELD - held)
        return FreeSlots(max(0, left), 0 if self._batch_paused else MAX_BATCH - batch - self._promised)

    def _places(self) -> int:
        """How many requests are worked on at once."""
        return 1 if self._suspects else MAX_RUNNING

    def _worked(self, rid: str, _: object) -> None:
        self._running.pop(rid).ended.set()
        if rid in self._resumed:
            self._resumed.discard(rid)
            self._link.set()
        self._look_whether_idle()
        self._waiting.set()

    def _look_whether_idle(self) -> None:
        if not self._running and not self._promised:
            self._idle.set()

    async def _work(self, row: Row, attempt: _Attempt) -> None:
        """From a claimed row to its stored outcome."""
        request_id.set(row.rid)
        point("work.claimed")
        tally = attempt.tally = Accounting(row.accepted_boot, row.spent)
        left = None if row.deadline_boot is None else row.deadline_boot - clock.boot()
        limit = asyncio.timeout(left)
        outcome: Reply | tuple[Status, EdgedError]
        try:
            with attempt.may_be_interrupted():
                async with limit:
                    answered = await self._answer(row, attempt, tally)
            if answered is None:
                return  # parked
            outcome = answered
        except asyncio.CancelledError:
            if not attempt.cancelled:
                # a disk that refuses: it stays marked as running, and `recover` finds it; or it was parked just now
                with contextlib.suppress(*STORE_REFUSES, lifecycle.IllegalTransition):
                    await self._database.write(lambda c: requests.release(c, row.rid, tally.spent()))
                raise
            outcome = Status.CANCELLED, Cancelled("the request was cancelled")
        except EdgedError as error:
            outcome = Status.FAILED, error
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                outcome = Status.EXPIRED, Expired("the deadline passed")
            else:
                log.exception("request failed through a bug")
                text = "an error inside edged; its log has the details under this rid"
                outcome = Status.FAILED, Internal(text)
        if not isinstance(outcome, Reply):
            records = await self._records_so_far(row, attempt.run)
            outcome = self._ended(row, *outcome, records, attempt)
        attempt.settling = True
        self._waiting.set()  # its place is free
        await self._settle(row, outcome, attempt.messages, journal=attempt.journal)

    async def _answer(self, row: Row, attempt: _Attempt, tally: Accounting) -> Reply | None:
        """The reply; None: it is parked."""
        agent = self._config.agents.get(row.agent)
        if agent is None:
            raise UnknownAgent(f"agent {row.agent!r} was taken out of the configuration while the request waited")
        caller = self._gate.policy.later(row.client, row.transport, row.role)  # a reload may have changed what it may
        self._gate.ask(caller, row.agent, None)
        history, steps = await self._known(row)
        attempt.journal = self._journal(row)
        run = attempt.run = Run(
            row.rid,
            policy.for_caller(caller, agent),
            row.request,
            toolbox=self._toolbox,
            permit=functools.partial(self._gate.tool, caller, rid=row.rid),
            journal=attempt.journal,
            history=history,
            steps=steps,
            stream=self._stream(row.request, row.rid),
            tally=tally,
            client=row.client,
        )
        attempt.trail = Trail(row.findings, functools.partial(self._keep_findings, row.rid))
        outcome = await self._dispatcher.answer(run, attempt.trail)
        if outcome is None:
            await self._park(row, tally, attempt.journal)
            return None
        attempt.messages = outcome.messages
        self._needs.learn(row.agent, tally.need())
        decision = attempt.trail.decision
        return Reply(
            id=row.id,
            rid=row.rid,
            status=Status.DONE,
            output=outcome.output,
            tool_calls=run.records,
            route=self._dispatcher.route(row.agent, attempt.trail, run.confidence, run.variant),
            usage=tally.usage(),
            timing=tally.timing(),
            degraded=decision is not None and decision.degraded,
        )

    async def _known(self, row: Row) -> tuple[list[PastTurn], list[Step]]:
        """Of most requests nothing: then the store is not asked."""
        if row.conversation is None and not row.begun:
            return [], []
        history = await self._database.read(lambda c: conversations.history(c, row))
        return history, await self._steps(row) if row.begun else []

    async def _steps(self, row: Row) -> list[Step]:
        """What was done for a request. An SQL write that did not get into the journal is found beside its effect.

        Raises:
            ToolFailed: a database cannot be read. What was done is not known then, and nothing may be done again.
        """
        steps = {step.number: step for step in await self._database.read(lambda c: journal.steps(c, row.rid))}
        for found in await self._toolbox.recall(row.rid):
            step = journal.kept(*found)
            if step.number not in steps or steps[step.number].result is None:
                await self._journal(row).finish(step)
                steps[step.number] = step
        return [steps[number] for number in sorted(steps)]

    def _journal(self, row: Row) -> Journal:
        return _AuditedJournal(self._database, row, self._until_stored, self._config.tools)

    async def _keep_findings(self, rid: str, findings: tuple[Finding, ...]) -> None:
        # lazy: losing it with the power only means that the board tries once more
        await self._until_stored(lambda: self._database.write(lambda c: requests.note(c, rid, findings), durable=False))

    async def _park(self, row: Row, tally: Accounting, journal: Journal) -> None:
        """Wait for an upstream, durably."""

        def park(c: apsw.Connection) -> None:
            journal.catch_up(c)
            requests.park(c, row.rid, self._config.queue.max_waiting, tally.spent())

        await self._until_stored(
            # lazy: losing it with the power only means that it runs at the next start
            lambda: self._database.write(park, durable=False)
        )
        point("link.parked")
        log.info("waits for a link", extra={"rid": row.rid})
        self._changed()
        self._deadlines.set()
        self._link.set()

    def _stream(self, request: Request, rid: str) -> Stream | None:
        """Feeds whoever watches; characters that came before somebody did are not repeated (offset tells)."""
        if not request.stream:
            return None

        def send(offset: int, text: str) -> None:
            for watcher in self._watchers.get(rid, ()):
                watcher(offset, text)

        return Stream(send)

    # -- the link --------------------------------------------------------------------------------------------------

    def link_changed(self) -> None:
        """An upstream came back, or has room again."""
        self._link.set()

    async def _link_loop(self) -> None:
        """Queue what waits for a link, no more of it than the upstreams have room for: a link that comes back is not
        buried under everything at once."""
        shares: dict[tuple[str, ...], list[str]] = {}
        for agent in self._config.agents:
            shares.setdefault(self._config.upstreams_of(agent), []).append(agent)
        while True:
            await self._link.wait()
            self._link.clear()
            for upstreams, agents in shares.items():
                room = self._cloud.room(upstreams) - len(self._resumed)
                if room > 0:
                    resume = functools.partial(requests.resume, agents=tuple(agents), limit=room)
                    rids = await self._until_stored(lambda: self._database.write(resume, durable=False))  # noqa: B023
                    self._resumed.update(rids)
                    if rids:
                        self._waiting.set()

    # -- settle ----------------------------------------------------------------------------------------------------

    async def _records_so_far(self, row: Row, run: Run | None = None) -> tuple[ToolRecord, ...]:
        """What was done for a request that has no answer, also by earlier attempts its run did not get to take over."""
        if run is None and not row.begun:
            return ()
        try:
            steps = await self._steps(row)
        except ToolFailed as error:
            log.warning("the reply tells what the journal knows: %s", error.message, extra={"rid": row.rid})
            steps = await self._database.read(lambda c: journal.steps(c, row.rid))
        known = [_record(step) for step in steps if step.result or self._may_have_changed(step.intent.call.name)]
        return max(tuple(known), run.records if run else (), key=len)

    def _may_have_changed(self, tool: str) -> bool:
        return tool in self._config.tools and self._toolbox.is_write(tool)

    def _ended(
        self,
        row: Row,
        status: Status,
        error: EdgedError,
        records: tuple[ToolRecord, ...],
        attempt: _Attempt | None = None,
    ) -> Reply:
        """The reply of a request without an answer; it tells what was done all the same."""
        run = attempt.run if attempt else None
        tally = (attempt.tally if attempt else None) or Accounting(row.accepted_boot, row.spent)
        return Reply(
            id=row.id,
            rid=row.rid,
            status=Status.REFUSED if _may_be_asked_again(status, error, records) else status,
            tool_calls=records,
            route=self._dispatcher.route(
                row.agent,
                attempt.trail if attempt else None,
                run.confidence if run else None,
                run.variant if run else "",
            ),
            usage=tally.usage(),
            timing=tally.timing(),
            error=wire.fault(error),
        )

    async def _settle(
        self,
        row: Row,
        reply: Reply,
        messages: conversations.Turn = (),
        *,
        journal: Journal | None = None,
        only: tuple[State, ...] = (),
        quarantine: bool = False,
    ) -> bool:
        """Store the one outcome. A disk that refuses is asked again: the answer must not be lost. False where the
        request has its outcome already, or is in none of the states `only`.

        Args:
            journal: of the run that brought it; what it holds back is stored with it.
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
            audit.append(c, _ended(row, reply))
            return True

        settled = await self._until_stored(lambda: self._database.write(store))
        self._suspects.discard(row.rid)
        self._watchers.pop(row.rid, None)
        point("settle.committed")
        if settled:
            self._settled(row.agent, reply)
            log.info(
                "%s", reply.status, extra={"rid": row.rid, "agent": row.agent, "total_ms": round(reply.timing.total_ms)}
            )
            for future in self._results.pop(row.rid, set()):
                if not future.done():
                    future.set_result(body)
            self._changed()
            self._outgoing.set()
            self._waiting.set()  # the next of a conversation may go
        return settled

    async def _until_stored(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write; a disk that refuses is asked again, without end."""
        pause, longest = RETRY_S
        while True:
            try:
                return await write()
            except STORE_REFUSES as error:
                log.error("the store cannot be written, trying again in %.1f s: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)

    async def _expire_loop(self) -> None:
        """Ends waiting requests at their deadline; running ones have a timeout of their own."""
        while True:
            self._deadlines.clear()
            for row in await self._database.read(lookup.overdue):
                waited = "waiting for a link" if row.state is State.WAITING_LINK else "in the queue"
                error = Expired(f"the deadline passed {waited}")
                reply = self._ended(row, Status.EXPIRED, error, await self._records_so_far(row))
                await self._settle(row, reply, only=lifecycle.WAITING)
            deadline = await self._database.read(lookup.next_deadline)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - clock.boot())):
                    await self._deadlines.wait()

    # -- deliver ---------------------------------------------------------------------------------------------------

    async def _deliver_loop(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._outgoing.wait()
            self._outgoing.clear()
            for delivery in await self._database.read(
                lambda c: deliveries.ready(c, tuple(self.deliverers), tuple(self._sending), MAX_SENDING)
            ):
                if len(self._sending) < MAX_SENDING:
                    self._sending.add(delivery.id)
                    group.create_task(self._deliver(delivery), name=f"edged.deliver.{delivery.id}")

    async def _deliver(self, delivery: Delivery) -> None:
        """One reply until it is confirmed."""
        try:
            await self.deliverers[delivery.transport].deliver(delivery)
            point("deliver.confirmed")
            # lazy: losing it with the power only means that the same bytes go out again
            await self._until_stored(
                lambda: self._database.write(lambda c: deliveries.confirm(c, delivery.id), durable=False, patient=True)
            )
            point("deliver.marked")
        finally:
            self._sending.discard(delivery.id)
            self._outgoing.set()
            self._sent.set()

    async def _tidy_loop(self) -> None:
        """Forgets what is older than the retention, and at once what there is no room for; nothing else depends on it,
        so a full disk may skip a turn."""
        keep_s, size = self._config.store.retention_days * 86400, self._config.store_bytes
        log_s = self._config.audit.keep_days * 86400

        def tidy(c: apsw.Connection) -> int:
            forgotten = retention.trim(c, keep_s, self._boot, size)
            return forgotten + audit.forget(c, log_s, crowded=not forgotten and retention.is_crowded(c, size))

        while True:
            crowded, forgotten = self._crowded.is_set(), 0
            self._crowded.clear()
            with contextlib.suppress(apsw.Error):
                while count := await self._database.write(tidy, durable=False):
                    forgotten += count  # in small transactions: requests that come in do not wait for it
            if crowded and not forgotten:
                await asyncio.sleep(CROWDED_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HOUSEKEEPING_S):
                    await self._crowded.wait()


class _Attempt:
    """A request being worked on: what is known of the run when it ends, however it ends, and how to end it.

    cancelled: it is interrupted because its client wants it; else because the daemon stops. settling: its outcome is
    being stored.
    """

    def __init__(self, agent: str, *, batch: bool) -> None:
        self.agent = agent
        self.batch = batch
        self.began_boot = clock.boot()
        self.tally: Accounting | None = None
        self.run: Run | None = None
        self.trail: Trail | None = None
        self.journal: Journal | None = None
        self.messages: conversations.Turn = ()
        self.cancelled = self.settling = False
        self.ended = asyncio.Event()
        self._interrupted = False
        self._working: asyncio.Task[None] | None = None

    def interrupt(self) -> None:
        """End the work on it, now or as soon as it begins. An outcome that is being stored is not touched: whoever
        waits would never hear of it."""
        self._interrupted = True
        if self._working:
            self._working.cancel()

    @contextlib.contextmanager
    def may_be_interrupted(self) -> Iterator[None]:
        """Around the work. A task that is cancelled before its first step would never run, nor store anything."""
        if self._interrupted:
            raise asyncio.CancelledError
        self._working = asyncio.current_task()
        try:
            yield
        finally:
            self._working = None


class _AuditedJournal(Journal):
    """Waits for a disk that refuses, as the settling behind it has to: a step that is not written down and fails would
    be told as not done. A call's entry in the audit log is part of the commit of its result."""

    def __init__(self, database: Database, row: Row, until_stored: UntilStored, tools: Mapping[str, Tool]) -> None:
        super().__init__(database, row.rid)
        self._row = row
        self._until_stored = until_stored
        self._tools = tools

    async def write(self, work: Work[None], *, durable: bool) -> None:
        """See Journal."""
        await self._until_stored(functools.partial(super().write, work, durable=durable))

    def finished(self, c: apsw.Connection, step: Step) -> None:
        """See Journal."""
        row, outcome = self._row, "ok" if step.result and step.result.ok else "tool_failed"
        about = audited_call(self._tools, step.intent.call)
        entry = AuditEntry(what="tool.called", who=row.client, role=row.role, rid=row.rid, outcome=outcome, about=about)
        audit.append(c, entry)


def audited_call(tools: Mapping[str, Tool], call: ToolCall) -> dict[str, JSON]:
    """A call as the audit log tells it."""
    tool = tools.get(call.name)
    named = {name for name, schema in tool.parameters.items() if "enum" in schema} if tool else ()
    private = tool.private if tool else True
    hidden = call.arguments if private is True else private or ()
    return {"tool": call.name, "arguments": audit.masked(call.arguments, named, hidden)}


def _accepted(ask: Ask, rid: str) -> AuditEntry:
    about: dict[str, JSON] = {"agent": ask.request.agent, "transport": ask.caller.transport}
    return AuditEntry(what="request.accepted", who=ask.caller.client, role=ask.caller.role, rid=rid, about=about)


def _ended(row: Row, reply: Reply) -> AuditEntry:
    about: dict[str, JSON] = {"agent": row.agent}
    if reply.route is not None:
        about |= {"where": reply.route.where, "model": reply.route.model}
    outcome = reply.error.code if reply.error else "ok"
    return AuditEntry(what="request.ended", who=row.client, role=row.role, rid=row.rid, outcome=outcome, about=about)


def _record(step: Step) -> ToolRecord:
    """A step of the journal as a reply tells it."""
    result = step.result or Result({"error": "the daemon ended meanwhile: it may have happened"}, False)
    return ToolRecord(step.intent.call.name, step.intent.call.arguments, result.value, result.ok)


def _tenths(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _may_be_asked_again(status: Status, error: EdgedError, records: tuple[ToolRecord, ...]) -> bool:
    """A retryable failure before anything was done is a refusal: it is not kept under the client's id."""
    return status is Status.FAILED and error.retryable and not records
