"""What of a schema becomes a grammar, and what is checked afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from edged.agent.grammars import grammar, precheck
from edged.agent.grammars.kept import FORMATS, MOST_NUMBER, STEP, kept
from edged.types import JSON

CASES = Path(__file__).parents[5] / "shared" / "cases"
TEXT, NUMBER = (
    {"type": "string"},
    {"type": "number", "minimum": -MOST_NUMBER, "maximum": MOST_NUMBER, "multipleOf": STEP},
)


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """A vocabulary of bytes."""
    return LLTokenizer("byte")


def accepts(tokenizer: Any, schema: JSON, text: str) -> bool:
    """Whether a model may write this under the schema's grammar, and stop."""
    matcher = LLMatcher(tokenizer, grammar.answer(schema), log_level=0)
    tokens = tokenizer.tokenize_bytes(text.encode())
    if matcher.validate_tokens(tokens) < len(tokens):
        return False
    matcher.consume_tokens(tokens)
    return bool(matcher.is_accepting())


@pytest.mark.parametrize(
    "word",
    [
        {"format": "entity_id"},
        {"format": "RFC 5646"},
        {"format": "password"},
        {"format": "binary"},
        {"format": "jinja2"},
        {"format": 5},
        {"$schema": "https://json-schema.org/draft/2020-12/schema"},
        {"$comment": "a number of the house"},
    ],
    ids=str,
)
def test_a_word_that_describes_costs_nothing(word: dict[str, JSON]) -> None:
    """It is in no grammar, and nothing is checked because of it, at any depth."""
    inner = {**TEXT, **word}
    schema: dict[str, JSON] = {"type": "object", "properties": {"a": {"type": "array", "items": inner}}, **word}
    found = kept(schema)
    assert found.schema["properties"] == {"a": {"type": "array", "items": TEXT}}
    assert not found.after


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_that_grammars_know_are_kept(name: str) -> None:
    """As a regular expression; llguidance takes each of them."""
    found = kept({"type": "string", "format": name})
    assert found.schema["format"] == name
    assert precheck.failure(grammar.answer(found.schema)) is None


@pytest.mark.parametrize(
    "word",
    [
        {"propertyNames": {"type": "string"}},
        {"propertyNames": {}},
        {"propertyNames": True},
        {"uniqueItems": False},
        {"unevaluatedProperties": True},
        {"dependentRequired": {}},
        {"if": True},
    ],
    ids=str,
)
def test_a_word_that_says_nothing_new_costs_nothing(word: dict[str, JSON]) -> None:
    """Names of properties are texts anyway."""
    found = kept({"type": "object", **word})
    assert (found.schema, found.after) == ({"type": "object"}, False)


@pytest.mark.parametrize(
    "word",
    [
        {"uniqueItems": True},
        {"propertyNames": {"pattern": "^a"}},
        {"propertyNames": {"type": "number"}},
        {"propertyNames": False},
        {"not": {}},
        {"contains": {}},
        {"not": {"required": ["a"]}},
        {"dependentRequired": {"a": ["b"]}},
        {"if": {"required": ["a"]}},
    ],
    ids=str,
)
def test_what_no_grammar_keeps_is_checked_afterwards(word: dict[str, JSON]) -> None:
    """The grammar goes without it; the values do not."""
    found = kept({"type": "object", "properties": {"x": {"type": "array", **word}}})
    assert found.after
    assert found.left_out == tuple(word)
    assert precheck.failure(grammar.answer(found.schema)) is None


def test_words_in_values_and_names_stay_what_they_are() -> None:
    """A property may be called `not`, and a constant may hold anything."""
    schema: dict[str, JSON] = {
        "type": "object",
        "properties": {"not": TEXT, "format": {"const": {"uniqueItems": True, "format": "entity_id"}}},
    }
    found = kept(schema)
    assert found.schema["properties"] == schema["properties"]
    assert not found.after


# Objects are closed


@pytest.mark.parametrize("strict", [False, True])
def test_objects_that_declare_properties_hold_no_others(strict: bool) -> None:
    """At every depth: in lists, in alternatives, behind references."""
    inner: dict[str, JSON] = {"type": "object", "properties": {"a": TEXT}}
    schema: dict[str, JSON] = {
        "type": "object",
        "properties": {
            "one": inner,
            "list": {"type": "array", "items": inner},
            "either": {"anyOf": [inner, {"type": "null"}]},
            "there": {"$ref": "#/$defs/it"},
        },
        "$defs": {"it": inner},
    }
    closed = {**inner, "additionalProperties": False}
    found = kept(schema, loose=strict).schema
    assert found["additionalProperties"] is False
    assert found["properties"] == {
        "one": closed,
        "list": {"type": "array", "items": closed},
        "either": {"anyOf": [closed, {"type": "null"}]},
        "there": {"$ref": "#/$defs/it"},
    }
    assert found["$defs"] == {"it": closed}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object"}, '{"any": 1}'),
        ({"properties": {"a": TEXT}, "additionalProperties": True}, '{"a": "x", "any": 1}'),
        ({"properties": {"a": TEXT}, "additionalProperties": TEXT}, '{"a": "x", "b": "y"}'),
        ({"properties": {"a": TEXT}, "patternProperties": {"^b": TEXT}}, '{"a": "x", "bb": "y"}'),
        (
            {"allOf": [{"properties": {"a": TEXT}}, {"properties": {"b": TEXT}}], "type": "object"},
            '{"a": "x", "b": "y"}',
        ),
        (
            {
                "properties": {"a": TEXT},
                "type": "object",
                "anyOf": [{"properties": {"b": TEXT}}, {"properties": {"c": TEXT}}],
            },
            '{"a": "x", "b": "y"}',
        ),
        (
            {
                "type": "object",
                "properties": {"c": TEXT},
                "allOf": [{"$ref": "#/$defs/d"}],
                "$defs": {"d": {"properties": {"e": TEXT}}},
            },
            '{"c": "x", "e": "y"}',
        ),
    ],
    ids=str,
)
def test_objects_that_may_hold_more_stay_open(bytewise: Any, schema: dict[str, JSON], value: str) -> None:
    """The schema says so itself, or other schemas say what else the same value holds."""
    found = kept(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(value))
    assert accepts(bytewise, found.schema, value)


