"""Calls in the compact dialect, taken apart while they come: what is told is never taken back, and together it is what
was written."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from edged.agent.dialects import compact
from edged.completions.calls import CallPiece, WrittenCall
from edged.completions.lines import LineReader
from edged.types import ToolCall, ToolSpec

VALUES: list[dict[str, Any]] = [
    {},
    {"a": 1},
    {"a": "x", "b": [1, 2.5, None, True], "c": {"d": {}, "e": []}},
    {"quotes": 'say "hi" \\ and {} [ ] , : = ( ) \n \t end', "back": "\\", "both": '\\"'},
    {"ü": "€ 𝄞"},
    {"spaces": "  two  ", "call": 'x(a="b")\ny()'},
]


def spec(name: str, value: dict[str, Any], *, whole: bool) -> ToolSpec:
    """A tool of these arguments. whole: they are written as one object."""
    open_ended = {"additionalProperties": True} if whole else {}
    return ToolSpec(name, "", {"type": "object", "properties": {key: {} for key in value}, **open_ended})


def written(value: dict[str, Any], name: str, *, whole: bool) -> str:
    return compact.write(ToolCall(name, value), spec(name, value, whole=whole))


def read(text: str, cuts: list[int]) -> tuple[list[CallPiece], LineReader]:
    reader, told = LineReader(("reply", "unable")), list[CallPiece]()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        told += list(reader.feed(text[start:end]))
    return told, reader


@pytest.mark.parametrize("whole", [False, True], ids=["each", "whole"])
def test_calls_are_the_same_however_they_are_cut(whole: bool) -> None:
    chance = random.Random(7)
    text = "\n".join(written(value, f"t.{i}-x", whole=whole) for i, value in enumerate(VALUES))
    for cuts in ([], list(range(1, len(text))), *(sorted(chance.sample(range(1, len(text)), 9)) for _ in range(20))):
        told, reader = read(text, cuts)
        calls = reader.calls()
        assert [(call.name, call.value(), call.whole) for call in calls] == [
            (f"t.{i}-x", value, True) for i, value in enumerate(VALUES)
        ]
        assert [call.arguments for call in calls] == [json.dumps(value, ensure_ascii=False) for value in VALUES]
        for i, call in enumerate(calls):
            first, *rest = [piece for piece in told if piece.index == i]
            assert first == CallPiece(i, call.name, "")
            assert "".join(piece.arguments for piece in rest) == call.arguments
            assert all(piece.name is None and piece.arguments for piece in rest)
        assert [piece.index for piece in told] == sorted(piece.index for piece in told)
        assert reader.chosen is None


@pytest.mark.parametrize("whole", [False, True], ids=["each", "whole"])
def test_what_is_cut_off_is_no_json(whole: bool) -> None:
    """So that nobody takes half of a call for the whole."""
    text = written(VALUES[2], "set", whole=whole)
    for end in range(len(text)):
        for call in read(text[:end], [])[1].calls():
            if call.whole:
                assert call.value() == VALUES[2]
            else:
                with pytest.raises(json.JSONDecodeError):
                    call.value()


def test_call_is_told_as_soon_as_it_is_sure() -> None:
    reader = LineReader(("reply",))
    assert reader.feed("set(") == ()
    assert reader.feed("v") == (CallPiece(0, "set", ""), CallPiece(0, None, "{"))
    assert reader.feed('="so') == (
        *(CallPiece(0, None, '"v": '), CallPiece(0, None, '"')),
        *(CallPiece(0, None, "s"), CallPiece(0, None, "o")),
    )
    assert reader.calls() == (WrittenCall("set", '{"v": "so', whole=False),)
    assert reader.feed('")') == (CallPiece(0, None, '"'), CallPiece(0, None, "}"))
    assert reader.calls() == (WrittenCall("set", '{"v": "so"}', whole=True),)


@pytest.mark.parametrize("name", ["reply", "unable"])
def test_pseudo_call_is_no_call(name: str) -> None:
    told, reader = read(f"{name}()", [3])
    assert (told, reader.calls(), reader.chosen) == ([], (), name)


@pytest.mark.parametrize("text", ["", "no call", "x", "reply"])
def test_what_is_no_call_tells_none(text: str) -> None:
    """A scripted model follows no grammar."""
    told, reader = read(text, [])
    assert (told, reader.calls(), reader.chosen) == ([], (), None)
