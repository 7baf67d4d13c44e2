"""Text out of pieces: every way of cutting it gives the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from edged.engines.llama.text import TextStream


def cuts(raw: bytes) -> Iterator[list[bytes]]:
    """All ways to cut up to 10 bytes; for longer ones all pairs of cuts, and byte by byte."""
    if len(raw) <= 10:
        for mask in range(2 ** max(len(raw) - 1, 0)):
            at = [0, *(i + 1 for i in range(len(raw) - 1) if mask >> i & 1), len(raw)]
            yield [raw[a:b] for a, b in itertools.pairwise(at)]
        return
    yield [raw[i : i + 1] for i in range(len(raw))]
    for a in range(len(raw)):
        for b in range(a, len(raw)):
            yield [raw[:a], raw[a:b], raw[b:]]


@pytest.mark.parametrize(
    ("raw", "stop", "text"),
    [
        (b"", (), ""),
        (b"plain", (), "plain"),
        ("größe €".encode(), (), "größe €"),
        ("a😀b".encode(), (), "a😀b"),
        (b"half \xe2\x82", (), "half \ufffd"),
        (b"bad \xff end", (), "bad \ufffd end"),
        (b"one\ntwo", ("\n",), "one"),
        (b"never", ("STOP",), "never"),
        (b"ends ST", ("STOP",), "ends ST"),
        (b"go STOP on", ("STOP",), "go "),
        (b"STSTOPx", ("STOP",), "ST"),
        (b"xabcd", ("abcd", "bc"), "xa"),  # "bc" is complete first
        (b"xabc", ("abc", "bc"), "x"),  # complete together: the longer one
        (b"STOP", ("STOP",), ""),
        ("nur € hier".encode(), ("€",), "nur "),
        (b"aaab", ("aab",), "a"),
        (b"text", ("",), "text"),
        (b"\xe2\x82STOP", ("STOP",), "\ufffd"),
    ],
)
def test_stream_gives_the_same_text_however_it_is_cut(raw: bytes, stop: tuple[str, ...], text: str) -> None:
    for pieces in cuts(raw):
        stream = TextStream(stop)
        given = [stream.feed(p) for p in pieces]
        given.append(stream.finish())
        assert "".join(given) == text == stream.text
        assert not any("\ufffd" in g for g in given[:-1]) or "\ufffd" in text


@pytest.mark.parametrize("raw", ["größe €".encode(), "a😀b".encode()])
def test_stream_never_gives_half_a_character(raw: bytes) -> None:
    for pieces in cuts(raw):
        stream = TextStream()
        assert "\ufffd" not in "".join(stream.feed(p) for p in pieces)


def test_stream_holds_back_only_what_may_become_a_stop_string() -> None:
    stream = TextStream(("STOP",))
    assert [stream.feed(p) for p in (b"go S", b"T", b"x", b"STO", b"P more", b"more")] == ["go ", "", "STx", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""
