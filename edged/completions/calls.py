"""Calls that a model writes, taken apart while they come. Pure.

A call is `{"name": "x", "arguments": {...}}`, laid out in any way, and between two of them stands what begins with no
brace: marks, fences, line breaks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from enum import Enum, auto

from msgspec import Struct

from edged.types import JSON

STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*"'  # as JSON has it: whatever matches can be read
HEAD = re.compile(rf'\{{\s*"name"\s*:\s*({STRING})\s*,\s*"arguments"\s*:\s*(?=\{{)')
SPACED = {",": ", ", ":": ": "}  # as json.dumps writes them, however the model did
SPACES = " \t\r\n"


class CallPiece(Struct, frozen=True):
    """More of a call.

    index: its place among the calls.
    name: with its first piece; else None.
    arguments: more of their JSON.
    """

    index: int
    name: str | None
    arguments: str


class WrittenCall(Struct, frozen=True):
    """A call as far as it was written.

    arguments: as JSON, in the spaces json.dumps writes.
    whole: the arguments do not end in the middle.
    """

    name: str
    arguments: str
    whole: bool

    def value(self) -> JSON:
        """The arguments; only of one that is whole."""
        return json.loads(self.arguments)


def joined(pieces: Sequence[CallPiece]) -> list[CallPiece]:
    """The same in as few pieces as possible: each name alone, then all there is of its arguments."""
    few: list[CallPiece] = []
    for piece in pieces:
        if few and piece.name is None and few[-1].name is None and few[-1].index == piece.index:
            piece = CallPiece(piece.index, None, few.pop().arguments + piece.arguments)
        few.append(piece)
    return few


class _At(Enum):
    HEAD = auto()  # before the arguments
    ARGUMENTS = auto()
    TAIL = auto()  # between the arguments' last brace and the call's


class CallReader:
    """Reads the text that calls stand in, piece by piece. Arguments that were given out are never taken back, and
    together they are one JSON object; white space around its values is not the model's."""

    def __init__(self) -> None:
        self._at = _At.HEAD
        self._head = ""
        self._depth = 0
        self._in_string = self._escaped = False
        self._names: list[str] = []
        self._arguments: list[list[str]] = []

    def feed(self, piece: str) -> tuple[CallPiece, ...]:
        """What is new of each call after this piece, in their order."""
        fresh: list[CallPiece] = []
        while piece:
            if self._at is _At.ARGUMENTS:
                written, piece = self._read_arguments(piece)
                if written:
                    fresh.append(self._more(written))
            elif self._at is _At.TAIL:
                _, brace, piece = piece.partition("}")
                self._at = _At.HEAD if brace else _At.TAIL
            else:
                began, piece = self._read_head(piece)
                fresh += [began] if began else []
        return tuple(fresh)

    def calls(self) -> tuple[WrittenCall, ...]:
        """All calls so far; the last one may be in the middle of its arguments."""
        last = len(self._names) - 1
        return tuple(
            WrittenCall(name, "".join(parts), whole=i < last or self._at is not _At.ARGUMENTS)
            for i, (name, parts) in enumerate(zip(self._names, self._arguments, strict=True))
        )

    def _read_head(self, piece: str) -> tuple[CallPiece | None, str]:
        """(the call that begins, what is left of the piece). What is no head of a call is never one."""
        held = self._head + piece
        held = held[held.find("{") :] if "{" in held else ""
        found = HEAD.match(held)
        if not found:
            self._head = held
            return None, ""
        self._head, self._at = "", _At.ARGUMENTS
        self._names.append(json.loads(found[1]))
        self._arguments.append([])
        return CallPiece(len(self._names) - 1, self._names[-1], ""), held[found.end() :]

    def _read_arguments(self, piece: str) -> tuple[str, str]:
        """(what is written of them, what is left of the piece)."""
        written: list[str] = []
        for i, character in enumerate(piece):
            if self._in_string:
                written.append(character)
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
                continue
            if character in SPACES:
                continue
            written.append(SPACED.get(character, character))
            self._in_string = character == '"'
            self._depth += (character in "{[") - (character in "}]")
            if self._depth == 0:
                self._at = _At.TAIL
                return "".join(written), piece[i + 1 :]
        return "".join(written), ""

    def _more(self, written: str) -> CallPiece:
        self._arguments[-1].append(written)
        return CallPiece(len(self._names) - 1, None, written)
