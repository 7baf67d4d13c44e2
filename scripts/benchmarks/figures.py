"""Figures of alternating runs. Pure.

A machine is never the same for long, so edged and a peer take turns in blocks, and each pair of neighbouring blocks
gives one ratio. What is told is the median of the ratios, and the least and the largest beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from benchmarks.report import Row

Pair = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Ratio:
    """edged / peer: the median over neighbouring blocks, the least and the largest."""

    middle: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.least:.2f} to {self.most:.2f})"


def ratio_of_means(blocks: Sequence[Pair]) -> Ratio:
    """Of each pair of blocks (edged's values, the peer's) the ratio of the means."""
    return ratio([(mean(ours), mean(theirs)) for ours, theirs in blocks])


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Of pairs (edged's value, the peer's) measured one after the other."""
    ratios = [ours / theirs for ours, theirs in pairs]
    return Ratio(median(ratios), min(ratios), max(ratios))


def p95(values: Sequence[float]) -> float:
    """The smallest value that at least 95 % do not exceed (nearest rank)."""
    return nearest_rank(values, 0.95)


def nearest_rank(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def histogram_quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """Prometheus' estimate: linear within the bucket in which `share` of the observations is reached, the last finite
    bound above it; nan where nothing was observed.

    Args:
        buckets: (upper bound, cumulative count), ascending, the last one infinite.
    """
    wanted = share * (buckets[-1][1] if buckets else 0)
    if wanted <= 0:
        return math.nan
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted:
            return low if math.isinf(bound) else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


def row(what: str, ours: object, peer: object, ratio: Ratio | None = None, reach: str = "", n: int = 0) -> Row:
    """A line of a table against a peer. reach: "at most 0.33"."""
    return {
        "what": what,
        "edged": ours,
        "peer": peer,
        "ratio": "" if ratio is None else round(ratio.middle, 3),
        "least to most": "" if ratio is None else f"{ratio.least:.2f} to {ratio.most:.2f}",
        "to reach": reach,
        "n": n or "",
    }
