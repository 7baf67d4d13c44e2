"""Texts that end where the request says (`stop`). Pure.

Servers differ: most leave the string out, OpenVINO Model Server includes it in a streamed text, some take no notice of
it. Here a text ends before the first of them, wherever it is found.
"""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Reads one answer's words. Held back is only what may still be the beginning of a stop string.

    met: one was found; nothing after it counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.met = False

    def feed(self, piece: str) -> str:
        """The words that are certain after this piece, beyond those given out before."""
        if not self._stops or self.met:
            return "" if self.met else piece
        self._held += piece
        at = min((found for stop in self._stops if (found := self._held.find(stop)) >= 0), default=None)
        if at is not None:
            self.met = True
            words, self._held = self._held[:at], ""
            return words
        sure = len(self._held) - max(_begun(self._held, stop) for stop in self._stops)
        words, self._held = self._held[:sure], self._held[sure:]
        return words

    def finish(self) -> str:
        """The rest of the words."""
        held, self._held = self._held, ""
        return held


def before(text: str, stops: Sequence[str]) -> str:
    """A whole text, up to the first stop string in it."""
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of the text the stop string may begin with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
