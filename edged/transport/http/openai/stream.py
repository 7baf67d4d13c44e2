"""Answers as streams of OpenAI's: the chunks. Pure."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from edged.completions.calls import CallPiece, joined
from edged.transport.http.core.stream import event
from edged.transport.http.openai import reply as shapes
from edged.transport.http.openai.reply import Head
from edged.types import JSON, Fault, TokenLogprob

DONE = event(b"[DONE]")

Words = tuple[str, tuple[TokenLogprob, ...]]


class Thought(Struct, frozen=True):
    """More of what the model thinks before it answers."""

    text: str


Piece = Words | CallPiece | Thought


class Chunks:
    """The events of one answer, in their order.

    Args:
        include_usage: the last chunk has the usage, and all others say that they have none.
        logprobs: they were asked for, so that chunks with words have them.
    """

    def __init__(self, head: Head, *, include_usage: bool, logprobs: bool = False) -> None:
        self._head = head
        self._logprobs = logprobs
        self._no_usage: dict[str, JSON] = {"usage": None} if include_usage else {}
        self._begun = False
        self._thinks = False

    def written(self, pieces: list[Piece]) -> bytes:
        """More of the answer, in as few chunks as possible. All words come before the first call, and what was thought
        before both."""
        events: list[bytes] = []
        thought = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
        if thought := thought if self._thinks else thought.lstrip():
            self._thinks = True
            events += [*self._begin(""), self._chunk({"reasoning_content": thought})]
        words = [piece for piece in pieces if isinstance(piece, tuple)]
        if words:
            tokens = [token for _, some in words for token in some]
            logprobs = shapes.logprobs_content(tokens) if self._logprobs else None
            content = "".join(text for text, _ in words)
            events += [*self._begin(""), self._chunk({"content": content}, logprobs=logprobs)]
        for piece in joined([piece for piece in pieces if isinstance(piece, CallPiece)]):
            events += [*self._begin(None), self._chunk({"tool_calls": [shapes.call_piece(piece)]})]
        return b"".join(events)

    def end(self, finish_reason: str, usage: JSON, more: dict[str, JSON]) -> bytes:
        """The answer is whole. more: fields of the last chunk."""
        last = shapes.chunk(self._head, {}, finish_reason=finish_reason)
        events = [*self._begin(""), _encoded({**last, **self._no_usage, **more})]
        if self._no_usage:
            events.append(_encoded({**self._head.fields(shapes.CHUNK), "choices": [], "usage": usage}))
        return b"".join((*events, DONE))

    def failed(self, failure: Fault, code: str | None = None, *, edged: JSON = None) -> bytes:
        """There will be no more of it. code: OpenAI's own word; edged: what edged adds to its shape."""
        return _encoded({**shapes.error(failure, code=code), **({"edged": edged} if edged else {})})

    def _begin(self, content: str | None) -> list[bytes]:
        """The chunk before all others, once. content: null where a call comes first."""
        if self._begun:
            return []
        self._begun = True
        return [self._chunk({"role": "assistant", "content": content, "refusal": None})]

    def _chunk(self, delta: dict[str, JSON], *, logprobs: JSON = None) -> bytes:
        return _encoded({**shapes.chunk(self._head, delta, logprobs=logprobs), **self._no_usage})


def _encoded(document: dict[str, JSON]) -> bytes:
    return event(msgspec.json.encode(document))
