"""The compact dialect: what tools look like in it, and that what it writes is what its grammar and its parser take."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from edged.agent.dialects import compact
from edged.agent.grammars import kept
from edged.tools.values import schema
from edged.types import JSON, Message, ToolCall, ToolSpec

VALVE = ToolSpec(
    "set_valve",
    "Moves it.",
    schema(
        {
            "valve": {"enum": ["north", "south"], "description": "Which one."},
            "level": {"type": "integer", "minimum": 0, "maximum": 9, "default": 5},
            "open": {"type": "boolean"},
            "note": {"type": "string", "optional": True},
        }
    ),
)
START = ToolSpec("start", "Start it", schema({"at": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}}))
STOP = ToolSpec("stop", "Stop.", schema({}))
NESTED = ToolSpec(
    "book",
    "Book.",
    {
        "type": "object",
        "properties": {
            "who": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                "required": ["name"],
            },
            "days": {"type": "array", "items": {"$ref": "#/$defs/day"}},
            "price": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        },
        "required": ["who", "days"],
        "$defs": {"day": {"enum": ["mon", "tue"]}},
    },
)
UNION = ToolSpec(
    "either",
    "One or the other.",
    {"anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"type": "object"}]},
)
TOOLS = (VALVE, START, STOP, NESTED)


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """A vocabulary of bytes."""
    return LLTokenizer("byte")


def accepts(tokenizer: Any, rules: str, output: str) -> bool:
    """Whether the grammar lets a model write this and stop."""
    found = LLMatcher(tokenizer, rules, log_level=0)
    assert not found.is_error(), found.get_error()
    tokens = tokenizer.tokenize_bytes(output.encode())
    if found.validate_tokens(tokens) < len(tokens):
        return False
    found.consume_tokens(tokens)
    return bool(found.is_accepting())


def rules(*tools: ToolSpec, escalates: bool = True) -> str:
    fitted = [ToolSpec(tool.name, tool.description, kept.kept(tool.parameters).schema) for tool in tools]
    return compact.grammar(fitted, most=4, escalates=escalates)


@pytest.mark.parametrize(
    ("tool", "line"),
    [
        (
            VALVE,
            "set_valve(valve: north|south (Which one), open: true|false, level?: int 0..9, note?: text): Moves it.",
        ),
        (START, "start(at: HH:MM): Start it."),
        (STOP, "stop(): Stop."),
        (NESTED, "book(who: {name: text, age?: int}, days: [mon|tue], price?: number or null): Book."),
        (UNION, "either({a: int} or object): One or the other."),
    ],
    ids=lambda each: each.name if isinstance(each, ToolSpec) else "",
)
def test_tool_is_one_short_line(tool: ToolSpec, line: str) -> None:
    assert compact.signature(tool) == line


def test_system_text_stands_before_the_tools_and_the_pseudo_calls() -> None:
    text = compact.system("You look after valves.", (STOP,), escalates=False)
    assert text.splitlines() == [
        "You look after valves.",
        "",
        "Answer with calls, one a line:",
        "stop(): Stop.",
        "reply(): Talk: greetings, thanks, general knowledge.",
        "unable(): About this place, but no tool above can do or tell it.",
    ]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (ToolCall("set_valve", {"open": True, "valve": "north"}), 'set_valve(valve="north", open=true)'),
        (ToolCall("set_valve", {"open": True, "valve": "north", "level": 5}), 'set_valve(valve="north", open=true)'),
        (
            ToolCall("set_valve", {"open": False, "valve": "south", "note": 'a "b"\nü', "level": 3}),
            'set_valve(valve="south", open=false, level=3, note="a \\"b\\"\\nü")',
        ),
        (ToolCall("stop", {}), "stop()"),
        (
            ToolCall("book", {"who": {"name": "Ann"}, "days": ["mon", "tue"], "price": None}),
            'book(who={"name": "Ann"}, days=["mon", "tue"], price=null)',
        ),
    ],
)
def test_what_is_written_is_what_the_grammar_lets_through_and_the_parser_reads(
    bytewise: Any, call: ToolCall, text: str
) -> None:
    tool = next(tool for tool in TOOLS if tool.name == call.name)
    assert compact.write(call, tool) == text
    assert accepts(bytewise, rules(*TOOLS), text)
    [read] = compact.parse(text)
    assert read.name == call.name
    assert read.arguments.items() <= call.arguments.items()


def test_schema_whose_arguments_are_not_listed_is_written_as_json(bytewise: Any) -> None:
    text = compact.write(ToolCall("either", {"a": 1}), UNION)
    assert text == 'either({"a": 1})'
    assert accepts(bytewise, rules(UNION), text)
    assert compact.parse(text) == (ToolCall("either", {"a": 1}),)


def test_several_calls_stand_on_lines_of_their_own(bytewise: Any) -> None:
    text = 'stop()\nstart(at="07:30")'
    assert accepts(bytewise, rules(*TOOLS), text)
    assert [call.name for call in compact.parse(text)] == ["stop", "start"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "open()",
        "stop",
        "stop()\nreply()",
        "stop()\n" * 4 + "stop()",
        'set_valve(open=true, valve="north")',
        'set_valve(valve="west", open=true)',
        'set_valve(valve="north")',
        'set_valve(valve="north", open=true, x=1)',
        'start(at="25:00")',
        "escalate()",
    ],
)
def test_what_is_no_call_of_these_tools_cannot_be_written(bytewise: Any, text: str) -> None:
    assert not accepts(bytewise, rules(*TOOLS, escalates=False), text)


def test_number_out_of_range_can_be_written_and_is_not_bent(bytewise: Any) -> None:
    """A grammar that keeps the range would make 35 of 350; whoever reads the call sees what was asked."""
    assert accepts(bytewise, rules(VALVE), 'set_valve(valve="north", open=true, level=350)')


@pytest.mark.parametrize("text", ["stop(", 'start(at="07', "start(at=", "start(at", "", "start()x", "()", "stop()\n\n"])
def test_text_that_was_cut_off_is_no_call(text: str) -> None:
    if text == "stop()\n\n":
        assert compact.parse(text) == (ToolCall("stop", {}),)
        return
    with pytest.raises(ValueError, match=r"it |Expecting|Unterminated"):
        compact.parse(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.-]{0,10}\Z")


@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=4)), min_size=1, max_size=4))
def test_whatever_is_written_reads_the_same_again(calls: list[tuple[str, dict[str, JSON]]]) -> None:
    made = tuple(ToolCall(name, arguments) for name, arguments in calls)
    assert compact.parse("\n".join(compact.write(call, None) for call in made)) == made


@given(VALUES)
def test_every_json_has_a_rendering_as_a_schema(value: JSON) -> None:
    """Whatever a client sends as a schema: a line comes of it."""
    tool = ToolSpec("t", "d", {"type": "object", "properties": {"a": value}})
    assert compact.signature(tool).startswith("t(")
    assert json.dumps(compact.signature(tool)).count("\\n") == 0


def test_calls_and_results_become_plain_talk() -> None:
    talk = compact.as_talk(
        [Message("assistant", tool_calls=(ToolCall("stop", {}),)), Message("tool", '{"ok": true}')], {"stop": STOP}
    )
    assert talk == [Message("assistant", "stop()"), Message("user", 'Result: {"ok": true}')]


def test_call_that_has_to_be_made_is_one_within_its_ranges(bytewise: Any) -> None:
    """Else it may also be none, and a number any."""
    one = [ToolSpec(VALVE.name, "", kept.kept(VALVE.parameters).schema)]
    strict = compact.grammar(one, most=1, escalates=False, must_call=True, in_range=True)
    loose = compact.grammar(one, most=1, escalates=False)
    call = 'set_valve(valve="north", open=true, level={})'
    for text, taken in ((call.format(9), (True, True)), (call.format(90), (False, True)), ("reply()", (False, True))):
        assert (accepts(bytewise, strict, text), accepts(bytewise, loose, text)) == taken


TREE = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/tree"}, {"type": "array", "items": {"$ref": "#/$defs/tree"}}]}


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"a": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": TREE}},
        {"properties": {"a": {"allOf": [{"$ref": "#/properties/a"}]}}},
        {
            "properties": {"a": {"$ref": "#/$defs/d0"}},
            "$defs": {
                f"d{i}": {"properties": {f"p{j}": {"$ref": f"#/$defs/d{i + 1}"} for j in range(60)}} for i in range(5)
            },
        },
    ],
    ids=["leads to itself", "is itself", "sixty times sixty"],
)
def test_signature_of_a_schema_without_end_has_one(parameters: dict[str, JSON]) -> None:
    """Clients send any."""
    assert len(compact.signature(ToolSpec("x", "It.", {"type": "object", **parameters}))) < 20_000


def test_reference_to_another_part_of_the_schema_is_kept(bytewise: Any) -> None:
    """The arguments are one object then, which holds what is referred to; so are those that refer to very much."""
    same = {"type": "object", "properties": {"a": {"enum": ["x"]}, "b": {"$ref": "#/properties/a"}}, "required": ["b"]}
    assert accepts(bytewise, rules(ToolSpec("same", "", same)), 'same({"b": "x"})')
    assert not accepts(bytewise, rules(ToolSpec("same", "", same)), 'same({"b": "y"})')
    many: dict[str, JSON] = {
        "type": "object",
        "properties": {f"p{i}": {"$ref": f"#/$defs/d{i}"} for i in range(20)},
        "$defs": {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{(i + 1) % 20}"}} for i in range(20)},
    }
    assert accepts(bytewise, rules(ToolSpec("many", "", many)), 'many({"p3": []})')


def test_grammar_of_an_argument_has_the_definitions_that_it_needs() -> None:
    defined = {"day": {"enum": ["mon"]}, "night": {"enum": ["tue"]}}
    parameters: dict[str, JSON] = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/day"}, "b": {"type": "string"}},
        "$defs": defined,
    }
    assert rules(ToolSpec("x", "", parameters)).count("mon") == 1
    assert "tue" not in rules(ToolSpec("x", "", parameters))
