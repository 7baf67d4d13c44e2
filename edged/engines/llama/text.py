"""What becomes of token pieces: text of whole characters, without a stop string. Pure."""

from __future__ import annotations

import codecs


class TextStream:
    """Turns pieces into text as they come.

    A character whose bytes are spread over tokens is held back until it is whole; bytes that never become one turn
    into U+FFFD. Text that may be the beginning of a stop string is held back until it is known not to be.

    Of several stop strings the one that is complete first ends the text, the longest where two are complete at the
    same character: so the result does not depend on how the text is cut into pieces.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._given: list[str] = []
        self._decoded = 0
        self.given = 0  # characters given out so far
        self.stopped = False

    @property
    def text(self) -> str:
        """What was given out so far."""
        return "".join(self._given)

    @property
    def reach(self) -> int:
        """Where the last piece ends in the text, in characters; a character in progress counts."""
        in_progress, _ = self._decoder.getstate()
        return self._decoded + bool(in_progress)

    def feed(self, piece: bytes) -> str:
        """The text that is certain after this piece, beyond what was given out before. Empty once stopped."""
        return "" if self.stopped else self._take(self._decoder.decode(piece))

    def finish(self) -> str:
        """The rest: what was held back, with U+FFFD for a character that did not become whole."""
        if self.stopped:
            return ""
        rest = self._take(self._decoder.decode(b"", final=True))
        if not self.stopped:
            rest += self._held
            self._give(self._held)
            self._held = ""
        return rest

    def _take(self, fresh: str) -> str:
        self._decoded += len(fresh)
        text = self._held + fresh
        cut = self._stop_at(text)
        if cut is None:
            cut = len(text) - self._doubtful(text)
            self._held = text[cut:]
        else:
            self.stopped = True
            self._held = ""
        certain = text[:cut]
        self._give(certain)
        return certain

    def _give(self, text: str) -> None:
        self._given.append(text)
        self.given += len(text)

    def _stop_at(self, text: str) -> int | None:
        """Where the stop string that is complete first begins."""
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        return min(found)[1] if found else None

    def _doubtful(self, text: str) -> int:
        """Length of the longest end of the text that may become a stop string."""
        longest = max((len(s) - 1 for s in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0
