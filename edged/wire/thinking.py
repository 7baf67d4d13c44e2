"""What a model thinks before it answers, split off its text while it comes: `<think>...</think>`. Pure."""

from __future__ import annotations

TAGS = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]"}
UNOPENED = "</think>"  # of a model whose template opens the tag in the prompt


class Thinking:
    """Splits one generation. Tags count only before the first word of the answer: later ones are what it talks about.
    Text is held back only while it may still become a tag.

    thought_unopened: the text began in a thought that no tag of its own had opened.

    Args:
        prompt: what the text follows: templates may end with the tag that opens.
        unopened: the text may begin in a thought although the prompt is not known, as one from a server: all of it is
            held back until the tag that closes it comes, or the end.
    """

    def __init__(self, prompt: str = "", *, unopened: bool = False) -> None:
        opened = next((tag for tag in TAGS if prompt.rstrip().endswith(tag)), None)
        self._close = TAGS[opened] if opened else None
        self._thought = opened is not None
        self._unopened = unopened and opened is None
        self._held = ""
        self._looked = 0  # of what is held: how far no tag that closes an unopened thought begins
        self._answers = False
        self._thoughts: list[str] = []
        self.thought_unopened = False

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
            if self._close is not None and not self._closed(self._close):
                return ""
            bare = self._held.lstrip()
            opened = next((tag for tag in TAGS if bare.startswith(tag)), None)
            if opened is not None:
                self._close, self._held, self._thought = TAGS[opened], bare[len(opened) :], True
                self._unopened = False
            elif any(tag.startswith(bare) for tag in TAGS):
                return ""
            elif not self._unopened:
                return self._rest()
            elif not self._closes_unopened():
                return ""

    def finish(self) -> str:
        """The rest of the words. A tag that was never closed is closed by the end."""
        if self._close is None:
            return self._rest()
        self._thoughts.append(self._held)
        self._held = ""
        return ""

    def thoughts(self) -> str:
        """What it has thought since this was asked last."""
        thoughts, self._thoughts = "".join(self._thoughts), []
        return thoughts

    def _closed(self, close: str) -> bool:
        """Whether the thought has ended, which what is held begins in."""
        thought, closed, rest = self._held.partition(close)
        if closed:
            self._thoughts.append(thought)
            self._close, self._held = None, rest
            return True
        sure = max(0, len(thought) - len(close) + 1)
        self._thoughts.append(thought[:sure])
        self._held = thought[sure:]
        return False

    def _closes_unopened(self) -> bool:
        """Whether it is certain what the text began in."""
        at = self._held.find(UNOPENED, self._looked)
        if at < 0:
            self._looked = max(0, len(self._held) - len(UNOPENED) + 1)
            return False
        self._unopened = False
        if "<think>" not in self._held[:at]:  # else the text talks about both tags
            self._thoughts.append(self._held[:at])
            self._held = self._held[at + len(UNOPENED) :]
            self._thought = self.thought_unopened = True
        return True

    def _rest(self) -> str:
        self._answers = True
        held, self._held = self._held, ""
        return held.lstrip() if self._thought else held


def split(text: str, prompt: str = "") -> tuple[str, str]:
    """(words, thoughts) of a whole text. It may begin in a thought."""
    thinking = Thinking(prompt, unopened=True)
    words = thinking.feed(text)
    words += thinking.finish()
    return words, thinking.thoughts().strip()


def without(text: str, prompt: str = "") -> str:
    """A whole text without its thinking."""
    return split(text, prompt)[0]
