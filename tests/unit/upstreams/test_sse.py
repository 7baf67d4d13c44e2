"""Bytes of a stream into events, however they are cut."""

from __future__ import annotations

import pytest

from edged.upstreams.sse import Events

STREAM = (
    ": a comment\n\n"
    "event: message\nid: 7\ndata: {\"a\": \"grün\"}\n\n"
    "data:without a space\r\n\r\n"
    "data: two\ndata: lines\n\n"
    "retry: 5\n\n"
    "data\n\n"
    "data: 🌱\r\n\n"
    "data: [DONE]\n\n"
).encode()  # fmt: skip
DATA = ['{"a": "grün"}', "without a space", "two\nlines", "", "🌱", "[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_come_whole_however_the_stream_is_cut(size: int) -> None:
    """Comments, other fields, both line ends, several data lines, characters of several bytes."""
    events, got = Events(), []
    for at in range(0, len(STREAM), size):
        got += events.feed(STREAM[at : at + size])
    assert got + events.end() == DATA


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_events_of_every_truncated_stream_are_a_beginning_of_the_whole(cut: int) -> None:
    """What is incomplete stays inside; nothing is made up."""
    got = Events().feed(STREAM[:cut])
    assert got == DATA[: len(got)]


@pytest.mark.parametrize("last", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"])
def test_events_end_gives_a_last_event_without_its_empty_line(last: bytes) -> None:
    """A server that closes right after its last line has said it."""
    events = Events()
    assert events.feed(last) == []
    assert events.end() == ["[DONE]"]


def test_events_refuse_what_is_not_utf8() -> None:
    """Nothing is replaced silently."""
    with pytest.raises(UnicodeDecodeError):
        Events().feed(b"data: \xff\n\n")
