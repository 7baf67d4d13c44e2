"""What a model writes that may answer in words or call tools, taken apart while it comes. Pure.

The reader of a stream wants words at once, and never the beginning of a call among them. So text is held back only
while it may still become a call. What counts as one is what `grammar.text_or_calls` says.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

from edged.agent.dialects.chat_template import CallFormat
from edged.agent.grammars import grammar
from edged.completions.calls import CallPiece, CallReader, WrittenCall
from edged.engines.llama.text import TextStream
from edged.types import TokenLogprob
from edged.wire.thinking import Thinking

SPACES = re.compile(r"\s+")


class Output:
    """Reads one generation.

    Args:
        names: of the tools that may be called.
        stops: strings that end the words and are not part of them; in calls they mean nothing.
        mixed: words may be any, and a call may also follow them; else the words are JSON of another shape.
    """

    def __init__(self, names: Sequence[str], calls: CallFormat, stops: Sequence[str] = (), *, mixed: bool) -> None:
        mark = calls.mark
        fences = ("", grammar.FENCE, f"{grammar.FENCE}json")
        rest = "" if mixed else ',"arguments":'
        begins = [f'{fence}{{"name":"{name}"{rest}' for fence in fences for name in names]
        self._heads = [*begins, mark] if mark else begins
        loose = grammar.call_head(names, whole=not mixed)
        self._head = re.compile(f"{loose}|{re.escape(mark)}" if mark else loose)
        # The line break before a mark is the template's, not part of the words.
        self._marks = (f"\n{mark}", mark) if mark and mixed else ()
        self._words = TextStream((*stops, *self._marks))
        self._whole = ""
        self._begun = ""  # the whole without its spaces, as long as it is undecided
        self._shortest = min(map(len, self._heads), default=0)
        self._undecided = True
        self._calls_at: int | None = None
        self._reader = CallReader()
        self._read = 0  # of the whole, what the reader has got

    @property
    def text(self) -> str:
        """All words given out."""
        return self._words.text

    def feed(self, piece: str) -> str:
        """The words that are certain after this piece, beyond those given out before."""
        self._whole += piece
        if self._undecided:
            self._begun += SPACES.sub("", piece)
            if len(self._begun) >= self._shortest and self._head.match(self._whole):
                self._undecided, self._calls_at = False, 0
            elif not self._may_become_call():
                self._undecided, piece = False, self._whole
        return "" if self._undecided or self._calls_at is not None else self._spoken(piece)

    def finish(self) -> str:
        """The rest of the words."""
        if self._calls_at is not None:
            return ""
        held, self._undecided = (self._whole if self._undecided else ""), False
        return self._spoken(held) + self._words.finish()

    def call_pieces(self) -> tuple[CallPiece, ...]:
        """What is new of the calls."""
        if self._calls_at is None:
            return ()
        fresh = self._whole[max(self._calls_at, self._read) :]
        self._read = len(self._whole)
        return self._reader.feed(fresh)

    def calls(self) -> tuple[WrittenCall, ...]:
        """The calls so far."""
        return self._reader.calls()

    def _may_become_call(self) -> bool:
        begun = self._begun
        return any(len(begun) < len(head) and head.startswith(begun) for head in self._heads)

    def _spoken(self, piece: str) -> str:
        words = self._words.feed(piece.encode())
        if self._words.stopped and self._whole.startswith(self._marks, self._words.given):
            self._calls_at = self._words.given
        return words


class Spoken:
    """A generation's text and tokens without its thinking. prompt: what it follows."""

    def __init__(self, prompt: str = "") -> None:
        self._thinking = Thinking(prompt)
        self._held: list[TokenLogprob] = []

    def feed(self, text: str, tokens: Sequence[TokenLogprob]) -> tuple[str, tuple[TokenLogprob, ...]]:
        """(words, their tokens) that are certain after this piece."""
        self._held += tokens
        return self._taken(self._thinking.feed(text))

    def finish(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """The rest."""
        return self._taken(self._thinking.finish())

    def thoughts(self) -> str:
        """See Thinking."""
        return self._thinking.thoughts()

    def _taken(self, words: str) -> tuple[str, tuple[TokenLogprob, ...]]:
        if not words and self._thinking.waiting:
            return "", ()
        tokens, self._held = tuple(self._held), []
        return words, tokens if words else ()


class WaitingLogprobs:
    """Log-probabilities that wait for their words. Under a grammar the tokens' bytes are the text's. taken: those
    whose words are given out."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._reach = self._given = 0
        self.taken: list[TokenLogprob] = []

    def add(self, tokens: Sequence[TokenLogprob]) -> None:
        """Tokens that have come."""
        for token in tokens:
            self._reach += len(token.data)
            self._waiting.append((self._reach, token))

    def take(self, words: str) -> tuple[TokenLogprob, ...]:
        """The tokens that end in these words, which are given out now."""
        self._given += len(words.encode())
        taken = []
        while self._waiting and self._waiting[0][0] <= self._given:
            taken.append(self._waiting.popleft()[1])
        self.taken += taken
        return tuple(taken)
