"""Drafts: tokens that may come next, guessed from what was said before and checked in the same step. Pure.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): where the last few tokens
stood before, what followed them then may follow again. Answers repeat tool results, calls repeat words of the request.
A draft costs a row of the batch; on a CPU a row is not free, so `Drafting` weighs what rows cost against how often
drafts were right, and drafts nothing where that does not pay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Lengths of the endings that are looked up, longest first: a longer one is rarer, and its draft more often right.
ENDINGS = (4, 3, 2)
# Most tokens of one draft. Rows of a batch get hardly cheaper beyond this, and the chance that all are right is small.
MOST_DRAFTS = 7
# How often guesses behind an ending of each length are right, before any was checked: so high that they are tried.
FIRST_CHANCE = 0.8
# Weight of the newest check in what a text's guesses are worth: some ten checks decide, as texts begin to repeat
# themselves and cease to. And in what is presumed of the next text.
NEWEST, NEWEST_OF_ALL = 0.2, 0.05
# Weight of the newest step in how fast the board is: it follows bursts of other programs, and heat, in a few steps.
NEWEST_SPEED = 0.3
# Least weight of the newest step in what a size of step costs in terms of the others. Small beside the one above: what
# slows the board down slows steps of all sizes down, and sizes that were not seen meanwhile must not look cheap. The
# first guess counts as so many steps that were seen.
NEWEST_COST = 0.05
GUESS_STEPS = 3
# A step counts as at most so many times slower or faster than expected; what is beyond is a stall, and no cost.
MOST_SURPRISE = 2.0
# A draft has to make tokens cheaper by this factor: estimates are noisy, and plain steps have no risk.
GAIN = 0.95
# Of so many chances that do not pay one is tried all the same: what rows cost is known only of sizes that were
# computed. A useless draft costs at most as much as a step, so this costs less than a fortieth.
RETRY = 40
# What reading the weights once costs in rows of computing: a step of n rows takes about as long as n plus this. The
# first guess for a size of step that was not seen yet.
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


class Drafting:
    """Whether drafts pay, and how long they should be; one per model."""

    def __init__(self) -> None:
        self.costs = Costs()
        self.chances = dict.fromkeys(ENDINGS, FIRST_CHANCE)
        self._refused = 0

    def length(self, rows: int, chance: float) -> int:
        """Tokens to draft for one sequence in a step with so many rows, where each is right with this chance."""
        if not self.costs.known or rows < 1:
            return 0
        plain = self.costs.weight(rows) / rows
        best, best_cost = 1, math.inf
        expected = float(rows)
        for drafts in range(1, MOST_DRAFTS + 1):
            expected += chance**drafts
            cost = self.costs.weight(rows + drafts) / expected
            if cost < best_cost:
                best, best_cost = drafts, cost
        if best_cost < GAIN * plain:
            return best
        self._refused += 1
        return best if self._refused % RETRY == 0 else 0


class Drafter:
    """Drafts of one sequence.

    How often guesses are right is learned from all of them, those that were not worth a row as well: the next token
    tells. So a text that begins to repeat itself is noticed at no cost.

    Args:
        start: the first token that guesses are taken from, see Lookup.
    """

    def __init__(self, start: int, drafting: Drafting) -> None:
        self._drafting = drafting
        self._lookup = Lookup(start)
        self._chances = dict(drafting.chances)
        self._ending = 0
        self._guess: Sequence[int] = ()
        self._guess_at = 0  # where the first guessed token would stand

    def draft(self, tokens: Sequence[int], rows: int, room: int) -> tuple[int, ...]:
        """What may come behind the tokens, as far as it is worth its rows.

        rows: of the step, without drafts. room: most tokens.
        """
        self._learn(tokens)
        at, self._ending = self._lookup.find(tokens)
        if not self._ending or room < 1:
            self._guess = ()
            return ()
        length = min(room, self._drafting.length(rows, self._chances[self._ending]))
        self._guess, self._guess_at = tokens[at : at + max(1, length)], len(tokens)
        return tuple(self._guess[:length])

    def _learn(self, tokens: Sequence[int]) -> None:
        """Compare the last guess with what came; behind its first error it says nothing."""
        for guessed, token in zip(self._guess, tokens[self._guess_at :], strict=False):
            right = guessed == token
            for chances, newest in ((self._chances, NEWEST), (self._drafting.chances, NEWEST_OF_ALL)):
                chances[self._ending] += newest * (right - chances[self._ending])
            if not right:
                return
