"""`name=value` into what a tool takes."""

from __future__ import annotations

from typing import Any

import pytest

from edged.cli.arguments import parse
from edged.cli.outcome import Stop


def tool(**properties: Any) -> dict[str, Any]:
    """As tools.list shows it."""
    return {"name": "t", "parameters": {"type": "object", "properties": properties}}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, "", ""),
        ({"type": "string"}, "a=b", "a=b"),
        ({"type": "string", "enum": ["null"]}, "null", "null"),
        ({"type": "integer"}, "-5", -5),
        ({"type": "number"}, "5", 5),
        ({"type": "number"}, "-.5e3", -500.0),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "array"}, '[1, "a"]', [1, "a"]),
        ({"type": "object"}, '{"a": {"b": null}}', {"a": {"b": None}}),
        ({"type": ["integer", "string"]}, "7", 7),
        ({"type": ["string", "integer"]}, "7", 7),
        ({"type": ["string", "integer"]}, "seven", "seven"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "x", "x"),
        ({"oneOf": [{"type": "number"}, {"anyOf": [{"type": "boolean"}]}]}, "true", True),
        ({"anyOf": [{"$ref": "#/x"}, {"type": "null"}]}, '{"a": 1}', {"a": 1}),
        ({"const": 3}, "3", 3),
        ({}, "just words", "just words"),
    ],
)
def test_text_becomes_a_value_of_the_parameters_type(schema: dict[str, Any], text: str, value: Any) -> None:
    """Where it may be several, text comes last, because everything is one."""
    found = parse([f"x={text}"], None, tool(x=schema))["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("schema", "text", "said"),
    [
        ({"type": "integer"}, "5.0", "x: '5.0' is not an integer"),
        ({"type": "integer"}, "", "x: '' is not an integer"),
        ({"type": "integer"}, "1_000", "x: '1_000' is not an integer"),
        ({"type": "number"}, "nan", "x: 'nan' is not a number"),
        ({"type": "number"}, "Infinity", "x: 'Infinity' is not a number"),
        ({"type": "boolean"}, "yes", "x: 'yes' is not true or false"),
        ({"type": "array"}, "a,b", "x: 'a,b' is not a JSON array"),
        ({"type": "array"}, "[NaN]", "x: '[NaN]' is not a JSON array"),
        ({"type": "object"}, "[]", "x: '[]' is not a JSON object"),
        ({"type": ["integer", "null"]}, "none", "x: 'none' is not an integer or null"),
        ({"type": "array"}, "[" * 100_000, "is not a JSON array"),
        ({"type": "array"}, "[" * 40 + "]" * 40, "is not a JSON array"),
    ],
)
def test_text_that_is_none_of_the_types_is_refused(schema: dict[str, Any], text: str, said: str) -> None:
    """The sentence names the parameter, what was written and what is wanted."""
    with pytest.raises(Stop, match="is not") as refused:
        parse([f"x={text}"], None, tool(x=schema))
    assert said in str(refused.value)
    assert refused.value.fault.code == "bad_request"


def test_parameter_the_tool_does_not_have_is_refused_with_those_it_has() -> None:
    """Also where it has none."""
    with pytest.raises(Stop, match="it has valve"):
        parse(["vlave=1"], None, tool(valve={}))
    with pytest.raises(Stop, match="it has none"):
        parse(["x=1"], None, tool())


@pytest.mark.parametrize("pair", ["north", "=north", ""])
def test_pair_without_a_name_is_wrong_usage(pair: str) -> None:
    """With an example of this tool's."""
    with pytest.raises(Stop, match="for example valve=north") as refused:
        parse([pair], None, tool(valve={"enum": ["north", "south"]}))
    assert refused.value.fault.code == "usage"


def test_object_and_pairs_are_put_together() -> None:
    """What the object holds is left to the daemon to check."""
    assert parse(["b=2"], '{"a": [1], "c": "?"}', tool(b={"type": "integer"})) == {"a": [1], "c": "?", "b": 2}
    assert parse([], None, tool()) == {}
