"""What a caller can do, whatever transport brought it: ask and follow requests, look after models, call tools.
Transports translate to this and back; nothing here knows how bytes travel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from edged import wire
from edged.access import policy
from edged.access.gate import Gate
from edged.access.policy import Policy
from edged.completions.embeddings import Embeds
from edged.completions.local import Chats, ModelAnswer, ModelAsk, OnCall, OnPiece
from edged.config import Config, PublishTool
from edged.errors import BadRequest, EdgedError, Forbidden
from edged.models.updates.updater import Updater, Watch
from edged.requests.journals import audited_call
from edged.requests.pipeline import Pipeline
from edged.requests.watchers import OnDelta
from edged.residency.governor import Governor
from edged.store.lifecycle import State
from edged.store.lookup import Row
from edged.store.requests import Accepted
from edged.tools.toolbox import Toolbox
from edged.tools.values import schema
from edged.types import JSON, Ask, AuditEntry, Caller, Embeddings, EmbedJob, Request, ToolCall
from edged.upstreams import Served

MAX_LISTED = 1000  # rows one list returns; what is older is asked for by name
# CONTRACT section 6: how an unfinished request is called
WORDS = {State.RECEIVED: "queued", State.RUNNING: "running", State.WAITING_LINK: "waiting_link"}

OnEvent = Callable[[str, dict[str, JSON]], None]


class Service:
    """One door for all transports but MQTT, which hands its requests to the pipeline directly.

    Args:
        status: makes the document of `edged status`.
        served: the models that servers on this board run.
        gate: who may do what; None: whoever got in may do everything.
    """

    def __init__(
        self,
        config: Config,
        pipeline: Pipeline,
        governor: Governor,
        toolbox: Toolbox,
        chats: Chats,
        embeds: Embeds,
        updater: Updater,
        *,
        status: Callable[[], Awaitable[dict[str, JSON]]],
        served: Served | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._gate = gate or Gate(Policy(config.agents, config.roles, config.access))
        self._config = config
        self._pipeline = pipeline
        self._governor = governor
        self._toolbox = toolbox
        self._chats = chats
        self._served = served or Served({})
        self._embeds = embeds
        self._updater = updater
        self._status = status
        self._listeners: list[OnEvent] = []
        self._cleanups: set[asyncio.Task[object]] = set()

    # -- events ----------------------------------------------------------------------------------------------------

    def tell(self, name: str, data: dict[str, JSON]) -> None:
        """An event, to all who subscribed."""
        for listener in list(self._listeners):
            listener(name, data)

    def subscribe(self, caller: Caller, listener: OnEvent) -> Callable[[], None]:
        """From now on `listener` gets every event; the returned function ends it. What tells of somebody's request is
        for whoever may manage."""

        def hear(name: str, data: dict[str, JSON]) -> None:
            if caller.manage or "rid" not in data:
                listener(name, data)

        self._listeners.append(hear)
        return lambda: self._listeners.remove(hear)

    # -- requests --------------------------------------------------------------------------------------------------

    def request(self, body: object, *, agent: str | None = None) -> Request:
        """A request from its decoded map. Where nobody names an agent and there is only one, it is meant."""
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
        accepting = asyncio.create_task(self._pipeline.accept(ask, on_delta), name="edged.accept")
        try:
            accepted = await asyncio.shield(accepting)
            return accepted.reply if accepted.reply is not None else await self._pipeline.result(accepted.rid)
        except asyncio.CancelledError:
            if gone is not None and gone.is_set() and ask.request.id is None and ask.key is None:
                cleanup = asyncio.create_task(self._abandon(accepting), name="edged.abandoned")
                self._cleanups.add(cleanup)
                cleanup.add_done_callback(self._cleanups.discard)
            raise

    async def _abandon(self, accepting: asyncio.Task[Accepted]) -> None:
        """End a request whose client has left, maybe before it was stored."""
        with contextlib.suppress(EdgedError):  # refused: nobody is there to be told
            accepted = await accepting
            if accepted.reply is None and not self._pipeline.is_awaited(accepted.rid):
                await self._pipeline.cancel(accepted.rid)

    async def find(self, caller: Caller, name: str) -> Row:
        """A request by id among the caller's own; for whoever may manage, also by rid among all.

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

    async def view(self, row: Row) -> JSON:
        """The reply, or how far it is: {id, rid, status: queued | running | waiting_link, position, eta_s}."""
        if row.reply is not None:
            return msgspec.json.decode(row.reply)
        position, eta = await self._pipeline.outlook(row)
        return {"id": row.id, "rid": row.rid, "status": WORDS[row.state], "position": position, "eta_s": eta}

    async def cancel(self, caller: Caller, name: str) -> Row:
        """End a request; one that has its outcome keeps it."""
        row = await self.find(caller, name)
        self._note("request.cancelled", caller, row.rid)
        return await self._pipeline.cancel(row.rid) or row

    async def requeue(self, caller: Caller, name: str) -> Row:
        """Queue a request again that failed, expired or was quarantined."""
        self._gate.manage(caller, "queue requests again", request=name)
        row = await self.find(caller, name)
        return await self._pipeline.requeue(row.rid)

    async def latest(self, caller: Caller, limit: int, state: str | None = None) -> list[JSON]:
        """The newest requests, briefly; of one state, where one is named. Of all clients for whoever may manage."""
        if type(limit) is not int or not 1 <= limit <= MAX_LISTED:
            raise BadRequest(f"limit: 1 to {MAX_LISTED}")
        try:
            states = (State(state),) if state else ()
        except ValueError:
            raise BadRequest(f"state: allowed are {', '.join(State)}") from None
        whose = None if caller.manage else caller.client
        return [_brief(row) for row in await self._pipeline.latest(limit, states, whose)]

    async def explain(self, caller: Caller, body: object, *, decide: bool) -> JSON:
        """Where a request would be answered and why, without doing anything (see requests.queries)."""
        request = self.request(body)
        return await self._pipeline.explain(Ask(request=request, caller=caller), decide=decide)

    # -- models ----------------------------------------------------------------------------------------------------

    async def status(self, caller: Caller) -> dict[str, JSON]:
        """The state of the daemon, who of it the caller can ask, and what else it may."""
        agents = {
            name: {"model": agent.model, "route": agent.route, "privacy": agent.privacy}
            for name, agent in self._config.agents.items()
            if name in caller.agents or caller.manage
        }
        you = {"client": caller.client, "role": caller.role or None, "manage": caller.manage}
        return {**await self._status(), "agents": agents, "you": you}

    def models(self) -> JSON:
        """The configured models, in their order, and what they take."""
        known = {**self._governor.status()["models"], **self._served.status()}
        return {name: known[name] for name in self._config.models if name in known}

    async def load(self, caller: Caller, name: str) -> None:
        """Load a model now."""
        self._gate.manage(caller, "load models", model=name)
        self._check_ours(name)
        await self._governor.load(name)

    async def unload(self, caller: Caller, name: str) -> bool:
        """Unload a model; False where it is in use or not loaded."""
        self._gate.manage(caller, "unload models", model=name)
        self._check_ours(name)
        return await self._governor.unload(name)

    def _check_ours(self, name: str) -> None:
        """BadRequest where a model is not edged's to load and unload."""
        if name in self._served:
            text = f"model {name!r} runs in the server at {self._served.where(name)}, which loads and unloads it"
            raise BadRequest(f"{text}; `status` says whether it answers")

    async def update(self, caller: Caller, name: str, source: str | None, watch: Watch) -> JSON:
        """Bring a new file of a model in, if it works (see Updater.update)."""
        self._gate.manage(caller, "update models", model=name)
        self._check_ours(name)
        return await self._updater.update(name, source, watch)

    async def rollback(self, caller: Caller, name: str) -> JSON:
        """Back to the file before the last update."""
        self._gate.manage(caller, "roll models back", model=name)
        self._check_ours(name)
        return await self._updater.rollback(name)

    async def complete(
        self, caller: Caller, ask: ModelAsk, on_piece: OnPiece | None = None, on_call: OnCall | None = None
    ) -> ModelAnswer:
        """One completion of a plain model, as the request says; nothing of it is stored.

        Raises:
            Forbidden: the caller may not use the model.
            EdgedError: as the engine says; Busy where too many such completions wait, or the caller asks too often.
        """
        self._gate.model(caller, ask.model)
        self._gate.spend(caller, "completion.refused")
        ask = msgspec.structs.replace(ask, priority=caller.highest)
        return await self._chats.complete(ask, on_piece, on_call)

    async def embed(self, caller: Caller, job: EmbedJob) -> Embeddings:
        """Vectors for texts; nothing of it is stored.

        Raises:
            Forbidden: the caller may not use the model.
            EdgedError: as the engine says; Busy where too many such requests wait, or the caller asks too often.
        """
        self._gate.model(caller, job.model)
        self._gate.spend(caller, "completion.refused")
        return await self._embeds.embed(job)

    # -- tools -----------------------------------------------------------------------------------------------------

    def tools(self, caller: Caller) -> list[JSON]:
        """The tools that the caller may call, as the models see them."""
        return [
            {
                "name": name,
                "description": tool.description,
                "parameters": schema(tool.parameters),
                "effect": "write" if isinstance(tool, PublishTool) else tool.effect,
            }
            for name, tool in self._config.tools.items()
            if policy.may_tool(caller, name)
        ]

    async def call_tool(self, caller: Caller, name: str, arguments: dict[str, JSON], id: str | None = None) -> JSON:
        """Call a tool by hand. With an id an SQL write of the same caller happens once, however often it is called.

        Raises:
            BadRequest: no such tool, or arguments that do not fit its schema.
            Forbidden, Busy: the caller may not call it, or asks too often.
            ToolFailed: the tool's own reason.
        """
        self._gate.tool(caller, name)
        self._gate.spend(caller, "tool.refused")
        rid = wire.new_rid() if id is None else wire.named_rid(caller.client, id)
        outcome = "ok"
        try:
            return await self._toolbox.call_by_hand(name, arguments, rid)
        except EdgedError as error:
            outcome = error.code
            raise
        finally:
            about = audited_call(self._config.tools, ToolCall(name, arguments))
            self._note("tool.called", caller, rid, outcome, about)

    def _note(self, what: str, caller: Caller, rid: str = "", outcome: str = "ok", about: JSON = None) -> None:
        """To the audit log."""
        who = {"who": caller.client, "role": caller.role}
        self._gate.audit(AuditEntry(what=what, rid=rid, outcome=outcome, about=about or {}, **who))


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
