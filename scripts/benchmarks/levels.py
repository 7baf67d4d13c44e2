"""What a row of memory levels says: where it begins, how far it rises, whether it grows. Pure; any one unit.

A level is what is left after a model was taken out. The first one tells what stays for good (libraries); what matters
is that the others are no higher, and that late ones are no higher than early ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SETTLING = 3  # cycles after which nothing may grow any more
# Of those behind them: of 30 cycles these are the 4th to the 10th, and the 21st to the 30th.
EARLY, LATE = 7 / 27, 10 / 27


@dataclass(frozen=True)
class Levels:
    """first: after the first cycle; above: how much the highest of the later ones is over it, 0 at least; growth: see
    `growth`, of the cycles behind the SETTLING first."""

    first: float
    above: float
    growth: float


def levels(values: Sequence[float]) -> Levels:
    """Of one level for each cycle, in order."""
    return Levels(values[0], max(values) - values[0], growth(values[SETTLING:] or values))


def growth(values: Sequence[float]) -> float:
    """The median of the late ones over that of the early ones; negative where it falls, 0 for one value. (One look of
    ten may come amid some work, and moves a mean.)"""
    early, late = (max(1, round(len(values) * share)) for share in (EARLY, LATE))
    return median(values[-late:]) - median(values[:early])


def error_percent(predicted: float, measured: float) -> float:
    """How far a prediction is off, in percent of what was measured; above 0 where it says too much."""
    return (predicted - measured) / measured * 100
