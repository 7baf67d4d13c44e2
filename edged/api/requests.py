"""Requests to agents: asked, followed, ended, listed and explained."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from edged import wire
from edged.access.gate import Gate
from edged.config import Config
from edged.errors import BadRequest, EdgedError, Forbidden
from edged.requests.pipeline import Pipeline
from edged.requests.watchers import OnDelta
from edged.store.lifecycle import State
from edged.store.lookup import Row
from edged.store.requests import Accepted
from edged.types import JSON, Ask, Caller, Request, Status

log = logging.getLogger("edged.api")

MAX_LISTED = 1000  # rows one list returns; what is older is asked for by name
_Waited = TypeVar("_Waited", bytes, bytes | None)
# CONTRACT section 6: how an unfinished request is called
WORDS = {State.RECEIVED: "queued", State.RUNNING: "running", State.WAITING_LINK: "waiting_link"}


class Requests:
    """One door for all transports."""

    def __init__(self, config: Config, pipeline: Pipeline, gate: Gate) -> None:
        self._config = config
        self._pipeline = pipeline
        self._gate = gate
        self._leaving: set[asyncio.Task[None]] = set()

    # -- asking ----------------------------------------------------------------------------------------------------

    def request(self, body: object, *, agent: str | None = None) -> Request:
        """A request from its decoded map. Where nobody names an agent and there is only one, it is meant.

        Raises:
            BadRequest, TooLarge: see wire.request_from_map.
        """
        if agent is None and isinstance(body, dict) and body.get("agent") is None and len(self._config.agents) == 1:
            agent = next(iter(self._config.agents))
        request = wire.request_from_map(body, agent=agent)
        if request.reply_to is not None:
            raise BadRequest("reply_to: is for MQTT 3.1.1; here the reply comes back the way the request came")
        return request

    async def submit(self, ask: Ask, on_delta: OnDelta | None = None) -> Accepted:
        """Take a request in; nobody waits here for its reply. Raises EdgedError for a refusal."""
        return await self._pipeline.accept(ask, on_delta)

    async def answer(self, ask: Ask, on_delta: OnDelta | None = None, *, gone: asyncio.Event | None = None) -> bytes:
        """Take a request in and wait for its reply's canonical bytes.

        Args:
            on_delta: gets (offset in characters, text) of the answer's pieces; offset 0 again: it begins anew.
            gone: set before this call is cancelled because the client went away. If its request had no id, nobody can
                ever get the answer: it is cancelled.

        Raises:
            EdgedError: a refusal; nothing was stored.
        """
        return await self._answer(ask, on_delta, gone, self._pipeline.result)

    async def answer_unless_parked(
        self, ask: Ask, on_delta: OnDelta | None = None, *, gone: asyncio.Event | None = None
    ) -> bytes | None:
        """As `answer`, for a client that does not wait for a link: None as soon as the request does. It goes on."""
        return await self._answer(ask, on_delta, gone, self._result_unless_parked)

    async def _result_unless_parked(self, rid: str) -> bytes | None:
        result = asyncio.create_task(self._pipeline.result(rid), name="edged.result")
        parked = asyncio.create_task(self._pipeline.until_parked(rid), name="edged.parked")
        try:
            await asyncio.wait([result, parked], return_when=asyncio.FIRST_COMPLETED)
            return result.result() if result.done() else parked.result()
        finally:
            result.cancel()
            parked.cancel()

    async def _answer(
        self, ask: Ask, on_delta: OnDelta | None, gone: asyncio.Event | None, wait: Callable[[str], Awaitable[_Waited]]
    ) -> bytes | _Waited:
        accepting = asyncio.create_task(self._pipeline.accept(ask, on_delta), name="edged.accept")
        try:
            accepted = await asyncio.shield(accepting)
            if accepted.reply is not None:
                return accepted.reply
            try:
                return await wait(accepted.rid)
            finally:
                if on_delta is not None:
                    self._pipeline.leave(accepted.rid, ask, on_delta)
        except asyncio.CancelledError:
            abandoned = gone is not None and gone.is_set() and ask.request.id is None and ask.key is None
            if abandoned or on_delta is not None or not accepting.done():
                leaving = asyncio.create_task(
                    self._see_off(accepting, ask, on_delta, cancel=abandoned), name="edged.abandoned"
                )
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)
            raise

    async def _see_off(
        self, accepting: asyncio.Task[Accepted], ask: Ask, on_delta: OnDelta | None, *, cancel: bool
    ) -> None:
        """See to a request whose client has left, maybe before it was stored.

        Args:
            cancel: end the request, unless somebody else waits for it.
        """
        try:
            accepted = await accepting
            if on_delta is not None:
                self._pipeline.leave(accepted.rid, ask, on_delta)
            if cancel and accepted.reply is None and not self._pipeline.is_awaited(accepted.rid):
                await self._pipeline.cancel(accepted.rid)
        except EdgedError:
            pass  # a refusal, which is in the audit log; its reader has left
        except Exception:
            log.exception("a request failed through a bug after its client had left")

    # -- requests that are there -----------------------------------------------------------------------------------

    async def forget_packets(self) -> None:
        """The broker has forgotten us: packet ids seen so far mean nothing."""
        await self._pipeline.forget_packets()

    async def find(self, caller: Caller, name: str) -> Row:
        """A request by id among the caller's own; for callers who may manage, also by rid among all.

        Raises:
            BadRequest: there is none, or none any more.
            Forbidden: it is one of an agent the caller may not use.
        """
        row = await self._pipeline.find(name, caller.client)
        if row is None and caller.manage:
            row = await self._pipeline.find(name)
        if row is None:
            raise BadRequest(f"no request {name!r}; what is finished is kept for a while only ([store] retention_days)")
        others = not self._gate.policy.has_roles  # with roles, one's own stay one's own, and the rest is for `manage`
        if others and row.agent not in caller.agents and row.agent in self._config.agents:
            raise Forbidden(f"{caller.client} may not see requests of agent {row.agent!r}")
        return row

    async def has(self, caller: Caller, id: str) -> bool:
        """Whether the caller has a request of this id in the store."""
        row = await self._pipeline.find(id, caller.client)
        return row is not None and row.id == id

    async def view(self, row: Row) -> JSON:
        """The reply, or how far it is: {id, rid, status: queued | running | waiting_link, position, eta_s}."""
        if row.reply is not None:
            return msgspec.json.decode(row.reply)
        position, eta = await self._pipeline.outlook(row)
        return {"id": row.id, "rid": row.rid, "status": WORDS[row.state], "position": position, "eta_s": eta}

    async def cancel_unnamed(self, caller: Caller, name: str) -> None:
        """End a request by rid or id for a caller whose name nobody knows, as over MQTT. Where roles decide, a role
        that may not manage ends what came the same way and was let in by the same role."""
        self._gate.enter(caller, "")
        mine = {} if caller.manage else {"role": caller.role, "transport": caller.transport}
        if (row := await self._pipeline.find(name, **mine)) is not None:
            await self._cancel(caller, row)

    async def cancel(self, caller: Caller, name: str) -> Row:
        """End a request; one that has its outcome keeps it. Raises as `find`."""
        return await self._cancel(caller, await self.find(caller, name))

    async def _cancel(self, caller: Caller, row: Row) -> Row:
        with self._gate.acting(caller, "request.cancelled", failed="request.kept", rid=row.rid) as act:
            row = await self._pipeline.cancel(row.rid) or row
            if row.status != Status.CANCELLED:
                act.outcome = row.status or row.state
        return row

    async def requeue(self, caller: Caller, name: str) -> Row:
        """Queue a request again that failed, expired or was quarantined."""
        with self._gate.managing(caller, "queue requests again", request=name):
            row = await self.find(caller, name)
            return await self._pipeline.requeue(row.rid)

    async def latest(self, caller: Caller, limit: int, state: str | None = None) -> list[JSON]:
        """The newest requests, briefly; of one state, where one is named. Callers who may manage see all clients':
        [{rid, id, client, agent, state, status, attempts, accepted_at, input}]."""
        if type(limit) is not int or not 1 <= limit <= MAX_LISTED:
            raise BadRequest(f"limit: 1 to {MAX_LISTED}")
        try:
            states = (State(state),) if state else ()
        except ValueError:
            raise BadRequest(f"state: allowed are {', '.join(State)}") from None
        whose = None if caller.manage else caller.client
        return [_brief(row) for row in await self._pipeline.latest(limit, states, whose)]

    async def explain(self, caller: Caller, body: object, *, decide: bool) -> JSON:
        """Where a request would be answered and why, without doing anything (see Pipeline.explain)."""
        request = self.request(body)
        return await self._pipeline.explain(Ask(request=request, caller=caller), decide=decide)


def _brief(row: Row) -> JSON:
    """A request in a list. `input` is empty where a salvage of the store could not read what was asked."""
    asked = row.request.messages[-1].content if row.request.messages else ""
    return {
        "rid": row.rid,
        "id": row.id,
        "client": row.client,
        "agent": row.agent,
        "state": row.state,
        "status": row.status,
        "attempts": row.attempts,
        "accepted_at": row.accepted_wall,
        "input": asked[:200],
    }
