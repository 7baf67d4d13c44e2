"""The methods of the Unix socket (CONTRACT section 5): parameters into calls of the API, results into maps."""

from __future__ import annotations

import msgspec

from edged.api import Api
from edged.errors import BadRequest
from edged.requests.watchers import OnDelta
from edged.transport.unix.server import Method, Session
from edged.types import JSON, Ask


class Methods:
    """The methods by name."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._subscribed: set[Session] = set()

    def table(self) -> dict[str, Method]:
        """For the transport."""
        return {
            "agent.ask": self.ask,
            "request.get": self.get,
            "request.cancel": self.cancel,
            "request.requeue": self.requeue,
            "requests.list": self.requests,
            "route.explain": self.explain,
            "status": self.status,
            "models.list": self.models,
            "models.load": self.load,
            "models.unload": self.unload,
            "models.update": self.update,
            "models.rollback": self.rollback,
            "agents.calibrate": self.calibrate,
            "request.correct": self.correct,
            "learn.add": self.learn,
            "learn.list": self.learnt,
            "learn.forget": self.forget,
            "tools.list": self.tools,
            "tools.call": self.call_tool,
            "mcp.list": self.mcp_servers,
            "mcp.check": self.mcp_check,
            "mcp.accept": self.mcp_accept,
            "events.subscribe": self.subscribe,
        }

    async def ask(self, session: Session, msgid: int, params: dict[str, JSON]) -> JSON:
        """A request and its reply."""
        request = self._api.requests.request(params)
        watch: OnDelta | None = None
        if request.stream:

            def watch(offset: int, text: str) -> None:
                session.notify("agent.delta", [msgid, offset, text])

        ask = Ask(request=request, caller=session.caller)
        return msgspec.json.decode(await self._api.requests.answer(ask, watch, gone=session.gone))

    async def get(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """The reply of a request by rid or id, or how far it is."""
        row = await self._api.requests.find(session.caller, _one(params, "name"))
        return await self._api.requests.view(row)

    async def cancel(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """End a request; the answer is its reply."""
        row = await self._api.requests.cancel(session.caller, _one(params, "name"))
        return await self._api.requests.view(row)

    async def requeue(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """Queue a request again; the answer is how far it is."""
        row = await self._api.requests.requeue(session.caller, _one(params, "name"))
        return await self._api.requests.view(row)

    async def requests(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """The newest requests, briefly."""
        _known(params, {"limit", "state"})
        return await self._api.requests.latest(session.caller, params.get("limit", 20), params.get("state"))

    async def explain(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """Where a request would be answered and why. decide: also ask the model which call it would make."""
        body = dict(params)
        decide = body.pop("decide", False)
        if not isinstance(decide, bool):
            raise BadRequest("decide: is true or false")
        return await self._api.requests.explain(session.caller, body, decide=decide)

    async def status(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """The state of the daemon."""
        _known(params, set())
        return await self._api.events.status(session.caller)

    async def models(self, _: Session, __: int, params: dict[str, JSON]) -> JSON:
        """The configured models and what they take."""
        _known(params, set())
        return self._api.models.status()

    async def load(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """Load a model now."""
        name = _one(params, "name")
        await self._api.models.load(session.caller, name)
        return {"model": name, "state": "ready"}

    async def unload(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """Unload a model that is not in use."""
        name = _one(params, "name")
        return {"model": name, "unloaded": await self._api.models.unload(session.caller, name)}

    async def update(self, session: Session, msgid: int, params: dict[str, JSON]) -> JSON:
        """Update a model: {name, source?}. How it goes comes as notifications `models.progress` [msgid, {state, ...}];
        it goes on when the caller leaves."""
        _known(params, {"name", "source"})
        name, source = _one({"name": params.get("name")}, "name"), params.get("source")
        if source is not None and not isinstance(source, str):
            raise BadRequest("source: is a text")
        return await self._api.models.update(
            session.caller, name, source, lambda progress: _notify(session, msgid, progress)
        )

    async def rollback(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """Back to the file before a model's last update."""
        return await self._api.models.rollback(session.caller, _one(params, "name"))

    async def calibrate(self, session: Session, msgid: int, params: dict[str, JSON]) -> JSON:
        """Calibrate an agent: {agent}. How it goes comes as notifications `models.progress` [msgid, {state, ...}]."""
        name = _one(params, "agent")
        return await self._api.calibrate.agent(session.caller, name, lambda progress: _notify(session, msgid, progress))

    async def correct(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """What would have been right for a request: {name, calls: [{name, arguments}]}; see api.Learnt."""
        name = _one(params, "name", "calls")
        return await self._api.learnt.correct(session.caller, name, params.get("calls"))

    async def learn(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """An example: {agent, text, calls: [{name, arguments}], role?}; see api.Learnt."""
        allowed = ("agent", "text", "calls", "role")
        agent, text = (_one(params, name, *allowed) for name in ("agent", "text"))
        return await self._api.learnt.add(session.caller, agent, text, params.get("calls"), _text(params, "role"))

    async def learnt(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """What agents have learnt: {agent?, role?}; see api.Learnt."""
        _known(params, {"agent", "role"})
        return await self._api.learnt.known(session.caller, _text(params, "agent"), _text(params, "role"))

    async def forget(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """Forget an example: {id}; those of an agent, of a role: {agent?, role?}; or {all: true}. See api.Learnt."""
        _known(params, {"id", "agent", "role", "all"})
        id, agent, role = params.get("id"), _text(params, "agent"), _text(params, "role")
        if id is not None and type(id) is not int:
            raise BadRequest("id: is the number of an example")
        if (params.get("all") is True) == any(value is not None for value in (id, agent, role)):
            raise BadRequest("what is to be forgotten: id, agent or role, or all = true alone")
        return await self._api.learnt.forget(session.caller, id, agent, role)

    async def tools(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """The tools that the caller may call, as the models see them."""
        _known(params, set())
        return self._api.tools.usable(session.caller)

    async def call_tool(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """Call a tool: {name, arguments, id?} -> {name, arguments, result}."""
        _known(params, {"name", "arguments", "id"})
        name, arguments, id = params.get("name"), params.get("arguments", {}), params.get("id")
        if not isinstance(name, str) or not name:
            raise BadRequest("name: is required, the name of a tool")
        if not isinstance(arguments, dict):
            raise BadRequest("arguments: is a map")
        if id is not None and not isinstance(id, str):
            raise BadRequest("id: is a text")
        result = await self._api.tools.call(session.caller, name, arguments, id)
        return {"name": name, "arguments": arguments, "result": result}

    async def mcp_servers(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """The MCP servers of the configuration."""
        _known(params, set())
        return self._api.mcp.servers(session.caller)

    async def mcp_check(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """Ask an MCP server for its tools now: {name}."""
        return await self._api.mcp.look(session.caller, _one(params, "name"))

    async def mcp_accept(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """Use an MCP server's tools as it offers them now: {name}."""
        return await self._api.mcp.accept(session.caller, _one(params, "name"))

    async def subscribe(self, session: Session, _: int, params: dict[str, JSON]) -> JSON:
        """From now on every event comes as a notification `event`."""
        _known(params, set())
        if session not in self._subscribed:
            self._subscribed.add(session)

            def tell(name: str, data: dict[str, JSON]) -> None:
                session.notify("event", [{"event": name, **data}])

            unsubscribe = self._api.events.subscribe(session.caller, tell)
            session.on_close += [unsubscribe, lambda: self._subscribed.discard(session)]
        return {"subscribed": True}


def _notify(session: Session, msgid: int, progress: dict[str, JSON]) -> None:
    session.notify("models.progress", [msgid, progress])


def _known(params: dict[str, JSON], names: set[str]) -> None:
    if unknown := set(params) - names:
        raise BadRequest(f"unknown {', '.join(sorted(unknown))}; allowed are {', '.join(sorted(names)) or 'none'}")


def _text(params: dict[str, JSON], name: str) -> str | None:
    value = params.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{name}: is a text")
    return value


def _one(params: dict[str, JSON], name: str, *others: str) -> str:
    _known(params, {name, *others})
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{name}: is required, a text")
    return value
