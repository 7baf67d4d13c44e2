"""What a step costs by its rows: sequences that get a token, and drafts. Pure."""

from __future__ import annotations

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
