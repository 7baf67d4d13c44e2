"""Log-probabilities: what is read from a row, and that a token is told with its text and not before."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edged.engines.llama.logprobs import LEAST, Trail
from edged.engines.llama.text import TextStream
from edged.types import TokenLogprob

VOCABULARY = [b"go", b" S", b"TOP", b"\xe2\x82", b"\xac", b"", b"\xf0\x9f", b"x"]


def trail(top: int = 0) -> Trail:
    return Trail(top, lambda token: VOCABULARY[token])


def row(*probabilities: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float64)).astype(np.float32) + np.float32(5)


def written(tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[str, list[TokenLogprob], list[tuple[str, str]]]:
    """(the text, all tokens told, what came together) of a generation that ends where the text does."""
    seen, stream = trail(), TextStream(stop)
    steps = []
    for token in tokens:
        if stream.stopped:
            break
        seen.measure(row(*[0.125] * 8), token)
        piece = VOCABULARY[token]
        text = stream.feed(piece)
        seen.place(piece, stream.reach)
        steps.append((text, seen.take(stream.given)))
    text = stream.finish()
    steps.append((text, seen.take(stream.given)))
    return (
        stream.text,
        seen.told,
        [(text, b"".join(t.data for t in told).decode(errors="replace")) for text, told in steps],
    )


def test_measure_tells_the_token_and_the_likeliest_before_any_mask() -> None:
    """The likeliest come in order, and the greedy choice is the first of them with the same number."""
    seen = trail(top=3)
    seen.measure(row(0.5, 0.05, 0.25, 0.0, 0.0, 0.0, 0.0, 0.2), 1)
    seen.place(b" S", 2)
    (told,) = seen.take(2)
    assert (told.text, told.data) == (" S", b" S")
    assert told.logprob == pytest.approx(math.log(0.05), abs=1e-6)
    assert [(text, data) for text, data, _ in told.top] == [("go", b"go"), ("TOP", b"TOP"), ("x", b"x")]
    assert [p for _, _, p in told.top] == pytest.approx([math.log(p) for p in (0.5, 0.25, 0.2)], abs=1e-6)


def test_measure_of_what_cannot_be_is_a_number_json_has() -> None:
    """And nothing is more than certain."""
    seen = trail(top=8)
    seen.measure(row(1, 0, 0, 0, 0, 0, 0, 0), 0)
    seen.place(b"go", 2)
    (told,) = seen.take(2)
    assert told.logprob == 0.0
    assert [p for _, _, p in told.top] == [0.0, *[LEAST] * 7]


def test_measure_of_a_large_row_adds_up_to_no_more_than_one() -> None:
    """152k small numbers in 32 bits would not."""
    logits = np.random.default_rng(1).normal(0, 0.01, 151_936).astype(np.float32)
    seen = Trail(151_936, lambda _: b"x")
    seen.measure(logits, 0)
    seen.place(b"x", 1)
    assert sum(math.exp(p) for _, _, p in seen.take(1)[0].top) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "stop", "text", "told"),
    [
        ([0, 7], (), "gox", b"gox"),
        ([0, 1, 2, 7], ("STOP",), "go ", b"go"),
        ([0, 1, 7], ("STOP",), "go Sx", b"go Sx"),
        ([0, 1], ("STOP",), "go S", b"go S"),
        ([0, 7], ("x",), "go", b"go"),
        ([0, 7], ("o",), "g", b""),
        ([3, 4, 7], (), "€x", b"\xe2\x82\xacx"),
        ([3, 4, 7], ("x",), "€", b"\xe2\x82\xac"),
        ([3, 4, 7], ("€",), "", b""),
        ([0, 3], (), "go\ufffd", b"go\xe2\x82"),
        ([6, 7], (), "\ufffdx", b"\xf0\x9fx"),
        ([6, 3, 4], (), "\ufffd€", b"\xf0\x9f\xe2\x82\xac"),
        ([0, 5, 7], (), "gox", b"gox"),
        ([], (), "", b""),
    ],
)
def test_take_gives_the_tokens_of_the_text(tokens: list[int], stop: tuple[str, ...], text: str, told: bytes) -> None:
    """In order; one that a stop string cut is not told, nor one that spells nothing."""
    whole, all_told, steps = written(tokens, stop)
    assert whole == text == "".join(part for part, _ in steps)
    assert b"".join(token.data for token in all_told) == told
    assert all(token.data for token in all_told)


def test_take_waits_for_the_text_of_a_token() -> None:
    """What is held back, as a character in progress or as the beginning of a stop string, holds its tokens back."""
    assert written([0, 1, 7], ("STOP",))[2] == [("go", "go"), (" ", ""), ("Sx", " Sx"), ("", "")]
    assert written([3, 4, 7])[2] == [("", ""), ("€", "€"), ("x", "x"), ("", "")]
