"""How sure a model was: of what it chose, and of what a grammar ended for it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edged.engines.llama.confidence import Confidence, OpenValue, end_logprob


@pytest.mark.parametrize(
    ("marker", "pieces", "expected"),
    [
        (None, [(b"x", -1.0)], None),
        ("", [(b"x", -1.0), (b"y", -2.0)], -3.0),
        ("<call>", [(b"<ca", -1.0), (b"ll>{", -0.5), (b"a", -0.25)], -1.75),
        ("<call>", [(b"<call>", None), (b"a", -0.5)], -0.5),  # forced tokens are not counted
        ("<call>", [(b"<ca", -1.0), (b"t", -0.5), (b"a", -0.25)], None),
        ("<call>", [(b"<ca", -1.0)], None),  # ended before it became a call
        ("<call>", [(b"<call>", None)], None),  # nothing sampled
        ("ä", [("ä".encode()[:1], -1.0), ("ä".encode()[1:], -1.0)], -2.0),
    ],
)
def test_confidence_sums_while_the_text_begins_with_the_marker(
    marker: str | None, pieces: list[tuple[bytes, float | None]], expected: float | None
) -> None:
    confidence = Confidence(marker)
    for piece, logprob in pieces:
        if logprob is not None and confidence.wanted:
            confidence.add(logprob)
        confidence.feed(piece)
    assert confidence.logprob == expected


@pytest.mark.parametrize(
    ("said", "forced", "expected"),
    [
        (b'{"ml": 0', b"}}", (b"", b"0")),  # an integer: no point may come
        (b'{"ml": -1', b"2}", (b"2", b"-12")),
        (b'{"ml": 1.5e', b"3, ", (b"3", b"1.5e3")),
        (b'{"ml": [1, 30', b", ", (b"", b"30")),
        (b'{"code": "AB', b'CD"}', (b'CD"', b'"ABCD"')),  # maxLength: 4
        (b'{"code": "a\\"b', b'"}', (b'"', b'"a\\"b"')),  # an escaped quote ends nothing
        (b'{"code": "a\\', b'""}', (b'""', b'"a\\""')),
        (b'{"code": "AB', b"CD", None),  # it goes on
        (b'{"ml": 1', b"2", None),
        (b'{"on": true', b"}}", None),  # chosen whole
        (b'{"on": false, "e": nul', b"l}", None),
        (b'{"room', b'": "', None),  # a name
        (b'{"ml": 0}', b"}", None),  # ended by the model
        (b"", b'{"', None),
    ],
)
def test_end_of_a_value_is_found_where_it_is_forced(
    said: bytes, forced: bytes, expected: tuple[bytes, bytes] | None
) -> None:
    for cut in range(len(said) + 1):
        value = OpenValue()
        value.feed(said[:cut])
        value.feed(said[cut:])
        assert value.rest(forced) == expected


def test_end_of_a_listed_value_is_not_looked_at() -> None:
    def cut(said: bytes, forced: bytes) -> bytes | None:
        confidence = Confidence("", frozenset((b'"heat"', b"30")))
        confidence.feed(said)
        return confidence.cut(forced)

    assert cut(b'{"mode": "he', b'at"}') is None
    assert cut(b'{"level": 30', b"}") is None
    assert cut(b'{"mode": "heat', b'er"}') == b'er"'
    assert cut(b'{"level": 3', b"}") == b""
    assert Confidence(None).cut(b"}") is None


TOKENS = (b".", b"}", b"}}\n", b'"', b'"}', b"or", b"ori", b" }", b" ml", b"9")


def share(rest: bytes, forced: bytes, likely: dict[bytes, float]) -> float:
    """What `end_logprob` gives to the forced token where the model's wishes are these."""
    logits = np.array([math.log(likely.get(token, 1e-9)) for token in TOKENS], np.float32)
    return math.exp(end_logprob(logits, rest, TOKENS.index(forced), lambda token: TOKENS[token]))


@pytest.mark.parametrize(
    ("rest", "forced", "likely", "expected"),
    [
        (b"", b"}", {b".": 0.9, b"}": 0.1}, 0.1),  # 0.9 for an integer
        (b"", b"}", {b"9": 0.99, b"}": 0.01}, 0.01),  # a number at its maximum
        (b"", b"}", {b" ml": 0.7, b"}": 0.3}, 0.3),
        (b"", b"}", {b"}": 0.2, b"}}\n": 0.7, b".": 0.1}, 0.9),  # the same text in other tokens
        (b"", b"}", {b" }": 0.8, b"}": 0.2}, 1.0),
        (b'"', b'"', {b"or": 0.75, b'"': 0.05, b'"}': 0.2}, 0.25),  # a text at its greatest length
        (b'or"', b"or", {b"or": 0.5, b"ori": 0.5}, 0.5),  # a value of a list
        (b"", b"}", {b".": 1.0}, 0.0),
    ],
)
def test_end_counts_as_far_as_the_model_wanted_it(
    rest: bytes, forced: bytes, likely: dict[bytes, float], expected: float
) -> None:
    assert share(rest, forced, likely) == pytest.approx(expected, abs=1e-6)
