"""Drafts: tokens that may come next, guessed from what was said before and checked in the same step. Pure.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): where the last few tokens
stood before, what followed them then may follow again. Answers repeat tool results, calls repeat words of the request.
A draft costs a row of the batch; on a CPU a row is not free, so `Drafting` weighs what rows cost against how often
drafts were right, and drafts nothing where that does not pay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edged.engines.llama.speed import Costs

# Lengths of the endings that are looked up, longest first: a longer one is rarer, and its draft more often right.
ENDINGS = (4, 3, 2)
# Most tokens of one draft. Rows of a batch get hardly cheaper beyond this, and the chance that all are right is small.
MOST_DRAFTS = 7
# How often guesses behind an ending of each length are right, before any was checked: so high that they are tried.
FIRST_CHANCE = 0.8
# Weight of the newest check in what a text's guesses are worth: some ten checks decide, as texts begin to repeat
# themselves and cease to. And in what is presumed of the next text.
NEWEST, NEWEST_OF_ALL = 0.2, 0.05
# A draft has to make tokens cheaper by this factor: estimates are noisy, and plain steps have no risk.
GAIN = 0.95
# Of so many chances that do not pay one is tried all the same: what rows cost is known only of sizes that were
# computed. A useless draft costs at most as much as a step, so this costs less than a fortieth.
RETRY = 40


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
    """Whether drafts pay, and how long they should be; one per model.

    Args:
        costs: of the model's steps.
    """

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self.chances = dict.fromkeys(ENDINGS, FIRST_CHANCE)
        self._refused = 0

    def length(self, rows: int, chance: float) -> int:
        """Tokens to draft for one sequence in a step with so many rows, where each is right with this chance."""
        if not self._costs.known or rows < 1:
            return 0
        plain = self._costs.weight(rows) / rows
        best, best_cost = 1, math.inf
        expected = float(rows)
        for drafts in range(1, MOST_DRAFTS + 1):
            expected += chance**drafts
            cost = self._costs.weight(rows + drafts) / expected
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
