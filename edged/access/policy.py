"""Who may use what: THE place where it is decided. Pure: from the configuration and what the operating system, an API
key or a topic says about who asks.

Without [roles] and [access] (CONTRACT section 2): the daemon's own user, root and the members of the socket's group may
do everything; whoever has an API key may, too; over MQTT everybody the broker lets in. Who comes by a way in without
authentication may use agents and plain models, and manages nothing.

With one of them everybody gets a role or nothing. Root and the daemon's own user as well; but where no entry names
them they keep `manage`, beside what `default` gives, so that an operator cannot lock himself out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from msgspec import structs

from edged.config import Agent, roles
from edged.config.roles import Access, Role
from edged.errors import Forbidden
from edged.types import Caller, Priority

ROOT = 0
OPEN = "open"  # how clients are called that came by a way in without authentication


class Policy:
    """Callers by who they are, with what they may use.

    Args:
        agents: all there are.
        access: None: there are no roles.
    """

    def __init__(
        self, agents: Iterable[str], by_name: Mapping[str, Role] | None = None, access: Access | None = None
    ) -> None:
        self._agents = frozenset(agents)
        self._roles = by_name or {}
        self._access = access
        self._users = roles.users(access) if access else {}
        self._groups = roles.groups(access) if access else {}

    @property
    def has_roles(self) -> bool:
        """Whether roles decide; else whoever gets in may do everything."""
        return self._access is not None

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of all roles; none where everybody may do everything."""
        return tuple(self._roles) if self.has_roles else ()

    def unix(
        self, uid: int, groups: Collection[int], *, own_uid: int, socket_group: int, transport: str = "unix"
    ) -> Caller:
        """The peer of a Unix socket: by uid, else the first group of [access] it is in, else the default.

        Args:
            groups: of the peer, primary and supplementary.
        """
        client, ours = f"unix:{uid}", uid in (ROOT, own_uid)
        if self._access is None:
            allowed = ours or socket_group in groups
            return Caller(client, transport, self._agents if allowed else frozenset(), allowed)
        named = [self._users[uid]] if uid in self._users else [self._groups[g] for g in self._groups if g in groups]
        caller = self._with(client, transport, named[0] if named else self._access.default)
        if ours and not named:
            return structs.replace(caller, admitted=True, manage=True)
        return caller

    def key(self, name: str, transport: str = "http") -> Caller:
        """Whoever showed the API key of that name."""
        client = f"key:{name}"
        if self._access is None:
            return Caller(client, transport, self._agents)
        return self._with(client, transport, self._access.api_key.get(name, self._access.default))

    def open_way(self, way: str, transport: str = "http") -> Caller:
        """Whoever came by a way in that has no authentication: they are all one client. Without roles it may use
        agents and plain models, and manage nothing."""
        client = f"{OPEN}:{way}"
        if self._access is None:
            return Caller(client, transport, self._agents, manage=False)
        return self._with(client, transport, self._access.open_ways.get(way, ""))

    def mqtt(self, client: str, topic: str) -> Caller:
        """Whoever published on a topic; all that is asked on one topic counts as one against a rate, because anybody
        may name any Response Topic. For the same reason that topic is part of the name where roles decide: who may
        publish on it is the broker's to say, so nobody uses up ids of, or writes into conversations with, others who
        happen to get their replies on the same topic.

        Args:
            client: by its Response Topic, else by the topic.
        """
        if self._access is None:
            return Caller(client, "mqtt", self._agents)
        pattern = roles.most_specific(self._access.mqtt, topic)
        role = self._access.default if pattern is None else self._access.mqtt[pattern]
        whose = f"mqtt:{topic}"
        # What follows the last ` via ` is a topic that was subscribed to, so no Response Topic can pretend to be one.
        name = client if client == whose else f"{client} via {topic}"
        return structs.replace(
            self._with(name, "mqtt", role), counted_as=whose, former=client if name != client else ""
        )

    def later(self, client: str, transport: str, role: str) -> Caller:
        """Whose request was let in by `role` and is worked on now, by what is configured now: users, keys and open ways
        that [access] names have the role it says, others the one they had, as long as there is one."""
        kind, _, name = client.partition(":")
        if kind == OPEN:
            return self.open_way(name, transport)
        if self._access is None:
            return Caller(client, transport, self._agents)
        if kind == "key":
            return self.key(name, transport)
        if kind == "unix" and name.isdigit() and int(name) in self._users:
            return self._with(client, transport, self._users[int(name)])
        return self._with(client, transport, role if role in self._roles else self._access.default)

    def _with(self, client: str, transport: str, role: str) -> Caller:
        if not role:
            none = frozenset[str]()
            return Caller(client, transport, none, admitted=False, tools=none, models=none, manage=False)
        may = self._roles[role]
        return Caller(
            client,
            transport,
            self._agents if roles.EVERY in may.agents else frozenset(may.agents),
            role=role,
            tools=_named(may.tools),
            models=_named(may.models),
            manage=may.manage,
            highest=may.priority,
            rate=may.rate,
            counted_as=client,
        )


def check(caller: Caller, agent: str, priority: Priority | None = None) -> None:
    """Raises Forbidden where the caller may not use the agent, or not with this priority."""
    if agent not in caller.agents:
        raise Forbidden(f"{_who(caller)} may not use agent {agent!r}; {_allowed(caller.agents)}")
    if priority is Priority.INTERACTIVE and caller.highest is Priority.BATCH:
        raise Forbidden(f"{_who(caller)} may not ask with priority {priority}; allowed is {caller.highest}")


def may_tool(caller: Caller, tool: str) -> bool:
    """Whether the caller may call a tool, by hand or through an agent."""
    return caller.admitted and (caller.tools is None or tool in caller.tools)


def check_tool(caller: Caller, tool: str) -> None:
    """Raises Forbidden where the caller may not call the tool."""
    if not may_tool(caller, tool):
        raise Forbidden(f"{_who(caller)} may not call tool {tool!r}; {_allowed(caller.tools or ())}")


def may_model(caller: Caller, model: str) -> bool:
    """Whether the caller may use a model without an agent."""
    return caller.admitted and (caller.models is None or model in caller.models)


def check_model(caller: Caller, model: str) -> None:
    """Raises Forbidden where the caller may not use the model without an agent."""
    if not may_model(caller, model):
        raise Forbidden(f"{_who(caller)} may not use model {model!r}; {_allowed(caller.models or ())}")


def check_manage(caller: Caller, what: str) -> None:
    """Raises Forbidden where the caller may not do what is for those who look after the daemon. what: an infinitive."""
    if not caller.admitted or not caller.manage:
        raise Forbidden(f"{_who(caller)} may not {what}: that is for roles with `manage = true`")


def for_caller(caller: Caller, agent: Agent) -> Agent:
    """The agent as it works for this caller: without tools where the caller may call none of them.

    Where it may call some the model chooses among all: so a small one decides as well as for everybody, from the same
    prefix, and who asks for what they may not have hears `forbidden`, with the tool's name, before the act.
    """
    if any(may_tool(caller, tool) for tool in agent.tools):
        return agent
    return structs.replace(agent, tools=())


def _named(names: Iterable[str]) -> frozenset[str] | None:
    found = frozenset(names)
    return None if roles.EVERY in found else found


def _who(caller: Caller) -> str:
    if caller.role:
        return f"{caller.client} (role {caller.role})"
    return caller.client if caller.tools is None else f"{caller.client} (no role in [access])"


def _allowed(names: Collection[str]) -> str:
    return f"allowed are {', '.join(sorted(names))}" if names else "it may use none"
