"""What a grammar lets a model choose: asked token by token, as a whole, and as llguidance's own mask has it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edged.agent import grammar
from edged.agent.dialect import HERMES
from edged.engine.constraint import Constraint, Grammars, tokens_of
from edged.errors import BadRequest
from edged.tools.values import schema
from edged.types import ToolSpec
from tests.words import Words, model_path

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
