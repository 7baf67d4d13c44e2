"""Values against schemas, for what no grammar of ours has made."""

from __future__ import annotations

from typing import Any

import pytest

from edged.tools import check
from edged.tools.values import schema
from edged.types import JSON

VALVE = {
    **schema({"valve": {"enum": ["north", "south"]}, "percent": {"type": "integer", "maximum": 100, "default": 50}}),
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"valve": "north"}, None),
        ({"valve": "north", "percent": 5}, None),
        ({}, "'valve' is a required property"),
        ({"valve": "west"}, "valve: 'west' is not one of"),
        ({"valve": "north", "percent": "5"}, "percent: '5' is not of type 'integer'"),
        ({"valve": "north", "percent": 101}, "percent: 101 is greater than the maximum"),
        ({"valve": "north", "speed": 1}, "'speed' was unexpected"),
        (None, "not of type 'object'"),
        ([], "not of type 'object'"),
    ],
)
async def test_problem_names_the_place_and_what_is_allowed(value: JSON, said: str | None) -> None:
    """A model reads it and writes another call; a person too."""
    problem = await check.problem(VALVE, value)
    assert (problem is None) == (said is None)
    assert said is None or said in str(problem)


@pytest.mark.parametrize(("value", "fits"), [("AB-12", True), ("ab-12", False)])
async def test_problem_of_a_schema_with_a_pattern_is_found_as_well(value: str, fits: bool) -> None:
    """In a process of its own."""
    told = await check.problem({"type": "object", "properties": {"id": {"pattern": "^[A-Z]+-[0-9]+$"}}}, {"id": value})
    assert (told is None) == fits


async def test_pattern_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An expression of somebody's and a text of a model's must not stop the daemon."""
    monkeypatch.setattr(check, "PATTERN_S", 0.5)
    told = await check.problem({"type": "string", "pattern": "^(a+)+$"}, "a" * 64 + "!")
    assert told is not None
    assert "takes too long" in told


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "colour"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/nowhere"},
        {"anyOf": 5},
        {"pattern": "("},
        {"pattern": "\\p{L}"},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    ],
    ids=lambda bad: str(bad)[:30],
)
async def test_schema_that_is_none_fits_nothing_and_raises_nothing(bad: dict[str, Any]) -> None:
    """And nothing is fetched that it names."""
    assert await check.problem(bad, "x") is not None


@pytest.mark.parametrize(
    ("draft", "fits"),
    [("http://json-schema.org/draft-07/schema#", False), ("https://json-schema.org/draft/2020-12/schema", True)],
)
async def test_schema_is_read_as_the_draft_it_names(draft: str, fits: bool) -> None:
    """As its grammar is; without a name it is the newest."""
    depends = {"$schema": draft, "dependencies": {"a": ["b"]}}
    assert (await check.problem(depends, {"a": 1}) is None) == fits


async def test_problem_is_bounded() -> None:
    """It quotes the value, which may be long, and goes back to a model."""
    told = await check.problem({"type": "integer"}, "x" * 10_000)
    assert told is not None
    assert len(told) <= check.MAX_PROBLEM
