"""What an adapter is taught: the same bytes from the same seed, and nothing that is reported on."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from adapter.plants import REPORTED, REQUESTS, TALK, TRANSLATED, Plant, calls, leaked, load, reported, texts

from edged.agent.dialects import compact
from edged.agent.dialects.chat_template import Dialect

SPOKEN = Dialect(None, {}, compact.NAME)
SOME = ("boat", "vineyard", "taller_textil")


@pytest.fixture(scope="module")
def plants() -> list[Plant]:
    return [plant for plant in load(REQUESTS) if plant.name in SOME]


def epoch(plants: list[Plant], seed: int) -> list[tuple[str, str, str]]:
    pytest.importorskip("num2words", reason="what is only needed to teach is not installed")
    from adapter.data import epoch_of

    said = [{"system": "", "text": "Hello", "answer": "Hello!", "cut": False}]
    return [
        ("".join(s.text for s in turn.prompt.prefix), "".join(s.text for s in turn.prompt.turn), turn.target)
        for pack in epoch_of(plants, SPOKEN, said, Random(seed), foreign=plants)
        for turn in pack
    ]


def test_same_seed_makes_the_same_data_and_another_one_does_not(plants: list[Plant]) -> None:
    assert epoch(plants, 1) == epoch(plants, 1)
    assert epoch(plants, 1) != epoch(plants, 2)


def test_every_target_is_what_the_dialect_reads(plants: list[Plant]) -> None:
    """Calls of tools that the prompt shows, or one of the choices that are no tools."""
    seen = set[str]()
    for prefix, _, target in epoch(plants, 1):
        if compact.INTRODUCTION in prefix:
            for call in compact.parse(target):
                assert f"\n{call.name}(" in prefix
                seen.add(call.name)
    assert set(compact.PSEUDO) <= seen


@pytest.mark.skipif(not REPORTED.is_dir(), reason="the sets that are reported on do not lie beside the project")
def test_nothing_is_taught_that_is_reported_on() -> None:
    taught = [*texts(load(REQUESTS)), *(each["text"] for each in json.loads(TALK.read_text(encoding="utf-8")))]
    assert leaked(taught, reported()) == []


def test_nothing_is_taught_that_stands_in_a_translation() -> None:
    assert load(TRANSLATED)
    assert leaked(texts(load(REQUESTS)), load(TRANSLATED)) == []


def test_text_that_stands_in_both_is_found(plants: list[Plant]) -> None:
    text = plants[0].cases[0]["text"]
    assert leaked([f"  {text.upper()} ", "another one"], plants) == [f"  {text.upper()} "]


@pytest.mark.parametrize("file", sorted(REQUESTS.glob("*.json")), ids=lambda file: file.stem)
def test_right_calls_of_a_plant_are_calls_of_its_tools(file: Path) -> None:
    [plant] = [each for each in load(REQUESTS) if each.name == json.loads(file.read_text(encoding="utf-8"))["name"]]
    for case in plant.cases:
        for call in calls(case):
            parameters: Any = plant.tools[call.name].parameters
            assert set(call.arguments) <= set(parameters), case["text"]
