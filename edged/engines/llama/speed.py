"""How fast a model is on this board, from the times of its steps: the one owner of what was measured. Pure.

`ModelSpeed` sees every step and keeps three answers, because they are three questions:

* `Rates`: tokens a second in each phase, as of late; for `status`, for estimates of when a request is answered, and for
  what a model's unload would cost. A step computes prompts, generations or both. Of one that does both only the sum is
  known: each phase is taken to have been slower or faster than usual by the same factor. While nothing is usual yet,
  such a step says nothing. Means are ratios of sums in which older steps count less. They are weighted by the time a
  step took and not by its number: a prompt is computed in a few long steps, and its short last one, which costs hardly
  less than a longer one, must not count as much as they do.
* `StepBudget`: tokens of the next step, so that it stays short; it follows a board that throttles within a few steps,
  and looks at long chunks only. What computing a prompt again would take is reckoned by it, too.
* `Costs`: what rows of a step cost in terms of one another, whatever the board's speed; for drafts.
"""

from __future__ import annotations

import math

# Seconds of work in a phase after which a step counts for 1/e. Shorter than a board takes to become hot and slow down
# (tens of seconds); long enough for some hundred steps of a generation, or a prompt of the longest.
MEMORY_S = 10.0

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
NEWEST_BUDGET = 0.3

# Weight of the newest step in how fast the board is: it follows bursts of other programs, and heat, in a few steps.
NEWEST_SPEED = 0.3
# Least weight of the newest step in what a size of step costs in terms of the others. Small beside the one above: what
# slows the board down slows steps of all sizes down, and sizes that were not seen meanwhile must not look cheap. The
# first guess counts as so many steps that were seen.
NEWEST_COST = 0.05
GUESS_STEPS = 3
# A step counts as at most so many times slower or faster than expected; what is beyond is a stall, and no cost.
MOST_SURPRISE = 2.0
# What reading the weights once costs in rows of computing: a step of n rows takes about as long as n plus this. The
# first guess for a size of step that was not seen yet.
FIXED_COST_ROWS = 1.0


class ModelSpeed:
    """What the steps of one model have shown.

    Args:
        most: tokens that fit one batch.
    """

    def __init__(self, most: int) -> None:
        self.rates = Rates()
        self.budget = StepBudget(most)
        self.costs = Costs()

    @property
    def prompt_tokens_s(self) -> float | None:
        """Tokens of a prompt a second, as fast as they would be computed again; None until something was measured."""
        return self.budget.tokens_s

    def computed(self, rows: int, seconds: float, *, generations: bool) -> None:
        """llama.cpp took so long for so many rows. generations: each row was one sequence's next token, or a draft."""
        self.budget.observe(rows, seconds)
        if generations:
            self.costs.observe(rows, seconds)

    def stepped(self, prompt_tokens: int, generated: int, seconds: float) -> None:
        """A whole step took so long, choosing the tokens included; see `Rates.observe`."""
        self.rates.observe(prompt_tokens, generated, seconds)


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
        return self._tokens_in(STEP_S, MIN_TOKENS) if self._rate else min(self._most, 2 * MIN_TOKENS)

    @property
    def rhythm(self) -> int:
        """Tokens of prompts for a step in which others generate."""
        return self._tokens_in(RHYTHM_S, MIN_RHYTHM_TOKENS)

    @property
    def tokens_s(self) -> float | None:
        """Tokens of a prompt a second, in chunks of some length; None until something was measured."""
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
        self._rate = rate if self._rate is None else self._rate + NEWEST_BUDGET * (rate - self._rate)


class Costs:
    """What steps take by their rows. Sizes are compared with one another although they were seen at different times:
    the speed of the board, which changes for all of them, is kept apart."""

    def __init__(self) -> None:
        self._unit: float | None = None  # seconds of a step of weight 1 on the board as it is
        self._weights: dict[int, float] = {}
        self._seen: dict[int, int] = {}

    @property
    def known(self) -> bool:
        """Whether a step was seen."""
        return self._unit is not None

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if self._unit is None:
            self._unit = seconds / self.weight(rows)
        surprise = seconds / (self._unit * self.weight(rows))
        surprise = min(MOST_SURPRISE, max(1 / MOST_SURPRISE, surprise))
        seen = self._seen[rows] = self._seen.get(rows, 0) + 1
        self._weights[rows] = self.weight(rows) * surprise ** max(NEWEST_COST, 1 / (GUESS_STEPS + seen))
        self._unit *= surprise**NEWEST_SPEED

    def rows_within(self, seconds: float, most: int) -> int:
        """The most rows whose step takes no longer, as far as that is known; at least one."""
        if self._unit is None:
            return most
        return max((n for n in range(1, most + 1) if self._unit * self.weight(n) <= seconds), default=1)

    def weight(self, rows: int) -> float:
        """What a step of so many rows takes in terms of others: measured, or between its neighbours, or in proportion
        to the nearest."""
        if rows in self._weights:
            return self._weights[rows]
        below = max((n for n in self._weights if n < rows), default=None)
        above = min((n for n in self._weights if n > rows), default=None)
        if below is not None and above is not None:
            share = (rows - below) / (above - below)
            return self._weights[below] + share * (self._weights[above] - self._weights[below])
        near = below if below is not None else above
        expected = rows + FIXED_COST_ROWS
        return expected if near is None else self._weights[near] * expected / (near + FIXED_COST_ROWS)