def test_properties_imply_an_object(bytewise: Any) -> None:
    """A model that may write any value writes a number without end."""
    schema = kept({"properties": {"level": {"type": "integer"}}, "required": ["level"]}).schema
    assert accepts(bytewise, schema, '{"level": 3}')
    assert not accepts(bytewise, schema, "1.1")


# Numbers have an end


@pytest.mark.parametrize(
    ("kind", "text", "allowed"),
    [
        ("number", "33.333333333", True),
        ("number", "33.3333333333", False),
        ("number", "9999999999999999", True),
        ("number", "99999999999999999", False),
        ("number", "-0.5", True),
        ("integer", "999999999999999999", True),
        ("integer", "9999999999999999999", False),
    ],
)
def test_numbers_have_an_end(bytewise: Any, kind: str, text: str, allowed: bool) -> None:
    """A model that writes the same digit for ever comes to one."""
    schema: dict[str, JSON] = {"type": "object", "properties": {"n": {"type": [kind, "null"]}}, "required": ["n"]}
    assert accepts(bytewise, kept(schema).schema, f'{{"n": {text}}}') is allowed


@pytest.mark.parametrize(
    ("given_bounds", "allowed", "refused"),
    [
        ({"minimum": 0, "maximum": 10}, "9.5", "11"),
        ({"exclusiveMinimum": 0}, "0.5", "-1"),
        ({"multipleOf": 0.5}, "1.5", "1.25"),
        ({"maximum": 2**63}, "5", "99999999999999999999"),
    ],
    ids=str,
)
def test_bounds_of_the_schema_itself_count(
    bytewise: Any, given_bounds: dict[str, JSON], allowed: str, refused: str
) -> None:
    """Ours are for what has none."""
    schema = kept({"type": "number", **given_bounds}).schema
    assert accepts(bytewise, schema, allowed)
    assert not accepts(bytewise, schema, refused)


@pytest.mark.parametrize("most", [2**63 - 1, 2**63, 2**64, 9007199254740991])
def test_integers_as_generators_bound_them_become_grammars(most: int) -> None:
    """The largest that their language holds, of which no range can be made."""
    schema = kept({"type": "integer", "minimum": -most - 1, "maximum": most}).schema
    assert precheck.failure(grammar.answer(schema)) is None


# Loose


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"oneOf": [{"type": "string", "maxLength": 5}, {"type": "string", "minLength": 3}]}, '"ab"'),
        ({"type": "string", "pattern": "^(?!no)"}, '"yes"'),
        ({"type": "number", "multipleOf": 1e-12}, "0.5"),
    ],
    ids=str,
)
def test_what_is_kept_in_some_cases_only_is_left_out_where_it_is_not(
    bytewise: Any, schema: dict[str, JSON], value: str
) -> None:
    """And is checked afterwards."""
    assert precheck.failure(grammar.answer(kept(schema).schema)) is not None
    found = kept(schema, loose=True)
    assert found.after
    assert accepts(bytewise, found.schema, value)


# Inputs of others


@pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")
@pytest.mark.parametrize("name", ["entity_tool", "record_tool", "nested_tool", "ha_scripts"])
def test_tools_that_failed_once_are_kept_whole(name: str) -> None:
    """As home automation servers and generators of schemas write them."""
    tools: Any = json.loads((CASES / f"{name}.json").read_text())
    found = [part for part in _objects(tools) if "properties" in part and "type" in part]
    assert found
    for schema in found:
        taken = kept(schema)
        assert not taken.after
        assert precheck.failure(grammar.answer(taken.schema)) is None


def _objects(value: JSON) -> list[dict[str, JSON]]:
    if isinstance(value, list):
        return [part for item in value for part in _objects(item)]
    if isinstance(value, dict):
        return [value, *(part for item in value.values() for part in _objects(item))]
    return []


# Anything


schemas = st.recursive(
    st.sampled_from(
        [True, False, {}, TEXT, {"type": "integer"}, {"type": "number"}, {"enum": [1, "a"]}, {"format": "x"}, 5, None]
    ),
    lambda inner: st.dictionaries(
        st.sampled_from(
            [
                "type",
                "properties",
                "items",
                "anyOf",
                "allOf",
                "oneOf",
                "not",
                "$ref",
                "propertyNames",
                "minimum",
                "const",
            ]
        ),
        st.one_of(inner, st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
        max_size=4,
    ),
    max_leaves=12,
)


@given(schema=schemas, loose=st.booleans())
def test_anything_is_taken_apart_and_nothing_of_it_is_changed(schema: JSON, loose: bool) -> None:
    """Whatever stands where a schema should: it is refused later, by name."""
    if not isinstance(schema, dict):
        schema = {"items": schema}
    before = json.dumps(schema)
    first = kept(schema, loose=loose)
    assert json.dumps(schema) == before
    assert kept(first.schema, loose=loose).schema == first.schema  # a second time changes nothing
