"""What a client hears of the board's own model while it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from edged.agent.dialects.chat_template import CHATML, Dialect
from edged.agent.loop import Run
from edged.agent.minds.base import Resources
from edged.agent.minds.local import LocalDecider
from edged.agent.prompts import Prompts
from edged.agent.router import Decision, Go, Reason
from edged.agent.stream import Stream
from edged.config import Agent
from edged.types import Completion, Finish, Job, Message, Request

AGENT = Agent(model="m", system="You run a greenhouse.")


class Writer:
    """An engine that writes this text, three characters at a time."""

    def __init__(self, text: str) -> None:
        self._text = text

    async def generate(self, job: Job, on_text: Callable[[str], None] | None = None, **_: Any) -> Completion:
        """See interfaces.Engine."""
        for at in range(0, len(self._text), 3):
            if on_text:
                on_text(self._text[at : at + 3])
        return Completion(
            text=self._text, finish=Finish.STOP, prompt_tokens=1, cached_tokens=0, completion_tokens=1, forced_tokens=0,
            decode_steps=1, logprob=None, load_ms=0, queue_ms=0, prefill_ms=0, first_token_ms=0, decode_ms=0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("opens", "text", "hears_thought"),
    [
        ("<think>\n", "Is it full?\n</think>\n\nIt is full.", False),
        ("", "<think>Is it full?</think>It is full.", False),
        ("", "Is it full? </think>It is full.", True),  # nothing tells before the tag comes; it is taken back
    ],
)
async def test_deltas_end_as_the_answer_without_what_was_thought(opens: str, text: str, hears_thought: bool) -> None:
    """Also where the model's template opens the tag."""
    template = CHATML.replace("assistant\n{% endif %}", f"assistant\n{opens}{{% endif %}}")
    prompts = Prompts(AGENT, {}, Dialect(template, {}))

    async def speak(_: str) -> Prompts:
        return prompts

    resources = Resources(
        config=cast("Any", None), tools={}, engine=cast("Any", Writer(text)), served=cast("Any", None),
        cloud=cast("Any", None), speak=speak,
    )  # fmt: skip
    sent: list[tuple[int, str]] = []
    request = Request(agent="a", messages=(Message("user", "How full is it?"),))
    nothing = cast("Any", None)
    stream = Stream(lambda offset, piece: sent.append((offset, piece)))
    run = Run("r", AGENT, request, toolbox=nothing, journal=nothing, history=(), steps=(), stream=stream)
    outcome = await run.work(LocalDecider(resources, "m", Decision(Go.LOCAL, Reason.LOCAL_OK)))
    assert outcome is not None
    heard = ""
    for offset, piece in sent:
        heard = heard[:offset] + piece
    assert heard == outcome.output == "It is full."
    assert any("?" in piece for _, piece in sent) is hears_thought
