"""System texts of which a line changes: what stays the same for the model, and that nothing of them is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from edged.agent.dialects import Dialects, compact
from edged.agent.dialects.chat_template import CHATML
from edged.completions import heads
from edged.completions.heads import HEADS, LEAST_SAVED, MOST_MOVED, Heads
from edged.completions.plain import Completions
from edged.completions.request import ModelAsk
from edged.config import Model
from edged.engines.kind import ChatTemplate
from edged.types import Message, Reuse, ToolSpec
from tests.unit.completions.test_local import Writer

DEVICES = "".join(f"- lamp number {number} hangs in room {number * 7}.\n" for number in range(60))
SWITCH = ToolSpec("switch", "Switches a lamp.", {"type": "object", "properties": {"lamp": {"type": "integer"}}})


def home(time: str, area: str = "kitchen") -> str:
    return f"You run a home.\nCurrent time: {time}\nThe user is in the {area}.\n{DEVICES}Answer briefly."


def test_a_line_that_has_changed_once_is_moved() -> None:
    seen = Heads()
    assert seen.placed(home("10:31")) is None
    second, third = seen.placed(home("10:32")), seen.placed(home("11:05"))
    assert second is not None
    assert third is not None
    assert second.fixed == third.fixed == home("[#1]")
    assert second.said == "[#1] Current time: 10:32"
    assert third.said == "[#1] Current time: 11:05"


def test_a_second_line_that_changes_is_moved_too() -> None:
    seen = Heads()
    for text in (home("10:31"), home("10:32"), home("10:33", "bathroom")):
        seen.placed(text)
    placed = seen.placed(home("10:34", "cellar"))
    assert placed is not None
    assert placed.fixed == home("[#1]").replace("the kitchen.", "the [#2]")
    assert placed.said == "[#1] Current time: 10:34\n[#2] The user is in the cellar."


def test_what_comes_back_is_shown_as_before() -> None:
    """Whoever asks twice with the same text is not answered from another prompt."""
    seen = Heads()
    shown = [seen.placed(home(time)) for time in ("10:31", "10:32", "10:32", "10:31")]
    assert shown[1] == shown[2]
    assert shown[1] is not None
    assert shown[3] is not None
    assert shown[3].fixed == shown[1].fixed


def test_one_line_of_sentences() -> None:
    rest = "There is a lamp in every room. " * 40
    seen = Heads()
    seen.placed(f"It is now 10:31. {rest}")
    placed = seen.placed(f"It is now 10:40. {rest}")
    assert placed is not None
    assert placed.fixed == f"It is now [#1] {rest}"
    assert placed.said == "[#1] It is now 10:40."


OTHERS: dict[str, Callable[[], str]] = {
    "another text": lambda: "You are a cook.\n" + "Salt.\n" * 300,
    "a line more": lambda: home("10:32") + "\nOne more.",
    "too many changes": lambda: "".join(
        line.replace("room", "hall") if number < MOST_MOVED + 1 else line
        for number, line in enumerate(home("10:31").splitlines(keepends=True))
        if "You" not in line
    ),
    "short": lambda: home("10:32")[: LEAST_SAVED - 1],
    "its end alone": lambda: home("10:31").replace("briefly", "at length"),
    "marks of its own": lambda: home("10:32 [#"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_texts_stay_as_they_are(case: str) -> None:
    seen = Heads()
    seen.placed(home("10:31"))
    assert seen.placed(OTHERS[case]()) is None


def test_many_clients_take_turns_and_what_is_kept_is_bounded() -> None:
    seen = Heads()
    texts = [f"Client {number}.\n{DEVICES.replace('lamp', f'lamp{number}')}" for number in range(HEADS)]
    assert not any(seen.placed(f"It is 10:31\n{text}") for text in texts)
    assert all(seen.placed(f"It is 10:32\n{text}") for text in texts)
    for text in ("A" + home("1"), "B" + home("1").replace("lamp", "tree")):
        seen.placed(text)
    assert len(seen._seen) == HEADS


def test_nothing_is_lost_on_the_way_to_the_question() -> None:
    messages = (
        Message("system", home("10:32")),
        Message("user", "Hello."),
        Message("assistant", "Hello!"),
        Message("user", "What time is it?"),
        Message("assistant", "I look."),
    )
    seen = Heads()
    seen.placed(home("10:31"))
    made = heads.shown(messages, seen.placed(heads.movable(messages)))
    assert made[1:3] == messages[1:3]
    assert made[3].content == "[#1] Current time: 10:32\n\nWhat time is it?"
    assert made[4] == messages[4]
    assert heads.movable(messages[1:]) == heads.movable(messages[:1]) == ""


@pytest.mark.parametrize("taught", ["", compact.NAME])
@pytest.mark.parametrize("tools", [(), (SWITCH,)])
async def test_the_fixed_part_of_the_prompt_stays(taught: str, tools: tuple[ToolSpec, ...]) -> None:
    """From the second text on, whether the model was taught or not; and all is as it came where that is configured."""

    async def prompts(reuse: Reuse) -> list[tuple[str, str]]:
        engine = Writer(*(["reply()", "It is late."] if taught and tools else ["It is late."]) * 3)
        spoken = Dialects(lambda _: ChatTemplate(CHATML, taught=taught))
        chats = Completions(engine, {"small": Model(reuse=reuse)}, spoken, max_waiting=1)
        for time in ("10:31", "10:32", "10:33"):
            asked = (Message("system", home(time)), Message("user", "What time is it?"))
            await chats.complete(ModelAsk(model="small", messages=asked, tools=tools))
        joined = [["".join(s.text for s in part) for part in (job.prefix, job.turn)] for job in engine.jobs]
        return [(prefix, turn) for prefix, turn in joined]

    moved = await asyncio.wait_for(prompts(Reuse.EXACT), 5)
    each = len(moved) // 3
    for second, third in zip(moved[each : 2 * each], moved[2 * each :], strict=True):
        assert second[0] == third[0]
        assert "10:3" not in third[0]
        assert "10:33" in third[1]
    for whole, time in zip(await prompts(Reuse.NONE), ["10:31"] * each + ["10:32"] * each, strict=False):
        assert f"Current time: {time}" in whole[0]
        assert "[#" not in whole[0] + whole[1]
