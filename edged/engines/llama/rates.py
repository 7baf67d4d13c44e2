"""How fast a model is, from the times of its steps. Pure.

A step computes prompts, generations or both. Of one that does both only the sum is known: each phase is taken to have
been slower or faster than usual by the same factor. While nothing is usual yet, such a step says nothing.

Means are ratios of sums in which older steps count less. They are weighted by the time a step took and not by its
number: a prompt is computed in a few long steps, and its short last one, which costs hardly less than a longer one,
must not count as much as they do.
"""

from __future__ import annotations

import math

# Seconds of work in a phase after which a step counts for 1/e. Shorter than a board takes to become hot and slow down
# (tens of seconds); long enough for some hundred steps of a generation, or a prompt of the longest.
MEMORY_S = 10.0


class Rates:
    """Tokens a second in each phase, as of late; None until a phase was seen by itself."""

    def __init__(self) -> None:
        self._prompts = _Sums()  # tokens
        self._steps = _Sums()  # steps that generate
        self._generated = _Sums()  # tokens

    @property
    def prefill_tokens_s(self) -> float | None:
        """Prompt tokens a second, of all prompts together."""
        return self._prompts.rate

    @property
    def decode_tokens_s(self) -> float | None:
        """Tokens a second that are sampled for one sequence beside the others: one a step. What a grammar forces or a
        draft guesses right comes on top."""
        return self._steps.rate

    @property
    def batch_tokens_s(self) -> float | None:
        """Tokens a second generated for all sequences together, forced ones included."""
        return self._generated.rate

    def observe(self, prompt_tokens: int, generated_rows: int, seconds: float) -> None:
        """Learn from a step.

        Args:
            prompt_tokens: tokens of prompts it computed.
            generated_rows: tokens behind prompts it computed, of all sequences (sampled, forced, drafted and kept).
            seconds: what the whole step took, choosing the tokens included.
        """
        if seconds <= 0 or (share := self._prefill_share(prompt_tokens, generated_rows)) is None:
            return
        if prompt_tokens > 0:
            self._prompts.add(prompt_tokens, seconds * share)
        if generated_rows > 0:
            self._steps.add(1, seconds * (1 - share))
            self._generated.add(generated_rows, seconds * (1 - share))

    def _prefill_share(self, prompt_tokens: int, generated_rows: int) -> float | None:
        """The part of a step's time that its prompt tokens took; None where that cannot be told."""
        if prompt_tokens <= 0 or generated_rows <= 0:
            return float(prompt_tokens > 0) if prompt_tokens > 0 or generated_rows > 0 else None
        prefill, decode = self._prompts.rate, self._steps.rate
        if prefill is None or decode is None:
            return None
        expected_prefill_s, expected_decode_s = prompt_tokens / prefill, 1 / decode
        return expected_prefill_s / (expected_prefill_s + expected_decode_s)


class _Sums:
    """An amount and the seconds it took; what is older counts less."""

    def __init__(self) -> None:
        self._amount = self._seconds = 0.0

    @property
    def rate(self) -> float | None:
        return self._amount / self._seconds if self._seconds else None

    def add(self, amount: float, seconds: float) -> None:
        kept = math.exp(-seconds / MEMORY_S)
        self._amount = self._amount * kept + amount
        self._seconds = self._seconds * kept + seconds
