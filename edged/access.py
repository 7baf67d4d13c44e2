"""Who may use which agent. Pure: decided from what the operating system says about the peer.

Without roles (CONTRACT section 2): the daemon's own user, root and the members of the socket's group may use every
agent; over MQTT everybody the broker lets in may.
"""

from __future__ import annotations

from collections.abc import Iterable

from edged.errors import Forbidden
from edged.types import Caller


def unix_caller(uid: int, groups: Iterable[int], *, own_uid: int, socket_group: int, agents: Iterable[str]) -> Caller:
    """The caller on the Unix socket, known by uid.

    Args:
        groups: of the peer, primary and supplementary.
    """
    allowed = uid in (0, own_uid) or socket_group in groups
    return Caller(f"unix:{uid}", "unix", frozenset(agents) if allowed else frozenset(), allowed)


def check_tool(caller: Caller, tool: str) -> None:
    """Raises Forbidden where the caller may not call the tool by hand."""
    if not caller.admitted:
        raise Forbidden(f"{caller.client} may not call tool {tool!r}")


def check(caller: Caller, agent: str) -> None:
    """Raises Forbidden where the caller may not use the agent."""
    if agent not in caller.agents:
        raise Forbidden(f"{caller.client} may not use agent {agent!r}")
