"""Log-probabilities of the tokens of a text, for whoever asked for them. Costs a pass over the row for each token, and
a second one where likeliest tokens are told."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from edged.engines.llama.sampler import Logits
from edged.types import TokenLogprob

# What OpenAI tells of a token that is next to impossible: JSON has no infinity.
LEAST = -9999.0

Likely = tuple[str, bytes, float]


class Trail:
    """The tokens of one text, each held back until its text is given out.

    Args:
        top: how many likeliest tokens to tell in the place of each.
        piece: bytes of a token.
    """

    def __init__(self, top: int, piece: Callable[[int], bytes]) -> None:
        self._top = top
        self._piece = piece
        self._measured: tuple[float, tuple[Likely, ...]] = (LEAST, ())
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self.told: list[TokenLogprob] = []

    def measure(self, logits: Logits, token: int) -> None:
        """Read from a row, before any mask, what is told of the token that was chosen from it."""
        highest = float(logits.max())
        # summed in 64 bits: the probabilities told of one row must not add up to more than 1
        norm = highest + math.log(float(np.exp(logits - highest).sum(dtype=np.float64)))
        ids = _likeliest(logits, self._top)
        top = tuple((*_spelled(self._piece(i)), _bounded(float(logits[i]) - norm)) for i in ids)
        self._measured = (_bounded(float(logits[token]) - norm), top)

    def place(self, piece: bytes, end: int) -> None:
        """The measured token is part of the text and ends there, in characters. One without a text is left out."""
        if piece:
            self._waiting.append((end, TokenLogprob(*_spelled(piece), *self._measured)))

    def take(self, given: int) -> tuple[TokenLogprob, ...]:
        """The tokens that end within the characters given out so far, and were not taken before."""
        taken = []
        while self._waiting and self._waiting[0][0] <= given:
            taken.append(self._waiting.popleft()[1])
        self.told += taken
        return tuple(taken)


def _likeliest(logits: Logits, count: int) -> list[int]:
    """Ids of the highest logits, highest first."""
    if count == 0:
        return []
    ids = np.argpartition(logits, -count)[-count:]
    return [int(i) for i in ids[np.argsort(-logits[ids], kind="stable")]]


def _spelled(piece: bytes) -> tuple[str, bytes]:
    return piece.decode("utf-8", "replace"), piece


def _bounded(logprob: float) -> float:
    return min(0.0, max(LEAST, logprob))
