"""What a model thinks before it answers, split off its text while it comes: `<think>...</think>`. Pure."""

from __future__ import annotations

TAGS = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]"}
UNOPENED = "</think>"  # of a model whose template opens the tag in the prompt


class Thinking:
    """Splits one generation. Tags count only before the first word of the answer: later ones are what it talks about.
    Text is held back only while it may still become a tag.

    Args:
        prompt: what the text follows: templates may end with the tag that opens.
    """

    def __init__(self, prompt: str = "") -> None:
        opened = next((tag for tag in TAGS if prompt.rstrip().endswith(tag)), None)
        self._close = TAGS[opened] if opened else None
        self._thought = opened is not None
        self._held = ""
        self._answers = False

    @property
    def waiting(self) -> bool:
        """Whether something is held back that may still be a part of the answer."""
        return self._close is None and bool(self._held.strip() if self._thought else self._held)

    def feed(self, piece: str) -> str:
        """The words of the answer that are certain after this piece, beyond those given out before."""
        if self._answers:
            return piece
        self._held += piece
        while True:
            if self._close is not None:
                _, closed, rest = self._held.partition(self._close)
                if not closed:
                    self._held = self._held[1 - len(self._close) :]
                    return ""
                self._close, self._held = None, rest
            bare = self._held.lstrip()
            opened = next((tag for tag in TAGS if bare.startswith(tag)), None)
            if opened is None:
                return "" if any(tag.startswith(bare) for tag in TAGS) else self._rest()
            self._close, self._held, self._thought = TAGS[opened], bare[len(opened) :], True

    def finish(self) -> str:
        """The rest of the words. A tag that was never closed is closed by the end."""
        return "" if self._close is not None else self._rest()

    def _rest(self) -> str:
        self._answers = True
        held, self._held = self._held, ""
        return held.lstrip() if self._thought else held


def without(text: str, prompt: str = "") -> str:
    """A whole text without its thinking."""
    thinking = Thinking(prompt)
    words = thinking.feed(text)
    words += thinking.finish()
    thought, closed, rest = words.partition(UNOPENED)
    return rest.lstrip() if closed and "<think>" not in thought else words
