"""How often a model is asked again, and with what."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edged.agent import answers
from edged.agent.answers import MAX_CORRECTIONS, Unfit, Wrong
from edged.errors import ToolFailed
from edged.types import Message


@pytest.mark.parametrize("wrong", range(MAX_CORRECTIONS + 2))
async def test_model_is_asked_again_with_all_that_was_wrong_and_not_for_ever(wrong: int) -> None:
    """The request fails with the last wrong answer's problem, in words that are not the model's."""
    asked: list[list[str]] = []

    async def ask(corrections: Sequence[Message]) -> str | Wrong:
        asked.append([message.content for message in corrections])
        number = len(asked)
        problem = Unfit(f"why {number}", f"problem {number}")
        return answers.corrected(f"answer {number}", problem) if number <= wrong else f"answer {number}"

    if wrong <= MAX_CORRECTIONS:
        assert await answers.until_right(ask, ToolFailed) == f"answer {wrong + 1}"
    else:
        with pytest.raises(ToolFailed, match=f"^why {wrong}$"):
            await answers.until_right(ask, ToolFailed)
    told = [text for number in range(1, MAX_CORRECTIONS + 1) for text in (f"answer {number}", f"problem {number}")]
    assert asked == [told[: 2 * number] for number in range(min(wrong, MAX_CORRECTIONS) + 1)]
