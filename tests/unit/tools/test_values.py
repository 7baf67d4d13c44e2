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


OPTIONAL: dict[str, dict[str, Any]] = {
    "tank": {"enum": ["north", "south"]},
    "minutes": {"type": "integer", "optional": True},
    "note": {"optional": True},
    "always": {"optional": False},
}


def test_schema_does_not_require_what_is_optional_nor_show_the_word() -> None:
    """Models and grammars get plain JSON Schema."""
    schema = values.schema(OPTIONAL)
    assert schema["required"] == ["tank", "always"]
    assert schema["properties"]["minutes"] == {"type": "integer"}
    assert schema["properties"]["note"] == {"type": "string"}
    assert schema["properties"]["always"] == {"type": "string"}
    assert OPTIONAL["minutes"]["optional"] is True  # the tool's own stay as they are


def test_sample_leaves_out_what_is_optional() -> None:
    """A made-up example shows the shortest call."""
    assert values.sample(OPTIONAL) == {"tank": "north", "always": "..."}


@pytest.mark.parametrize(
    ("arguments", "complete"),
    [
        ({}, {}),
        ({"minutes": None}, {}),
        ({"minutes": 0, "note": ""}, {"minutes": 0, "note": ""}),
        ({"note": "x", "minutes": None}, {"note": "x"}),
    ],
)
def test_complete_takes_null_of_an_optional_parameter_for_left_out(
    arguments: dict[str, Any], complete: dict[str, Any]
) -> None:
    """Of others null is a value, and whether it may be one the schema says."""
    needed = {"tank": "north", "always": None}
    assert values.complete(OPTIONAL, needed | arguments) == needed | complete
    with pytest.raises(ToolFailed, match="missing tank"):
        values.complete(OPTIONAL, {"always": 1, **arguments})


def test_nulls_are_taken_out_where_the_schema_has_none() -> None:
    """As upstreams' models write what they leave out."""
    parameters: dict[str, dict[str, Any]] = {
        "needed": {},
        "optional": {"optional": True},
        "default": {"type": "integer", "default": 1},
        "nullable": {"type": ["integer", "null"], "default": 1},
        "either": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
    }
    nulls = dict.fromkeys((*parameters, "unknown"))
    assert values.without_nulls(values.schema(parameters), nulls | {"optional": 0}) == {
        "needed": None, "optional": 0, "nullable": None, "either": None, "unknown": None,
    }  # fmt: skip
    assert "optional" not in values.without_nulls(values.schema(parameters), nulls)


def test_sentence_replaces_declared_parameters_only_once() -> None:
    """A value that looks like a parameter is not replaced again."""
    assert (
        values.sentence("{a} is {b}, {c} {} {{a}}", {"a": {}, "b": {}}, {"a": "{b}", "b": True})
        == "{b} is true, {c} {} {{b}}"
    )


SAID: dict[str, dict[str, Any]] = {"valve": {}, "m": {"optional": True}, "s": {"optional": True}}


@pytest.mark.parametrize(
    ("say", "left_out", "given"),
    [
        ("Valve {valve} is open[ for {m} min].", "Valve north is open.", "Valve north is open for 5 min."),
        ("[{m} min: ]open", "open", "5 min: open"),
        ("open[ for {m} min[ and {s} s]]", "open", "open for 5 min and 7 s"),
        ("open[ for {m} min and {s} s]", "open", "open for 5 min and 7 s"),
        ("open[ ({valve}, {m} min)]", "open", "open (north, 5 min)"),
        ("[info] {valve}", "[info] north", "[info] north"),
        ("[{valve}] [[{valve}]]", "[north] [[north]]", "[north] [[north]]"),
        ("[a [{m}] b]", "[a  b]", "[a 5 b]"),
        ("[a {m} [b] c]x", "x", "a 5 [b] cx"),
        ("a] {m} [b", "a]  [b", "a] 5 [b"),
        ("[[ {m} min]", "[", "[ 5 min"),
        ("[{other} {}]{m}", "[{other} {}]", "[{other} {}]5"),
        ("{m}", "", "5"),
        ("[]", "[]", "[]"),
        ("", "", ""),
    ],
)
def test_part_of_a_sentence_with_an_optional_parameter_is_said_only_with_it(
    say: str, left_out: str, given: str
) -> None:
    """Brackets that hold no optional parameter are text."""
    assert values.sentence(say, SAID, {"valve": "north"}) == left_out
    assert values.sentence(say, SAID, {"valve": "north", "m": 5, "s": 7}) == given


def test_brackets_and_braces_of_a_value_are_text() -> None:
    """Nothing that a model writes changes the sentence around it."""
    assert values.sentence("[{m}]{valve}", SAID, {"valve": "[{s}", "m": "]x["}) == "]x[[{s}"
    assert values.sentence("open[ for {m} min[ and {s} s]]", SAID, {"valve": "", "m": 5}) == "open for 5 min"
    assert values.sentence("open[ for {m} min[ and {s} s]]", SAID, {"valve": "", "s": 7}) == "open"


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
    ("template", "left_out", "given"),
    [
        ('{"state":"{x}","t":{y}}', '{"state":"ON"}', '{"state":"ON","t":5}'),
        ('{ "t" : {y}, "state": "{x}" }', '{ "state": "ON" }', '{ "t" : 5, "state": "ON" }'),
        ('{"t":{y}}', "{}", '{"t":5}'),
        ('{"a":{"t":"{y} s"},"b":[1,{y},"{x}"]}', '{"a":{},"b":[1,"ON"]}', '{"a":{"t":"5 s"},"b":[1,5,"ON"]}'),
        ('{"{y}":1,"b":2}', '{"b":2}', '{"5":1,"b":2}'),
        ('[{"t":{y}},{y},[],{}]', "[{},[],{}]", '[{"t":5},5,[],{}]'),
        ('{"a":"{\\"y\\"}, {x}","c":"[{y}"}', '{"a":"{\\"y\\"}, ON"}', '{"a":"{\\"y\\"}, ON","c":"[5"}'),
        ('{"a":1e3,"b":1.00,"t":{y}}', '{"a":1e3,"b":1.00}', '{"a":1e3,"b":1.00,"t":5}'),
        ("{x} {y}!", "ON !", "ON 5!"),
        ("{y}", "", "5"),
    ],
)
def test_payload_leaves_out_the_member_that_holds_what_was_left_out(template: str, left_out: str, given: str) -> None:
    """The innermost one; all else stays as it was written. A text has nothing in its place."""
    parameters: dict[str, dict[str, Any]] = {"x": {}, "y": {"optional": True}}
    assert values.payload(template, parameters, {"x": "ON"}) == left_out.encode()
    assert values.payload(template, parameters, {"x": "ON", "y": 5}) == given.encode()


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
