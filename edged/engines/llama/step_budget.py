"""How many tokens one step may compute so that it stays short. Pure."""

from __future__ import annotations

# A step should not last longer, in seconds: cancels, new requests and the watchdog wait for its end. A board that
# computes 50 tokens of a prompt a second would take 5 s for a full batch.
STEP_S = 0.5
# While others generate, the part of a step that computes prompts should not last longer: they say a few words a second
# at least. On two x86 cores chunks of 16 tokens are computed 10 % slower than long ones.
RHYTHM_S = 0.12
MIN_RHYTHM_TOKENS = 16
# Fewer tokens waste the matrix kernels, which work on blocks of rows. Must reach for a token of every sequence.
MIN_TOKENS = 32
# Smaller steps are governed by reading the weights once, and say nothing about the cost of a token of a prompt.
TELLING_TOKENS = 24
# Weight of the newest measurement: follows a board that throttles within a few steps, ignores a single hiccup.
NEWEST = 0.3


class StepBudget:
    """The token budget of a step, from measured speed: a power of two, so that runs repeat in the same shapes.

    Args:
        most: tokens that fit one batch.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._rate: float | None = None

    @property
    def budget(self) -> int:
        """Tokens for the next step; a careful guess until something was measured."""
        return self._tokens_in(STEP_S, MIN_TOKENS) if self.rate else min(self._most, 2 * MIN_TOKENS)

    @property
    def rhythm(self) -> int:
        """Tokens of prompts for a step in which others generate."""
        return self._tokens_in(RHYTHM_S, MIN_RHYTHM_TOKENS)

    @property
    def rate(self) -> float | None:
        """Tokens of a prompt a second; None until something was measured."""
        return self._rate

    def _tokens_in(self, seconds: float, least: int) -> int:
        tokens = least
        while tokens * 2 <= min(self._most, (self._rate or 0.0) * seconds):
            tokens *= 2
        return min(tokens, self._most)

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from a step."""
        if tokens < TELLING_TOKENS or seconds <= 0:
            return
        rate = tokens / seconds
        self._rate = rate if self._rate is None else self._rate + NEWEST * (rate - self._rate)
