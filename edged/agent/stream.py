"""Pieces of an answer on their way to who listens."""

from __future__ import annotations

from collections.abc import Callable


class Stream:
    """Pieces of the final answer, each with its offset in characters. Offset 0 again: the answer begins anew.

    preface: what every answer begins with, whoever words the rest.
    """

    def __init__(self, send: Callable[[int, str], None]) -> None:
        self._send = send
        self._sent: list[str] = []
        self._length = 0
        self.preface = ""

    def begin(self) -> None:
        """Another answer is being made; what was sent of the last one is void."""
        self._sent, self._length = [], 0

    def piece(self, text: str) -> None:
        """More of it."""
        if text:
            text = text if self._sent else self.preface + text
            self._send(self._length, text)
            self._sent.append(text)
            self._length += len(text)

    def end(self, answer: str) -> None:
        """The answer is whole. Where pieces have turned out to be no part of it, it begins anew; white space around it
        counts for nothing."""
        if "".join(self._sent).strip() != answer.strip():
            self._send(0, answer)
