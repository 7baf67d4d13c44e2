"""Whether a model that was just loaded is in its senses: its manifest's questions, or, without any, that it computes
finite numbers and says the same twice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Sequence

from edged.agent.dialects.chat_template import Dialect
from edged.errors import ModelUnavailable
from edged.interfaces import Engine
from edged.tools import check
from edged.types import Completion, Expect, Job, Message, Priority, Sampling, SelfTest
from edged.wire import new_rid

SANITY = "Name the colours of a rainbow."
SANITY_TOKENS = 16  # enough that weights which are noise show it, a few seconds on a small board
SHOWN = 120  # characters of a wrong answer in the reason
# Greedy, and with a seed: the same batches each time, so that the same text is the same computation.
GREEDY = Sampling(temperature=0.0, seed=0)


async def problem(
    model: str,
    tests: Sequence[SelfTest],
    engine: Engine,
    dialect: Dialect,
    on_test: Callable[[int, int], None] = lambda number, of: None,
) -> str | None:
    """The first thing that is wrong with a model, in words; None where it passes.

    Args:
        tests: of its manifest; empty: only that it computes sensibly is looked at.
        on_test: gets (number, how many) before each test.

    Raises:
        EdgedError: as the engine says.
    """

    async def ask(prompt: str, max_tokens: int, logprobs: int | None = None) -> Completion:
        turn = dialect.render([Message("user", prompt)], generate=True)
        made = Job(
            rid=new_rid(),
            model=model,
            prefix=(),
            turn=turn,
            max_tokens=max_tokens,
            sampling=GREEDY,
            logprobs=logprobs,
            priority=Priority.BATCH,
        )
        return await engine.generate(made)

    if not tests:
        on_test(1, 1)
        return await _sanity(ask)
    for number, test in enumerate(tests, start=1):
        on_test(number, len(tests))
        text = (await ask(test.prompt, test.max_tokens)).text
        if wrong := await mismatch(test.expect, text):
            return f"asked {test.prompt!r} it says {text[:SHOWN]!r}, {wrong}"
    return None


async def _sanity(ask: Callable[[str, int, int | None], Awaitable[Completion]]) -> str | None:
    first = await ask(SANITY, SANITY_TOKENS, 0)
    if not first.text.strip():
        return "it says nothing"
    if not all(math.isfinite(token.logprob) for token in first.logprobs):
        return "it computes numbers that are not finite"
    again = await ask(SANITY, SANITY_TOKENS, 0)
    return None if again.text == first.text else "it says something else when it is asked the same"


async def mismatch(expect: Expect, text: str) -> str | None:
    """Why an answer is not what is expected; None where it is."""
    if expect.contains is not None:
        return None if expect.contains.lower() in text.lower() else f"and {expect.contains!r} is not in it"
    if expect.regex is not None:
        return None if re.search(expect.regex, text) else f"which does not match {expect.regex!r}"
    assert expect.json_schema is not None  # exactly one of the three
    try:
        value = json.loads(text)
    except ValueError:
        return "which is not JSON"
    wrong = await check.problem(expect.json_schema, value)
    return f"which does not fit its schema: {wrong}" if wrong else None


def must_pass(problem: str | None) -> None:
    """Raises ModelUnavailable for a problem."""
    if problem:
        raise ModelUnavailable(f"it failed its self-test: {problem}")
