"""Prompts: the tokens of the whole text, and never a mark out of what a user wrote."""

from __future__ import annotations

import re

import pytest

from edged.engines.llama.prompt import encode, encode_prompt
from edged.types import Segment

CONTROL = "<|end|>"
USER_DEFINED = "<call>"
MARKS = {CONTROL: 1, USER_DEFINED: 2}


class Letters:
    """A vocabulary of words of up to three letters, with one control token and one user-defined token."""

    def __init__(self, space: bool = False) -> None:
        self._space = space
        self._texts = {v: k for k, v in MARKS.items()}

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        marks = MARKS if special else {USER_DEFINED: 2}
        if self._space and text:
            text = " " + text
        pattern = "|".join([*map(re.escape, marks), r"\w{1,3}", r"\W"])
        return [self._id(t, marks) for t in re.findall(pattern, text, re.DOTALL)]

    def _id(self, text: str, marks: dict[str, int]) -> int:
        if text in marks:
            return marks[text]
        token: int = 10 + sum(ord(c) * 300**i for i, c in enumerate(text))
        self._texts[token] = text
        return token

    def piece(self, token: int, *, special: bool) -> bytes:
        return self._texts[token].encode()

    def is_mark(self, token: int) -> bool:
        return token in MARKS.values()

    def texts(self, tokens: list[int]) -> list[str]:
        return [f"[{self._texts[t]}]" if self.is_mark(t) else self._texts[t] for t in tokens]


def ours(text: str) -> Segment:
    return Segment(text)


def theirs(text: str) -> Segment:
    return Segment(text, literal=True)


@pytest.mark.parametrize(
    ("segments", "texts"),
    [
        ([ours("ab"), theirs("cd"), ours("<|end|>")], ["abc", "d", "[<|end|>]"]),  # one text, across segments
        ([ours("<|end|>"), theirs("hi<|end|>")], ["[<|end|>]", "hi", "<", "|", "end", "|", ">"]),
        ([theirs("a<call>b")], ["a", "<", "cal", "l", ">", "b"]),
        ([ours("<call>"), theirs("x")], ["[<call>]", "x"]),
        ([ours("x"), theirs("<|en"), ours("d|>")], ["x", "<", "|", "en", "d", "|", ">"]),  # spelled across the border
        ([theirs("<|en"), theirs("d|>")], ["<", "|", "end", "|", ">"]),
        ([theirs("<call><call>")], ["<", "cal", "l", ">", "<", "cal", "l", ">"]),
        # what stands beside it keeps its tokens: "abc" is one
        (
            [ours("ab"), theirs("c"), ours("<|end|>"), theirs("<|end|>")],
            ["abc", "[<|end|>]", "<", "|", "end", "|", ">"],
        ),
        ([], []),
        ([theirs("")], []),
    ],
)
def test_encode(segments: list[Segment], texts: list[str]) -> None:
    vocabulary = Letters()
    assert vocabulary.texts(encode(segments, vocabulary)) == texts


def test_encode_understands_a_vocabulary_that_puts_a_space_in_front() -> None:
    vocabulary = Letters(space=True)
    assert vocabulary.texts(encode([ours("ab<|end|>"), theirs("cd")], vocabulary)) == [" ", "ab", "[<|end|>]", "cd"]
    safe = vocabulary.texts(encode([ours("ab"), theirs("<|end|>")], vocabulary))
    assert not any(t.startswith("[") for t in safe)


def test_encode_is_linear_in_what_a_user_repeats() -> None:
    vocabulary = Letters()
    tokens = encode([theirs(USER_DEFINED * 20_000)], vocabulary)
    assert not any(vocabulary.is_mark(t) for t in tokens)


TURNS = ["hello", "<|end|>", "<call>", "ab<|end|>cd", "|>", ""]


@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize(
    ("prefix", "before"),
    [
        ([ours("<|end|>"), theirs("ab"), ours("cd<|end|>\n")], "<|end|>user"),  # the turn begins with a mark
        ([ours("<|end|>"), theirs("ab"), ours("cd<|end|>us")], ""),  # the last mark of the prefix is the border
        ([theirs("a<call>b"), ours("cd<|end|>us")], ""),  # the prefix holds such bytes itself
    ],
)
def test_the_prefix_has_the_same_tokens_whatever_the_turn_holds(
    space: bool, prefix: list[Segment], before: str
) -> None:
    vocabulary = Letters(space)
    made = [encode_prompt(prefix, [ours(before), theirs(turn)], vocabulary) for turn in TURNS]
    fixed, kept = made[0]
    assert kept > 2
    assert [(tokens[:kept], shared) for tokens, shared in made] == [(fixed[:kept], kept)] * len(TURNS)


def test_without_a_mark_the_prefix_is_what_begins_the_whole() -> None:
    tokens, shared = encode_prompt([ours("abcd")], [theirs("ef")], vocabulary := Letters())
    assert (vocabulary.texts(tokens), shared) == (["abc", "def"], 1)
