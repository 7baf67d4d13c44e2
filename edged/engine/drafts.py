"""Drafts: tokens that may come next, guessed from what was said before and checked in the same step. Pure.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): where the last few tokens
stood before, what followed them then may follow again. Answers repeat tool results, calls repeat words of the request.
A draft costs a row of the batch; on a CPU a row is not free, so `Drafting` weighs what rows cost against how often
drafts were right, and drafts nothing where that does not pay.
"""

from __future__ import annotations

from collections.abc import Sequence

# Lengths of the endings that are looked up, longest first: a longer one is rarer, and its draft more often right.
ENDINGS = (4, 3, 2)
# Most tokens of one draft. Rows of a batch get hardly cheaper beyond this, and the chance that all are right is small.
MOST_DRAFTS = 7
# How often drafts behind an ending of each length are right, before any was checked: so high that they are tried.
FIRST_CHANCE = 0.8
# Weight of the newest check: some twenty checks decide.
NEWEST = 0.1
# Weight of the newest time of a step of some size.
NEWEST_COST = 0.2
# A draft has to make tokens cheaper by this factor: estimates are noisy, and plain steps have no risk.
GAIN = 0.95
# Of so many chances that do not pay one is tried all the same: texts and boards change.
RETRY = 100
# What reading the weights once costs in rows of computing; only for sizes of steps that were not measured yet.
FIXED_COST_ROWS = 1.0


class Lookup:
    """Endings of one sequence of tokens and what followed them.

    Args:
        start: the first token that is looked at; what lies before is the same for every request (examples, tools) and
            would suggest its own.
    """

    def __init__(self, start: int) -> None:
        self._start = start
        self._indexed = start
        self._next: dict[tuple[int, ...], int] = {}  # an ending -> where the token stands that followed it last

    def find(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(where what may follow begins, length of the ending that says so); (0, 0) where nothing does."""
        for end in range(self._indexed, len(tokens)):
            for length in ENDINGS:
                if end - length >= self._start:
                    self._next[tuple(tokens[end - length : end])] = end
        self._indexed = max(self._indexed, len(tokens))
        for length in ENDINGS:
            if len(tokens) - length >= self._start:
                at = self._next.get(tuple(tokens[len(tokens) - length :]))
                if at is not None:
                    return at, length
        return 0, 0


class Drafting:
    """Whether drafts pay, and how long they should be; one per model."""

    def __init__(self) -> None:
        self.drafted = 0
        self.accepted = 0
        self._cost: dict[int, float] = {}  # seconds of a step by its rows
        self._chance = dict.fromkeys(ENDINGS, FIRST_CHANCE)
        self._refused = 0

    def length(self, rows: int, ending: int) -> int:
        """Tokens to draft for one sequence in a step with so many rows, behind an ending of this length."""
        if not self._cost or rows < 1:
            return 0
        plain = self._seconds(rows) / rows
        best, best_cost = 0, GAIN * plain
        chance, expected = self._chance[ending], float(rows)
        for drafts in range(1, MOST_DRAFTS + 1):
            expected += chance**drafts
            cost = self._seconds(rows + drafts) / expected
            if cost < best_cost:
                best, best_cost = drafts, cost
        if best:
            return best
        self._refused += 1
        return 1 if self._refused % RETRY == 0 else 0

    def observe_step(self, rows: int, seconds: float) -> None:
        """A step of so many rows, all of them with logits, took so long."""
        known = self._cost.get(rows, seconds)
        self._cost[rows] = known + NEWEST_COST * (seconds - known)

    def observe_draft(self, ending: int, drafted: int, accepted: int) -> None:
        """Of the drafted tokens the first `accepted` were right."""
        self.drafted += drafted
        self.accepted += accepted
        checked = [1.0] * accepted + [0.0] * (accepted < drafted)
        for right in checked:
            self._chance[ending] += NEWEST * (right - self._chance[ending])

    def _seconds(self, rows: int) -> float:
        """What a step of so many rows takes: measured, or between its neighbours, or in proportion to the nearest."""
        if rows in self._cost:
            return self._cost[rows]
        below = max((n for n in self._cost if n < rows), default=None)
        above = min((n for n in self._cost if n > rows), default=None)
        if below is not None and above is not None:
            share = (rows - below) / (above - below)
            return self._cost[below] + share * (self._cost[above] - self._cost[below])
        near = below if below is not None else above
        assert near is not None  # length() asks only when something was measured
        return self._cost[near] * (rows + FIXED_COST_ROWS) / (near + FIXED_COST_ROWS)
