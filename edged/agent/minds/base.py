"""What a mind is, what it may use, and what failures on the board mean to the router."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, Protocol

from msgspec import Struct, field

from edged.agent.calibration import Calibration
from edged.agent.clock import BoardClock
from edged.agent.examples import Examples
from edged.agent.loop import Decider, Declined, Run
from edged.agent.prompts import Prompts
from edged.agent.router import Decision
from edged.config import Agent, Config, Tool
from edged.errors import ContextExceeded, EdgedError, ModelUnavailable, NoMemory, ToolFailed
from edged.interfaces import Engine
from edged.types import AuditEntry, Finding
from edged.upstreams import Cloud, LocalServers


async def _uncalibrated(agent: str) -> Calibration | None:
    return None


class Resources(Struct, frozen=True, kw_only=True):
    """What minds work with.

    tools: all there are, a live view (`Toolbox.tools`). engine: the board's own. served: models in servers on this
    board. cloud: the upstreams. speak: gives the prompts of an agent. calibration: of an agent's model, if any.
    examples: for a second look. audit: gets an entry for every question that leaves the board. clock: the board's.
    """

    config: Config
    tools: Mapping[str, Tool]
    engine: Engine
    served: LocalServers
    cloud: Cloud
    speak: Callable[[str], Awaitable[Prompts]]
    calibration: Callable[[str], Awaitable[Calibration | None]] = _uncalibrated
    examples: Examples = field(default_factory=Examples)
    audit: Callable[[AuditEntry], None] = lambda entry: None
    clock: BoardClock = field(default_factory=BoardClock)

    def tools_of(self, agent: Agent) -> dict[str, Tool]:
        """The tools of an agent, by name."""
        return {name: self.tools[name] for name in agent.tools}


class Mind(Protocol):
    """A way to answer requests; one for as long as the daemon runs by one configuration.

    where: the word for it in replies and metrics.
    """

    where: ClassVar[str]

    def __init__(self, resources: Resources) -> None: ...

    def begin(self, run: Run, decision: Decision) -> Decider | None:
        """What it does about this request; None: it passes on. A mind in front of the others may answer whatever the
        router has decided; the others do as it says.

        Raises:
            Declined: the decision cannot be followed any more.
        """
        ...


def shown_of_the_board(error: EdgedError, decision: Decision) -> Declined | None:
    """What a failed attempt on the board means to the router; None where an upstream could not do better, or had its
    turn."""
    match error:
        case ContextExceeded():
            finding = Finding.CONTEXT
        case ModelUnavailable() | NoMemory():
            finding = Finding.UNAVAILABLE
        case ToolFailed():
            finding = Finding.FAILED
        case _:
            return None
    return None if decision.degraded else Declined(error, finding=finding)
