"""Calls in the compact dialect, taken apart while they come: `set_valve(valve="north")`, a line each. Pure.

What is told of them is what a client of chat completions reads: `{"valve": "north"}`, as `calls.CallReader` tells it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from enum import Enum, auto

from edged.completions.calls import SPACED, SPACES, CallPiece, WrittenCall


class _At(Enum):
    NAME = auto()  # of the tool
    BEGIN = auto()  # behind "("
    KEY = auto()
    VALUE = auto()
    OBJECT = auto()  # all arguments are one JSON object
    TAIL = auto()  # between that object and ")"


class LineReader:
    """Reads the text of a decision, piece by piece. Arguments that were given out are never taken back.

    chosen: the pseudo-call that was written, if one was.

    Args:
        pseudo: names of the pseudo-calls.
    """

    def __init__(self, pseudo: Collection[str]) -> None:
        self.chosen: str | None = None
        self._pseudo = pseudo
        self._at = _At.NAME
        self._word = ""  # the name that is being read
        self._depth = 0
        self._in_string = self._escaped = False
        self._names: list[str] = []
        self._arguments: list[list[str]] = []
        self._whole = True

    def feed(self, piece: str) -> tuple[CallPiece, ...]:
        """What is new of each call after this piece, in their order."""
        fresh: list[CallPiece] = []
        for character in piece:
            began = len(self._names)
            written = self._read(character)
            if len(self._names) > began:
                fresh.append(CallPiece(began, self._names[-1], ""))
            if written:
                self._arguments[-1].append(written)
                fresh.append(CallPiece(len(self._names) - 1, None, written))
        return tuple(fresh)

    def calls(self) -> tuple[WrittenCall, ...]:
        """All calls so far; the last one may be in the middle of its arguments."""
        last = len(self._names) - 1
        return tuple(
            WrittenCall(name, "".join(parts), whole=i < last or self._whole)
            for i, (name, parts) in enumerate(zip(self._names, self._arguments, strict=True))
        )

    def _read(self, character: str) -> str:
        """What is written of the arguments with this character."""
        match self._at:
            case _At.NAME:
                return self._read_name(character)
            case _At.BEGIN if character in SPACES:
                return ""
            case _At.BEGIN:
                return self._begin(character)
            case _At.KEY:
                return self._read_key(character)
            case _At.VALUE if not (self._in_string or self._depth) and character in ",)":
                self._at = _At.KEY if character == "," else _At.NAME
                self._whole = character == ")"
                return ", " if character == "," else "}"
            case _At.VALUE:
                return self._read_json(character)
            case _At.OBJECT:
                written = self._read_json(character)
                if not self._depth:
                    self._at, self._whole = _At.TAIL, True
                return written
            case _At.TAIL:
                self._at = _At.NAME if character == ")" else _At.TAIL
        return ""

    def _read_name(self, character: str) -> str:
        if character != "(":
            self._word += character
            return ""
        name, self._word = self._word.strip(), ""
        if name in self._pseudo:
            self.chosen, self._at = name, _At.TAIL
        else:
            self._word, self._at = name, _At.BEGIN
        return ""

    def _begin(self, character: str) -> str:
        """The first character of the arguments: now the call is told."""
        self._names.append(self._word)
        self._arguments.append([])
        self._word = ""
        if character == ")":
            self._at, self._whole = _At.NAME, True
            return "{}"
        self._whole = False
        if character == "{":
            self._at = _At.OBJECT
            return self._read_json(character)
        self._at = _At.KEY
        return "{" + self._read_key(character)

    def _read_key(self, character: str) -> str:
        if character != "=":
            self._word += character
            return ""
        key, self._word, self._at = self._word.strip(), "", _At.VALUE
        return f"{json.dumps(key)}: "

    def _read_json(self, character: str) -> str:
        """A character of a JSON value, in the spaces json.dumps writes."""
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
            return character
        if character in SPACES:
            return ""
        self._in_string = character == '"'
        self._depth += (character in "{[") - (character in "}]")
        return SPACED.get(character, character)
