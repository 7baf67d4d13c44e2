"""Which examples a second look gets."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, cast

from edged.agent.examples import COMPARED, VECTORS, Examples, Shown, by_letters, configured
from edged.agent.loop import Run
from edged.config import Agent
from edged.config.tools import Example, SqlTool
from edged.errors import NoMemory
from edged.types import Message, Request, ToolCall

TEXTS = ("open the north valve", "close the north valve", "how full is the tank?", "water the roses", "good night")
TOOL = SqlTool(description="Do it.", database="d", sql="SELECT :x", examples=tuple(Example(t, {"x": t}) for t in TEXTS))


class Tools:
    """One tool."""

    def get(self, name: str) -> SqlTool | None:
        """See Toolbox."""
        return TOOL if name == "do" else None

    def is_write(self, _: str) -> bool:
        """See Toolbox."""
        return False


def run(text: str) -> Run:
    """Of a request."""
    agent, request = Agent(model="m", tools=("do", "gone")), Request(agent="a", messages=(Message("user", text),))
    nobody = cast("Any", None)
    return Run("r", agent, request, toolbox=cast("Any", Tools()), journal=nobody, history=(), steps=(), stream=None)


async def test_nearest_of_the_owners_examples_come_last() -> None:
    shown = await Examples().nearest(run("Open the north valves"))
    assert [each.text for each in shown][-2:] == ["close the north valve", "open the north valve"]
    assert len(shown) == 4
    assert shown[-1].calls == (ToolCall("do", {"x": "open the north valve"}),)


async def test_request_itself_is_no_example() -> None:
    """An owner's example would be told its own answer."""
    shown = await Examples().nearest(run("water the roses"))
    assert "water the roses" not in [each.text for each in shown]


async def test_several_sources_are_one() -> None:
    async def learned(_: Run) -> Sequence[Shown]:
        return [Shown("let some light in", (ToolCall("do", {"x": "blind"}),))]

    shown = await Examples((learned,)).nearest(run("more light"))
    assert [each.text for each in shown] == ["let some light in"]
    assert await Examples(()).nearest(run("more light")) == []


async def test_meaning_decides_where_there_is_a_model_for_it_and_each_text_is_asked_once() -> None:
    asked: list[tuple[str, ...]] = []

    async def embed(texts: tuple[str, ...]) -> list[bytes]:
        asked.append(texts)
        return [struct.pack("<2f", *((1.0, 0.0) if "night" in t or "sleep" in t else (0.0, 1.0))) for t in texts]

    examples = Examples(embed=embed)
    assert (await examples.nearest(run("I go to sleep")))[-1].text == "good night"
    assert (await examples.nearest(run("time to sleep")))[-1].text == "good night"
    assert [len(texts) for texts in asked] == [6, 1]


async def test_letters_decide_where_the_model_has_no_room() -> None:
    async def embed(texts: tuple[str, ...]) -> list[bytes]:
        raise NoMemory("no room")

    assert (await Examples(embed=embed).nearest(run("open the north valve!")))[-1].text == "open the north valve"


def test_letters() -> None:
    near = by_letters("Öffne das Ventil", ["öffne  das ventil", "öffne die Ventile", "x", ""])
    assert near[0] > 0.999
    assert near[0] > near[1] > near[2] == near[3] == 0.0


async def test_what_was_learnt_of_the_very_request_counts_and_goes_before_the_owners() -> None:
    async def learnt(_: Run) -> Sequence[Shown]:
        return [Shown(TEXTS[0], (ToolCall("do", {"x": "new"}),)), Shown(TEXTS[1], ())]

    shown = {each.text: each.calls for each in await Examples((configured, learnt)).nearest(run(TEXTS[0]))}
    assert shown[TEXTS[0]] == (ToolCall("do", {"x": "new"}),)
    assert shown[TEXTS[1]] == ()


async def test_meanings_of_many_are_found_out_for_those_of_like_letters() -> None:
    asked: list[tuple[str, ...]] = []

    async def embed(texts: tuple[str, ...]) -> list[bytes]:
        asked.append(texts)
        return [struct.pack("<f", 1.0) for _ in texts]

    async def learnt(_: Run) -> Sequence[Shown]:
        return [Shown(f"example {n}", ()) for n in range(VECTORS)]

    examples = Examples((learnt,), embed)
    await examples.nearest(run("example 7"))
    assert len(asked[0]) == COMPARED + 1
    assert "example 7" in asked[0][1:]
    for n in range(20):
        await examples.nearest(run(f"example {n}{n}"))
    assert len(examples._vectors) <= VECTORS
