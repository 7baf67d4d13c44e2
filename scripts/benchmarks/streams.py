"""Free text, streamed from several connections at once: the same requests to edged and to its peers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.calls import Connection

TOKENS = 128
# What the default model, greedy, writes about at length: so nobody ends before TOKENS by himself.
TOPICS = (
    "a lighthouse keeper", "the history of bread", "a journey through the desert", "how a steam engine works",
    "life in a medieval town", "the deep sea", "a garden in spring", "the invention of printing",
    "a storm on a mountain", "how bridges are built", "an old library", "the migration of birds",
    "a village at the river", "how clocks were made", "the first railway", "a winter in the north",
)  # fmt: skip
PATH = "/v1/chat/completions"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Stream:
    """One answer. Times of time.perf_counter."""

    began: float
    first: float
    last: float
    tokens: int

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first one."""
        return (self.tokens - 1) / max(1e-9, self.last - self.first)


def question(topic: str) -> str:
    """A new question every time: no cache of an earlier answer's prompt serves it but for its beginning."""
    return f"Write a long and detailed text of ten paragraphs, number {next(_numbers)}, about {topic}."


def read(connection: Connection, text: str, extra: dict[str, Any], tokens: int = TOKENS) -> Stream:
    """One streamed answer of a chat completion, to its end.

    Args:
        extra: what this server needs beside the OpenAI fields.
    """
    body = {
        "model": "small",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extra,
    }
    began = time.perf_counter()
    came: list[float] = []
    counted = 0
    for at, event in connection.stream(PATH, body):
        counted = (event.get("usage") or {}).get("completion_tokens", counted)
        if any(choice["delta"].get("content") for choice in event.get("choices") or ()):
            came.append(at)
    if not came:
        raise RuntimeError(f"an empty answer to {text!r}")
    # a server that tells no usage sends a piece for every token
    return Stream(began, came[0], came[-1], counted or len(came))


def rate(streams: Sequence[Stream]) -> float:
    """Tokens a second of all together, prompts included: from the first question to the last token."""
    began, last = min(s.began for s in streams), max(s.last for s in streams)
    return sum(s.tokens for s in streams) / (last - began)
