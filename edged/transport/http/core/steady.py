"""Which text of an agent may be streamed where none can be taken back. Pure."""

from __future__ import annotations


class Steady:
    """Turns pieces of an answer that may begin anew into text that is sent once.

    An answer begins anew when the daemon or the link dies under it, or another model takes over. What was sent is then
    skipped if it comes again; if something else comes, no more is sent, and `rest` says whether the answer, once it is
    known, can be reached by going on. White space around an answer is not part of it.
    """

    def __init__(self) -> None:
        self._sent = ""
        self._at = 0  # how far into what was sent the answer has come again
        self._expected = 0  # offset of the next piece
        self._space = ""  # after what has come: the answer's end, until more comes
        self._lost = False

    def feed(self, offset: int, text: str) -> str:
        """What to send after this piece, which begins `offset` characters into the answer."""
        if offset == 0:
            self._at, self._expected, self._space, self._lost = 0, 0, "", False
        if offset != self._expected:  # its beginning went to others
            self._lost = True
        self._expected = offset + len(text)
        if self._lost:
            return ""
        come = self._space + text if self._at else text.lstrip()
        bare = come.rstrip()
        self._space = come[len(bare) :]
        again = self._sent[self._at : self._at + len(bare)]
        if not bare.startswith(again):
            self._lost = True
            return ""
        self._at += len(bare)
        fresh = bare[len(again) :]
        self._sent += fresh
        return fresh

    def rest(self, answer: str) -> str | None:
        """What is left to send of the whole answer; None where it is another one than what was sent."""
        return answer[len(self._sent) :] if answer.startswith(self._sent) else None
