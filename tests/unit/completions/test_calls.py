"""Calls taken apart while they come: what is told is never taken back, and together it is what was written."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from edged.agent.dialects.chat_template import write_json
from edged.completions.calls import CallPiece, CallReader, WrittenCall, joined

VALUES: list[dict[str, Any]] = [
    {},
    {"a": 1},
    {"a": "x", "b": [1, 2.5, None, True], "c": {"d": {}, "e": []}},
    {"quotes": 'say "hi" \\ and {} [ ] , : \n \t end', "back": "\\", "both": '\\"'},
    {"ü": "€ 𝄞", "": ""},
    {"spaces": "  two  ", "tool": '</tool_call> ``` {"name": "x", "arguments": {'},
]
LAYOUTS: dict[str, Any] = {
    "ours": {},
    "compact": {"separators": (",", ":")},
    "wide": {"separators": (" , ", " : ")},
    "lines": {"indent": 3},
    "escaped": {"ensure_ascii": True},
}
AROUND = ["{}", "<tool_call>\n{}\n</tool_call>", "```json\n{}\n```", " \n{} "]


def written(name: str, value: Any, layout: str) -> str:
    return json.dumps({"name": name, "arguments": value}, **{"ensure_ascii": False, **LAYOUTS[layout]})


def read(text: str, cuts: list[int]) -> tuple[list[CallPiece], tuple[WrittenCall, ...]]:
    reader, told = CallReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        told += list(reader.feed(text[start:end]))
    return told, reader.calls()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("around", AROUND)
def test_calls_are_the_same_however_they_are_laid_out_and_cut(layout: str, around: str) -> None:
    """In our spaces; values are as they were written."""
    chance = random.Random(layout + around)
    texts = [around.replace("{}", written(f"t.{i}", value, layout)) for i, value in enumerate(VALUES)]
    whole = "\n".join(texts)
    for cuts in ([], list(range(1, len(whole))), *(sorted(chance.sample(range(1, len(whole)), 9)) for _ in range(20))):
        told, calls = read(whole, cuts)
        assert [(call.name, call.value(), call.whole) for call in calls] == [
            (f"t.{i}", value, True) for i, value in enumerate(VALUES)
        ]
        if layout != "escaped":
            assert [call.arguments for call in calls] == [write_json(value) for value in VALUES]
        for i, call in enumerate(calls):
            first, *rest = [piece for piece in told if piece.index == i]
            assert first == CallPiece(i, call.name, "")
            assert "".join(piece.arguments for piece in rest) == call.arguments
            assert all(piece.name is None and piece.arguments for piece in rest)
        assert [piece.index for piece in told] == sorted(piece.index for piece in told)


def test_a_call_is_told_as_soon_as_it_is_sure() -> None:
    """Name where the arguments begin, then everything but white space, which may be none of the model's."""
    reader = CallReader()
    assert reader.feed('<tool_call>\n{"name": "set", "argu') == ()
    assert reader.feed('ments": ') == ()
    assert reader.feed("{") == (CallPiece(0, "set", ""), CallPiece(0, None, "{"))
    assert reader.feed('"v"') == (CallPiece(0, None, '"v"'),)
    assert reader.feed(": ") == (CallPiece(0, None, ": "),)
    assert reader.feed("  \n") == ()
    assert reader.feed('"some ') == (CallPiece(0, None, '"some '),)
    assert reader.calls() == (WrittenCall("set", '{"v": "some ', whole=False),)
    assert reader.feed('words"}') == (CallPiece(0, None, 'words"}'),)
    assert reader.calls() == (WrittenCall("set", '{"v": "some words"}', whole=True),)
    assert reader.feed("}\n</tool_call>") == ()


@pytest.mark.parametrize(
    "text", ["", "no call", "{", '{"n": 1}', '{"name": "x"}', '{"name": "x", "arguments": 3}', "}"]
)
def test_what_is_no_call_tells_none(text: str) -> None:
    """A scripted model follows no grammar."""
    assert read(text, []) == ([], ())


def test_what_is_cut_off_is_no_json() -> None:
    """So that nobody takes half of a call for the whole."""
    text = written("set", VALUES[2], "ours")
    for end in range(len(text)):
        for call in read(text[:end], [])[1]:
            if call.whole:
                assert call.value() == VALUES[2]
            else:
                with pytest.raises(json.JSONDecodeError):
                    call.value()


def test_pieces_are_joined_but_for_names() -> None:
    """Each name is told alone, as OpenAI does it."""
    told = [
        CallPiece(0, "a", ""),
        *(CallPiece(0, None, c) for c in "{}"),
        CallPiece(1, "b", ""),
        CallPiece(1, None, "{"),
    ]
    few = [CallPiece(0, "a", ""), CallPiece(0, None, "{}"), CallPiece(1, "b", ""), CallPiece(1, None, "{")]
    assert joined(told) == joined(few) == few
    assert joined([]) == []
