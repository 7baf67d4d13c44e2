"""What a grammar lets a model choose: asked token by token, as a whole, and as llguidance's own mask has it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edged.agent.dialects.chat_template import HERMES
from edged.agent.grammars import grammar
from edged.engines.llama import vocabulary
from edged.engines.llama.constraint import Constraint, Grammars, tokens_of
from edged.errors import BadRequest
from edged.tools.values import schema
from edged.types import ToolSpec
from tests.support.vocabularies import Words, model_path

pytestmark = pytest.mark.model

LAMP = ToolSpec(
    "set_lamp",
    "d",
    schema(
        {
            "lamp": {"enum": ["north", "s\u00fcd"]},
            "level": {"type": "integer", "minimum": 0, "maximum": 100},
            "note": {},
        }
    ),
)
SHAPE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
        "short": {"type": "string", "maxLength": 7},
        "items": {"type": "array", "items": {"type": "number"}, "maxItems": 3},
    },
    "required": ["name", "code", "short"],
    "additionalProperties": False,
}
GRAMMARS = {
    "call": grammar.one_call([LAMP], HERMES),
    "answer": grammar.answer(SHAPE),
    "text-or-calls": grammar.text_or_calls([LAMP], HERMES, most=2, stops=("STOP",)),
    "answer-or-calls": grammar.answer_or_calls([LAMP], HERMES, SHAPE, most=1),
    "any-object": grammar.answer({"type": "object"}),
    "words": grammar.words(),
}


@pytest.fixture(scope="module")
def words() -> Iterator[Any]:
    loaded = Words(model_path("smollm2-135m-instruct-q4_1"))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def grammars(words: Any) -> Iterator[Grammars]:
    made = Grammars(words)
    yield made
    made.clear()


def walk(
    constraint: Constraint, chance: random.Random, steps: int
) -> Iterator[tuple[Constraint, np.ndarray[Any, Any]]]:
    """Places of a random output, with the tokens that may come next there."""
    constraint.forced()
    for _ in range(steps):
        if constraint.complete:
            return
        ids = constraint.allowed().ids
        yield constraint, ids
        constraint.accept(int(chance.choice(ids.tolist())))
        constraint.forced()


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_token_is_held_if_and_only_if_it_is_among_all(words: Any, grammars: Grammars, name: str) -> None:
    """The quick question and the mask have the same answer, for text, for ends, and for what is neither."""
    chance = random.Random(1)
    for constraint, ids in walk(grammars.constraint(GRAMMARS[name]), chance, 12):
        some = {*chance.sample(range(words.n_vocab), 1500), *chance.sample(ids.tolist(), min(300, len(ids))), 0, 1, 2}
        allowed, among = constraint.allowed(), set(ids.tolist())
        for token in some:
            assert allowed.holds(token) == (token in among), (token, words.is_control(token))
        assert constraint.allowed().ids.tolist() == ids.tolist()  # asking has changed nothing


def test_the_bits_of_a_mask_are_found_whatever_their_number() -> None:
    """Few of them, and nearly all: there are two ways of looking."""
    chance = np.random.default_rng(1)
    for n_vocab in (1, 31, 32, 1000, 49_152):
        for share in (0.0, 0.0005, 0.05, 0.5, 1.0):
            bits = np.zeros(-(-n_vocab // 32) * 32, np.bool_)
            bits[:n_vocab] = chance.random(n_vocab) < share
            mask = np.packbits(bits, bitorder="little").view(np.uint32)
            assert tokens_of(mask).tolist() == np.flatnonzero(bits).tolist()


def test_a_grammar_is_compiled_once(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request has a state of its own of the same grammar."""
    text = grammar.answer({"enum": ["only once", "or twice"]})
    first = grammars.constraint(text)
    monkeypatch.delattr(Grammars, "_compile")
    second = grammars.constraint(text)
    assert first.forced() == second.forced() != []
    first.accept(int(first.allowed().ids[0]))
    assert len(second.allowed().ids) > 1


