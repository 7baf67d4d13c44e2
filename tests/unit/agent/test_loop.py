"""What a run makes of what an earlier attempt did."""

from __future__ import annotations

from typing import Any, cast

from edged.agent.loop import Answered, Decider, Run
from edged.agent.stream import Stream
from edged.config import Agent
from edged.store.journal import Intent, Result, Step
from edged.types import Message, Request, RouteTaken, ToolCall


class Says(Decider):
    """Answers at once, in pieces."""

    def __init__(self, *pieces: str) -> None:
        self.route = RouteTaken("local", "m", "local_ok")
        self._pieces = pieces

    async def move(self, run: Run) -> Answered:
        """See Decider."""
        if run.stream:
            run.stream.begin()
            for piece in self._pieces:
                run.stream.piece(piece)
        return Answered("".join(self._pieces))


class NoTools:
    """The configuration has lost them all since."""

    def get(self, _: str) -> None:
        """See Toolbox."""

    def is_write(self, _: str) -> bool:
        """See Toolbox."""
        return False


def lock(door: str, number: int, *, ok: bool) -> Step:
    """A call that an earlier attempt has made."""
    result = Result({"locked": True} if ok else {"error": "it is {stuck}"}, ok)
    return Step(number, Intent(ToolCall("lock", {"door": door}), None), result)


async def answered(*steps: Step) -> tuple[str, list[tuple[int, str]]]:
    """(output, deltas) of a run that is resumed behind these steps."""
    sent: list[tuple[int, str]] = []
    agent, request = Agent(model="m"), Request(agent="a", messages=(Message("user", "lock both, please"),))
    toolbox, stream = cast("Any", NoTools()), Stream(lambda offset, text: sent.append((offset, text)))
    run = Run("r", agent, request, toolbox=toolbox, journal=cast("Any", None), history=(), steps=steps, stream=stream)
    outcome = await run.work(Says("Both ", "are locked."))
    assert outcome is not None
    assert outcome.messages[-1].content == outcome.output
    return outcome.output, sent


async def test_resumed_run_tells_what_failed_before() -> None:
    """The journal knows it."""
    told = "lock (door: front) failed: it is {stuck}. "
    output, sent = await answered(lock("front", 0, ok=False), lock("back", 1, ok=True))
    assert output == f"{told}Both are locked."
    assert sent == [(0, f"{told}Both "), (len(told) + 5, "are locked.")]


async def test_call_that_worked_when_it_was_made_again_did_not_fail() -> None:
    """The same one, with the same arguments."""
    output, _ = await answered(lock("front", 0, ok=False), lock("front", 1, ok=True))
    assert output == "Both are locked."
