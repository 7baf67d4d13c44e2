"""What the grammars let a model write, by llguidance itself over single bytes."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from edged.agent.dialects.chat_template import GENERIC, HERMES, CallFormat, parse_call, write_json
from edged.agent.grammars import grammar
from edged.tools.values import schema
from edged.types import JSON, ToolSpec


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """A vocabulary of bytes."""
    return LLTokenizer("byte")


def matcher(tokenizer: Any, text: str) -> LLMatcher:
    return LLMatcher(tokenizer, text, log_level=0)


def accepts(tokenizer: Any, text: str, output: str) -> bool:
    """Whether the grammar lets a model write this and stop."""
    found = matcher(tokenizer, text)
    assert not found.is_error(), found.get_error()
    tokens = tokenizer.tokenize_bytes(output.encode())
    if found.validate_tokens(tokens) < len(tokens):
        return False
    found.consume_tokens(tokens)
    return bool(found.is_accepting())


VALVE = ToolSpec(
    "set_valve",
    "d",
    schema({"valve": {"enum": ["north", "süd"]}, "open": {"type": "boolean"}, "level": {"type": "integer", "minimum": 0,
            "maximum": 9, "default": 5}, "note": {"default": ""}}),
)  # fmt: skip
REPLY = ToolSpec("reply", "d", schema({}))

CALLS: list[tuple[str, bool]] = [
    ('{"name": "set_valve", "arguments": {"valve": "north", "open": true}}', True),
    ('{"name": "set_valve", "arguments": {"valve": "süd", "open": false, "level": 9}}', True),
    (
        '{"name": "set_valve", "arguments": {"valve": "north", "open": true, "level": 0, "note": "a \\"b\\" \\n ü"}}',
        True,
    ),
    ('{"name": "reply", "arguments": {}}', True),
    ('{"name": "other", "arguments": {}}', False),
    ('{"name": "reply", "arguments": {"x": 1}}', False),
    ('{"name": "set_valve", "arguments": {"open": true}}', False),
    ('{"name": "set_valve", "arguments": {"valve": "west", "open": true}}', False),
    ('{"name": "set_valve", "arguments": {"valve": "north", "open": 1}}', False),
    ('{"name": "set_valve", "arguments": {"valve": "north", "open": true, "level": 10}}', False),
    ('{"name": "set_valve", "arguments": {"valve": "north", "open": true, "extra": 1}}', False),
    ('{"name":"reply","arguments":{}}', False),
    ('{"name": "reply", "arguments": {}} ', False),
    ('{"name": "reply", "arguments": {}}{"name": "reply", "arguments": {}}', False),
    ('{"name": "reply"}', False),
    ('{"name": "set_valve", "arguments": {"valve": "north", "open": true, "note": "\\ud800"}}', False),
    ("Hello", False),
    ("", False),
]


@pytest.mark.parametrize("calls", [HERMES, GENERIC], ids=["hermes", "generic"])
@pytest.mark.parametrize(("text", "allowed"), CALLS, ids=[str(i) for i in range(len(CALLS))])
def test_one_call_lets_exactly_one_valid_call_through(
    bytewise: Any, calls: CallFormat, text: str, allowed: bool
) -> None:
    """Declared arguments of the right types, in the spaces models know; nothing before, between or behind."""
    whole = calls.before + text + calls.after
    assert accepts(bytewise, grammar.one_call([VALVE, REPLY], calls), whole) is allowed
    if allowed:
        assert parse_call(whole, calls).name in ("set_valve", "reply")


@pytest.mark.parametrize("calls", [HERMES, GENERIC], ids=["hermes", "generic"])
def test_one_call_forces_all_that_is_no_choice(bytewise: Any, calls: CallFormat) -> None:
    """Names and punctuation cost no model step."""
    forced = matcher(bytewise, grammar.one_call([REPLY], calls)).compute_ff_bytes()
    assert forced.decode() == calls.before + '{"name": "reply", "arguments": {}}' + calls.after


@pytest.mark.parametrize("name", ["a", "a.b-c_d", "A" * 64])
def test_one_call_takes_every_name_the_configuration_allows(bytewise: Any, name: str) -> None:
    """Dots and dashes have no meaning in it."""
    call = write_json({"name": name, "arguments": {}})
    assert accepts(bytewise, grammar.one_call([ToolSpec(name, "d", schema({}))], GENERIC), call)


ANSWERS: list[tuple[dict[str, JSON], str, bool]] = [
    ({"type": "integer"}, "12", True),
    ({"type": "integer"}, "1.5", False),
    ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False},
     '{"a": "x"}', True),
    ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, '{}', False),
    ({"type": "array", "items": {"enum": ["a", 1]}, "minItems": 1}, '["a", 1]', True),
    ({"type": "array", "items": {"enum": ["a", 1]}, "minItems": 1}, "[]", False),
    ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, "null", True),
    ({"type": "string", "maxLength": 2}, '"abc"', False),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "text", "allowed"), ANSWERS)
def test_answer_lets_values_of_the_schema_through(
    bytewise: Any, shape: dict[str, JSON], text: str, allowed: bool
) -> None:
    """A response_schema is kept by construction."""
    assert accepts(bytewise, grammar.answer(shape), text) is allowed


def test_answer_does_not_let_a_schema_set_the_spaces(bytewise: Any) -> None:
    """x-guidance is ours."""
    text = grammar.answer({"type": "array", "items": {"type": "integer"}, "x-guidance": {"whitespace_flexible": True}})
    assert accepts(bytewise, text, "[1, 2]")
    assert not accepts(bytewise, text, "[ 1,  2 ]")


LAYOUTS: dict[str, tuple[str, str]] = {
    "one line": ('{"name": "reply"', ', "arguments": {}}'),
    "behind a line break": ('\n{"name": "reply"', ', "arguments": {}}'),
    "fenced": ('```json\n{"name": "reply"', ', "arguments": {}}'),
    "indented": ('{\n  "name": "reply"', ',\n  "arguments": {'),
    "fenced and indented": ('```\n{\n  "name": "reply"', ',\n  "arguments": {'),
    "its own": ('{ "name":"reply"', ""),
    "a word": ('"reply"', ""),
}


@pytest.mark.parametrize("calls", [HERMES, GENERIC], ids=["hermes", "generic"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_text_or_calls_forces_what_follows_the_name_in_a_known_layout(
    bytewise: Any, calls: CallFormat, name: str
) -> None:
    """A call that begins as json.dumps writes it goes on like that; any other layout is the model's choice."""
    begun, forced = LAYOUTS[name]
    found = matcher(bytewise, grammar.text_or_calls([VALVE, REPLY], calls, most=1))
    found.consume_tokens(bytewise.tokenize_bytes(begun.encode()))
    assert not found.is_error()
    assert found.compute_ff_bytes().decode() == forced


@pytest.mark.parametrize(
    "call",
    [
        '{"name": "reply", "arguments": {}}',
        '{\n  "name": "reply",\n  "arguments": {}\n}',
        '{\n  "name": "set_valve",\n  "arguments": {\n    "valve": "north",\n    "open": true\n  }\n}',
        '{\n    "name": "reply",\n    "arguments": {}\n}',
        '{"name":"reply","arguments":{}}',
        '{ "name" : "reply" ,\t"arguments" : { } }',
        '```json\n{\n  "name": "reply",\n  "arguments": {}\n}\n```',
        '```\n{"name": "reply", "arguments": {}}```',
        '``` {"name":"reply", "arguments":{}} ```',
    ],
)
def test_text_or_calls_lets_calls_through_in_any_layout(bytewise: Any, call: str) -> None:
    """So small models write them, bare or in a fence."""
    rules = grammar.text_or_calls([VALVE, REPLY], HERMES, most=1)
    assert accepts(bytewise, rules, call)
    assert not accepts(bytewise, rules, call.replace('"arguments"', '"argument"'))
