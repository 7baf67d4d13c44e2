"""How the daemon is, now and from now on: its status document and its events, as far as a caller may see them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from edged.config import Config
from edged.interfaces import Bus
from edged.types import INSIDE, JSON, Caller, Event

OnEvent = Callable[[str, dict[str, JSON]], None]


class Events:
    """The status, and who subscribed to the events.

    Args:
        status: makes the document of `edged status`.
        bus: where events are heard.
    """

    def __init__(self, config: Config, status: Callable[[], Awaitable[dict[str, JSON]]], bus: Bus) -> None:
        self._config = config
        self._status = status
        self._bus = bus

    async def status(self, caller: Caller) -> dict[str, JSON]:
        """The state of the daemon, which agents the caller can ask, and what else it may: {..., agents: {name: {model,
        route, privacy}}, you: {client, role, manage}}."""
        agents = {
            name: {"model": agent.model, "route": agent.route, "privacy": agent.privacy}
            for name, agent in self._config.agents.items()
            if name in caller.agents or caller.manage
        }
        you = {"client": caller.client, "role": caller.role or None, "manage": caller.manage}
        return {**await self._status(), "agents": agents, "you": you}

    def subscribe(self, caller: Caller, listener: OnEvent) -> Callable[[], None]:
        """From now on `listener` gets every event (name, data); the returned function ends that. Only a caller who may
        manage gets events about requests, which name them by `rid`."""

        def hear(event: Event) -> None:
            if event.name not in INSIDE and (caller.manage or "rid" not in event.data):
                listener(event.name, event.data)

        return self._bus.subscribe(caller.client, hear)
