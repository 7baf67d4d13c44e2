"""What a server's model writes as text: its thinking is split off, and calls that it writes instead of making them
become calls. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from edged.types import RawCall
from edged.wire.thinking import Thinking

MARK = "<tool_call>"
FENCES = ("", "```", "```json", "```tool_call")
HEADS = [f'{fence}{before}{{"name":' for fence in FENCES for before in ("", "[")]
SPACES = re.compile(r"\s+")
# Between two calls: marks, fences, and what makes a list of them.
BETWEEN = re.compile(r"(?:\s|</?tool_call>|```(?:json|tool_call)?|[\[\],;])*")
ARGUMENTS = ("arguments", "parameters")  # as Llama's models name them


class Written:
    """Reads one answer. Text is held back only while it may still become thinking or a call.

    Args:
        names: of the tools that may be called.
        unopened: see Thinking.
    """

    def __init__(self, names: Collection[str] = (), *, unopened: bool = False) -> None:
        self._names = names
        self._thinking = Thinking(unopened=unopened)
        self._held = ""
        self._begun = ""  # the text without its spaces, while its beginning is undecided
        self._undecided = bool(names)
        self._calling = False
        self.calls: tuple[RawCall, ...] = ()

    @property
    def thought_unopened(self) -> bool:
        """See Thinking."""
        return self._thinking.thought_unopened

    def thoughts(self) -> str:
        """See Thinking."""
        return self._thinking.thoughts()

    def feed(self, piece: str) -> str:
        """The words that are certain after this piece, beyond those given out before."""
        return self._feed(self._thinking.feed(piece))

    def finish(self) -> str:
        """The rest of the words; `calls` are known then."""
        words = self._feed(self._thinking.finish())
        held, self._held = self._held, ""
        self.calls = calls_in(held, self._names) if self._calling else ()
        return words if self.calls else words + held

    def _feed(self, piece: str) -> str:
        if not self._names:
            return piece
        self._held += piece
        if self._calling:
            return ""
        if self._undecided:
            self._begun += SPACES.sub("", piece)
            if any(self._begun.startswith(head) for head in HEADS):
                self._calling = True
                return ""
            if any(head.startswith(self._begun) for head in HEADS):
                return ""
            self._undecided = False
        words, mark, _ = self._held.partition(MARK)
        if mark:
            self._calling = True
        else:
            words = words[: len(words) - _beginning(words)]
        self._held = self._held[len(words) :]
        return words


def calls_in(text: str, names: Collection[str]) -> tuple[RawCall, ...]:
    """The calls that a text is, and nothing else; empty where it is anything else, or names a tool that is none."""
    calls: list[RawCall] = []
    decoder = json.JSONDecoder()
    at = _skipped(text, 0)
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return ()
        if not isinstance(value, dict) or value.get("name") not in names:
            return ()
        arguments = next((value[name] for name in ARGUMENTS if name in value), None)
        if not isinstance(arguments, dict | str):
            return ()
        calls.append(RawCall(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)))
        at = _skipped(text, at)
    return tuple(calls)


def read(text: str, names: Collection[str]) -> tuple[str, Written]:
    """(words, what it was read with) of a whole text. It may begin in a thought."""
    written = Written(names, unopened=True)
    words = written.feed(text)
    words += written.finish()
    return words, written


def whole(text: str, names: Collection[str]) -> tuple[str, tuple[RawCall, ...]]:
    """(words, calls) of a whole text."""
    words, written = read(text, names)
    return words, written.calls


def _skipped(text: str, at: int) -> int:
    found = BETWEEN.match(text, at)
    return found.end() if found else at


def _beginning(words: str) -> int:
    """How many characters at the end may be the beginning of a mark."""
    return next((n for n in range(len(MARK) - 1, 0, -1) if words.endswith(MARK[:n])), 0)
