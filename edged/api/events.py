"""How the daemon is, now and from now on: its status document and its events, as far as a caller may see them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from edged.config import Config
from edged.types import JSON, Caller

OnEvent = Callable[[str, dict[str, JSON]], None]


class Events:
    """The status, and who subscribed to the events.

    Args:
        status: makes the document of `edged status`.
    """

    def __init__(self, config: Config, status: Callable[[], Awaitable[dict[str, JSON]]]) -> None:
        self._config = config
        self._status = status
        self._listeners: list[OnEvent] = []

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

    def publish(self, name: str, data: dict[str, JSON]) -> None:
        """An event, to all who subscribed."""
        for listener in list(self._listeners):
            listener(name, data)

    def subscribe(self, caller: Caller, listener: OnEvent) -> Callable[[], None]:
        """From now on `listener` gets every event (name, data); the returned function ends that. Only a caller who may
        manage gets events about requests, which name them by `rid`."""

        def hear(name: str, data: dict[str, JSON]) -> None:
            if caller.manage or "rid" not in data:
                listener(name, data)

        self._listeners.append(hear)
        return lambda: self._listeners.remove(hear)
