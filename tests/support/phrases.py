"""A mind from outside the package: it knows a few phrases and needs no model. With EDGED_TEST_MEMBERS (faulty_daemon) a
daemon has it in front of the others."""

from __future__ import annotations

from typing import ClassVar

from edged.agent.loop import Answered, Decided, Decider, Passed, Run
from edged.agent.minds import MINDS
from edged.agent.minds.base import Resources
from edged.agent.router import Decision
from edged.types import RouteTaken, ToolCall

WRITE, LOOK = "write down ", "look first: "


class Phrases:
    """Implements `Mind`."""

    where: ClassVar[str] = "phrases"

    def __init__(self, resources: Resources) -> None:
        self._agents = resources.config.agents

    def begin(self, run: Run, decision: Decision) -> Decider | None:
        """See Mind."""
        assert run.request.agent in self._agents
        text = run.request.messages[-1].content
        return Phrase(text) if text == "good morning" or text.startswith((WRITE, LOOK)) else None


class Phrase(Decider):
    """Implements `Decider`. It greets, it writes into the diary, or it looks at a tank and leaves the words to the next
    mind."""

    def __init__(self, text: str) -> None:
        self.route = RouteTaken(Phrases.where, "", "known_phrase")
        self._text = text

    async def move(self, run: Run) -> Decided | Answered | Passed:
        """See Decider."""
        made = bool(run.records)
        if self._text.startswith(WRITE):
            call = ToolCall("note", {"text": self._text.removeprefix(WRITE)})
            return Answered("It is written down.") if made else Decided((call,))
        if self._text.startswith(LOOK):
            return Passed() if made else Decided((ToolCall("tank_level", {"tank": "south"}),))
        return Answered("Good morning to you.")


if __name__ == "edged_test_members":
    MINDS.insert(0, Phrases)
