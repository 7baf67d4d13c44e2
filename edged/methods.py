"""What a client on the socket can call, on top of the pipeline and the governor (CONTRACT section 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from edged import wire
from edged.config import Config, PublishTool
from edged.errors import BadRequest, Forbidden
from edged.governor.governor import Governor
from edged.pipeline import OnDelta, Pipeline
from edged.store.lifecycle import State
from edged.store.requests import Row
from edged.tools.values import schema
from edged.transport.unix import Method, Session
from edged.types import JSON, Ask

MAX_LISTED = 1000  # rows one `requests.list` returns; what is older is asked for by name
WORDS = {State.RECEIVED: "queued", State.RUNNING: "running"}  # CONTRACT section 6: how an unfinished request is called


class Methods:
    """The methods by name. `subscribers` get every event as a notification."""

    def __init__(self, config: Config, pipeline: Pipeline, governor: Governor, status: Callable[[], Any]) -> None:
        self._config = config
        self._pipeline = pipeline
        self._governor = governor
        self._status = status
        self._subscribers: list[Session] = []
        self._cleanups: set[asyncio.Task[Any]] = set()

    def table(self) -> dict[str, Method]:
        """For the transport."""
        return {
            "agent.ask": self.ask,
            "request.get": self.get,
            "request.cancel": self.cancel,
            "requests.list": self.requests,
            "status": self.status,
            "models.list": self.models,
            "models.load": self.load,
            "models.unload": self.unload,
            "tools.list": self.tools,
            "tools.call": self.call_tool,
            "events.subscribe": self.subscribe,
        }

    def tell(self, name: str, data: dict[str, JSON]) -> None:
        """An event, to all who subscribed."""
        for session in self._subscribers:
            session.notify("event", [{"event": name, **data}])

    async def ask(self, session: Session, msgid: int, params: dict[str, JSON]) -> JSON:
        """A request and its reply. If the client goes away and its request had no id, nobody can ever get the answer:
        it is cancelled."""
        only = next(iter(self._config.agents)) if len(self._config.agents) == 1 else None
        named = params.get("agent")
        request = wire.request_from_map(params, agent=only if named is None else None)
        if request.reply_to is not None:
            raise BadRequest("reply_to: is for MQTT 3.1.1; here the reply comes as the result of the call")
        watch: OnDelta | None = None
        if request.stream:

            def watch(offset: int, text: str) -> None:
                session.notify("agent.delta", [msgid, offset, text])

        accepted = await self._pipeline.accept(Ask(request=request, caller=session.caller), watch)
        try:
            return msgspec.json.decode(accepted.reply or await self._pipeline.result(accepted.rid))
        except asyncio.CancelledError:
            if session.gone.is_set() and request.id is None and not self._pipeline.is_awaited(accepted.rid):
                cleanup = asyncio.create_task(self._pipeline.cancel(accepted.rid), name="edged.unix.abandoned")
                self._cleanups.add(cleanup)
                cleanup.add_done_callback(self._cleanups.discard)
            raise

    async def get(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """The reply of a request by rid or id, or how far it is."""
        row = await self._find(session, _one(params, "name"))
        return await self._shown(row)

    async def cancel(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """End a request; the answer is its reply. One that has its outcome keeps it."""
        row = await self._find(session, _one(params, "name"))
        ended = await self._pipeline.cancel(row.rid)
        return await self._shown(ended or row)

    async def requests(self, _: Session, __: int, params: dict[str, JSON]) -> JSON:
        """The newest requests, briefly."""
        _known(params, {"limit", "state"})
        limit = params.get("limit", 20)
        if type(limit) is not int or not 1 <= limit <= MAX_LISTED:
            raise BadRequest(f"limit: 1 to {MAX_LISTED}")
        try:
            states = (State(params["state"]),) if params.get("state") else ()
        except ValueError:
            raise BadRequest(f"state: allowed are {', '.join(State)}") from None
        return [_brief(row) for row in await self._pipeline.latest(limit, states)]

    async def status(self, _: Session, __: int, params: dict[str, JSON]) -> JSON:
        """The state of the daemon."""
        _known(params, set())
        return await self._status()

    async def models(self, _: Session, __: int, params: dict[str, JSON]) -> JSON:
        """The configured models and what they take."""
        _known(params, set())
        return self._governor.status()["models"]

    async def load(self, _: Session, __: int, params: dict[str, JSON]) -> JSON:
        """Load a model now."""
        name = _one(params, "name")
        await self._governor.load(name)
        return {"model": name, "state": "ready"}

    async def unload(self, _: Session, __: int, params: dict[str, JSON]) -> JSON:
        """Unload a model that is not in use."""
        name = _one(params, "name")
        return {"model": name, "unloaded": await self._governor.unload(name)}

    async def tools(self, _: Session, __: int, params: dict[str, JSON]) -> JSON:
        """The tools as the models see them."""
        _known(params, set())
        return [
            {
                "name": name,
                "description": tool.description,
                "parameters": schema(tool.parameters),
                "effect": "write" if isinstance(tool, PublishTool) else tool.effect,
            }
            for name, tool in self._config.tools.items()
        ]

    async def call_tool(self, _: Session, __: int, params: dict[str, JSON]) -> JSON:
        """Refused until tools can be called by hand."""
        raise BadRequest("tools.call: not available yet; ask an agent that has the tool")

    async def subscribe(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """From now on every event comes as a notification `event`."""
        _known(params, set())
        if session not in self._subscribers:
            self._subscribers.append(session)
            session.on_close.append(lambda: self._subscribers.remove(session))
        return {"subscribed": True}

    async def _find(self, session: Session, name: str) -> Row:
        """By id among the client's own requests; by rid among all."""
        row = await self._pipeline.find(name, session.caller.client) or await self._pipeline.find(name)
        if row is None:
            raise BadRequest(f"no request {name!r}; what is finished is kept for a while only ([store] retention_days)")
        if row.agent not in session.caller.agents and row.agent in self._config.agents:
            raise Forbidden(f"{session.caller.client} may not see requests of agent {row.agent!r}")
        return row

    async def _shown(self, row: Row) -> JSON:
        if row.reply is not None:
            return msgspec.json.decode(row.reply)
        position = await self._pipeline.ahead(row) if row.state is State.RECEIVED else 0
        return {"id": row.id, "rid": row.rid, "status": WORDS[row.state], "position": position}


def _brief(row: Row) -> JSON:
    return {
        "rid": row.rid,
        "id": row.id,
        "client": row.client,
        "agent": row.agent,
        "state": row.state,
        "status": row.status,
        "attempts": row.attempts,
        "accepted_at": row.accepted_wall,
        "input": row.request.messages[-1].content[:200],
    }


def _known(params: dict[str, JSON], names: set[str]) -> None:
    if unknown := set(params) - names:
        raise BadRequest(f"unknown {', '.join(sorted(unknown))}; allowed are {', '.join(sorted(names)) or 'none'}")


def _one(params: dict[str, JSON], name: str) -> str:
    _known(params, {name})
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{name}: is required, a text")
    return value