@pytest.mark.parametrize(
    "text", ["start: (", "start: nothing", 'start: %json {"type": "no type"}', 'start: "a"\x00', "{"]
)
def test_what_is_no_grammar_is_refused(grammars: Grammars, text: str) -> None:
    with pytest.raises(BadRequest, match="not usable"):
        grammars.constraint(text)


def test_a_token_that_may_not_come_fails_this_output_and_no_other(words: Any, grammars: Grammars) -> None:
    text = grammar.answer({"type": "integer"})
    broken, other = grammars.constraint(text), grammars.constraint(text)
    letter = words.tokenize("x", special=False)[0]
    with pytest.raises(BadRequest, match="cannot be followed"):
        broken.accept(letter)
    with pytest.raises(BadRequest):
        _ = broken.allowed().ids
    assert not other.allowed().holds(letter)
    assert other.allowed().holds(words.tokenize("1", special=False)[0])


WRITTEN: dict[str, tuple[str, str, int, bool]] = {  # grammar, output, most tokens to choose, forced behind the prompt
    "an agent's call": (
        grammar.one_call([LAMP, ToolSpec("reply", "d", schema({}))], HERMES),
        '<tool_call>\n{"name": "set_lamp", "arguments": {"lamp": "north", "level": 40, "note": "x"}}\n</tool_call>',
        9,
        True,
    ),
    "response_schema": (
        grammar.answer({"type": "object", "properties": {"tank": {"enum": ["a", "b"]}, "ok": {"type": "boolean"}},
                        "required": ["tank", "ok"], "additionalProperties": False}),
        '{"tank": "b", "ok": true}',
        4,
        True,
    ),
    "tools, required": (
        grammar.some_calls([LAMP], HERMES, most=4),
        '<tool_call>\n{"name": "set_lamp", "arguments": {"lamp": "north", "level": 7, "note": ""}}\n</tool_call>',
        6,
        True,
    ),
    "tools, auto, marked": (
        grammar.text_or_calls([LAMP], HERMES, most=1),
        '<tool_call>\n{"name": "set_lamp", "arguments": {"lamp": "north", "level": 7, "note": ""}}\n</tool_call>',
        14,
        False,
    ),
    "tools, auto, bare": (
        grammar.text_or_calls([LAMP], HERMES, most=1),
        '{"name": "set_lamp", "arguments": {"lamp": "north", "level": 7, "note": ""}}',
        15,
        False,
    ),
    "tools beside a shape": (
        grammar.answer_or_calls([LAMP], HERMES, SHAPE, most=1),
        '{"name": "set_lamp", "arguments": {"lamp": "north", "level": 7, "note": ""}}',
        12,
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_no_choice_is_forced_wherever_a_grammar_runs(words: Any, grammars: Grammars, name: str) -> None:
    """Also behind the prompt, where what comes first is certain. (An object of any shape has nothing certain.)"""
    rules, text, most, at_once = WRITTEN[name]
    constraint = grammars.constraint(rules)
    written, chosen, forced = "", 0, constraint.forced()
    assert bool(forced) == at_once
    while True:
        written += "".join(vocabulary.piece_of(words, token).decode() for token in forced)
        assert text.startswith(written)
        if constraint.complete or written == text:
            break
        token = next_token(words, text[len(written) :], constraint)
        constraint.accept(token)
        chosen += 1
        written += vocabulary.piece_of(words, token).decode()
        forced = constraint.forced()
    assert written == text
    assert chosen <= most
    assert chosen < len(words.tokenize(text, special=False)) / 1.5


def next_token(words: Any, text: str, constraint: Constraint) -> int:
    """The longest token that the text goes on with and the grammar allows."""
    allowed = constraint.allowed().ids.tolist()
    pieces = {vocabulary.piece_of(words, token): token for token in allowed if not words.is_eog(token)}
    longest = next(size for size in range(len(text), 0, -1) if text[:size].encode() in pieces)
    return int(pieces[text[:longest].encode()])
