"""Arguments into places: schemas, defaults, topics, payloads, sentences, columns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.errors import ToolFailed
from edged.tools import values

HOSTILE = ['"', "\\", '", "x": "', "\n", "{b}", "}", "ü🌱", "\u2028", "\x00"]


def test_schema_requires_what_has_no_default_and_types_follow_from_enum() -> None:
    """The contract's rule for parameters."""
    parameters: dict[str, dict[str, Any]] = {
        "plain": {},
        "tank": {"enum": ["north", "south"]},
        "level": {"enum": [1, 2]},
        "ratio": {"enum": [1, 2.5]},
        "on": {"enum": [True, False]},
        "mixed": {"enum": ["a", 1]},
        "given": {"type": "integer", "minimum": 1, "default": 5},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "fixed": {"const": 3},
    }
    schema = values.schema(parameters)
    assert schema["type"] == "object"
    assert schema["required"] == ["plain", "tank", "level", "ratio", "on", "mixed", "either", "fixed"]
    assert schema["properties"] == {
        "plain": {"type": "string"},
        "tank": {"type": "string", "enum": ["north", "south"]},
        "level": {"type": "integer", "enum": [1, 2]},
        "ratio": {"type": ["integer", "number"], "enum": [1, 2.5]},
        "on": {"type": "boolean", "enum": [True, False]},
        "mixed": {"type": ["integer", "string"], "enum": ["a", 1]},
        "given": {"type": "integer", "minimum": 1, "default": 5},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "fixed": {"const": 3},
    }


PARAMETERS: dict[str, dict[str, Any]] = {"a": {}, "b": {"default": 2}}


@pytest.mark.parametrize(
    ("given", "complete"),
    [({"a": 1}, {"a": 1, "b": 2}), ({"b": 0, "a": None}, {"a": None, "b": 0})],
)
def test_complete_fills_defaults_in(given: dict[str, Any], complete: dict[str, Any]) -> None:
    """A given value stays, also one that is false or null."""
    assert values.complete(PARAMETERS, given) == complete


@pytest.mark.parametrize(
    ("given", "says"), [({}, "missing a"), ({"a": 1, "c": 2}, "unknown c"), ({"c": 1}, "unknown c; missing a")]
)
def test_complete_refuses_missing_and_unknown_arguments(given: dict[str, Any], says: str) -> None:
    """A call by hand has no grammar that would prevent it."""
    with pytest.raises(ToolFailed, match=f"{says}; allowed are a, b"):
        values.complete(PARAMETERS, given)


def test_sentence_replaces_declared_parameters_only_once() -> None:
    """A value that looks like a parameter is not replaced again."""
    assert (
        values.sentence("{a} is {b}, {c} {} {{a}}", {"a": {}, "b": {}}, {"a": "{b}", "b": True})
        == "{b} is true, {c} {} {{b}}"
    )


@pytest.mark.parametrize(("value", "topic"), [("desk", "z/desk/set"), (7, "z/7/set"), ("a b", "z/a b/set")])
def test_topic_takes_a_value_as_one_level(value: object, topic: str) -> None:
    """Numbers too."""
    assert values.topic("z/{x}/set", {"x": {}}, {"x": value}) == topic


@pytest.mark.parametrize("value", ["", "a/b", "+", "#", "a+", "/", "x\0", ["a/b"]])
def test_topic_refuses_a_value_that_would_change_its_levels(value: object) -> None:
    """No argument reaches another device's topic."""
    with pytest.raises(ToolFailed, match="cannot be part of a topic"):
        values.topic("z/{x}/set", {"x": {}}, {"x": value})


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "template", ['{"a":"{x}"}', '{"a": {x}}', '["{x}"]', '{"a":"pre \\" {x} post"}'], ids=["in", "out", "list", "quote"]
)
def test_payload_that_is_json_stays_json_whatever_the_value(template: str, value: str) -> None:
    """A text arrives as that text: it never ends the string it is in, nor adds a key."""
    published = json.loads(values.payload(template, {"x": {}}, {"x": value}))
    [found] = published.values() if isinstance(published, dict) else published
    assert found == (f'pre " {value} post' if "pre" in template else value)


@pytest.mark.parametrize(
    ("template", "value", "payload"),
    [
        ('{"a":{x}}', 5, '{"a":5}'),
        ('{"a":{x}}', True, '{"a":true}'),
        ('{"a":{x}}', "true", '{"a":"true"}'),
        ('{"a":{x}}', ["b"], '{"a":["b"]}'),
        ('{"a":"{x}"}', 5, '{"a":"5"}'),
        ('{"a":"{x}"}', ["b"], '{"a":"[\\"b\\"]"}'),
        ('{"{x}":1,"c":{y}}', "k", '{"k":1,"c":{y}}'),
        ("{x}", "ON", "ON"),
        ("{x}", '"', '"'),
        ("set {x} {y}", 5, "set 5 {y}"),
        ("ON", "x", "ON"),
    ],
)
def test_payload_places_values_by_where_they_stand(template: str, value: object, payload: str) -> None:
    """Inside quotes as text, outside as JSON, in a plain payload as they are; undeclared braces stay."""
    assert values.payload(template, {"x": {}}, {"x": value}) == payload.encode()


@pytest.mark.parametrize(
    ("value", "bound"),
    [(True, 1), (False, 0), (5, 5), (1.5, 1.5), (None, None), ("x", "x"), (["ä"], '["ä"]'), ({"a": 1}, '{"a": 1}')],
)
def test_sql_value_is_what_sqlite_can_hold(value: object, bound: object) -> None:
    """Lists and maps are JSON text, for json_each."""
    found = values.sql_value(value)
    assert found == bound
    assert type(found) is type(bound)


@pytest.mark.parametrize(("value", "shown"), [(b"\x00\xff", "AP8="), (b"", ""), ("x", "x"), (1, 1), (None, None)])
def test_json_value_shows_a_blob_as_base64(value: object, shown: object) -> None:
    """CONTRACT section 3."""
    assert values.json_value(value) == shown
