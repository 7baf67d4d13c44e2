"""From how sure a model says it is to the share of such decisions that are right. Pure.

The score of a decision is the product of its sampled tokens' probabilities. It falls with every token, so that a right
call with a long text has a lower one than a wrong call without arguments: it orders decisions well, and is no
probability. What makes one of it is fitted on decisions of which somebody knows whether they were right, with beta
calibration (Kull, Silva Filho and Flach, 2017): a logistic curve over ln(s) and -ln(1 - s). It has three numbers, so
thirty examples are enough; it rises everywhere, so two decisions keep their order; and it can be the identity, which is
what it is drawn to where there is little to go by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

# Decisions that a fit takes: with fewer, one wrong decision more or less moves it by several percent.
LEAST = 30
# Of all calls that were looked at, the share that may have been wrong writes at or above the default line.
WRONG_WRITES = 0.005
# Of all decisions, the share that may be right writes below the default line. A small model that is wrong in every
# tenth would otherwise ask back after every third request, and who is asked that often says yes without reading. With
# as many wrong ones beside them about 15 % are asked about.
HELD = 0.08
# Scores closer to 0 or 1 say nothing more: sums of 32-bit log-probabilities are good for about so much.
EDGE = 1e-6
# How much the fit is drawn to the identity: like a single decision. It keeps a set in which all were right finite.
DRAWN = 1.0
ROUNDS = 100  # of Newton's method; it takes five to ten
HALVINGS = 40  # of the scores, to find the one of a probability
ENOUGH = 1e-9  # a step that is smaller than this ends it

Slope = Annotated[float, Meta(ge=0)]


class Curve(Struct, frozen=True, forbid_unknown_fields=True):
    """logistic(a ln(s) - b ln(1 - s) + c) of a score s."""

    a: Slope
    b: Slope
    c: float

    def probability(self, score: float) -> float:
        """How likely a decision with this score is right, 0 to 1."""
        low, high = _features(score)
        return _logistic(self.a * low + self.b * high + self.c)

    def score(self, probability: float) -> float:
        """The score that has a probability, as near as the curve comes to it."""
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.probability(middle) < probability else (low, middle)
        return high


class Calibration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of one file of weights with one adapter in one dialect.

    calls: the curve of decisions that call something. none: of those that do not; None: there were too few.
    auto: the default line: a probability below which calls that write are not made.
    decisions: that it was fitted on.
    """

    calls: Curve
    none: Curve | None = None
    auto: Annotated[float, Meta(ge=0, le=1)]
    decisions: int

    def probability(self, score: float, *, called: bool) -> float | None:
        """How likely a decision is right; None: that is not known of this kind."""
        curve = self.calls if called else self.none
        return None if curve is None else curve.probability(score)


class Known(Struct, frozen=True):
    """A decision of which somebody knows whether it was right.

    called: it calls something. wrong_write: it writes something that was not asked for. writes: it writes something.
    """

    score: float
    right: bool
    called: bool = True
    wrong_write: bool = False
    writes: bool = False


def fit(known: Sequence[Known], before: Calibration | None = None) -> Calibration:
    """The calibration that these decisions show. They are none that the model was trained on.

    Args:
        before: what it takes the place of. The default line does not fall below the score that it had there: it hangs
            on the rarest of all cases, of which a few dozen examples hardly have one.

    Raises:
        ValueError: they are too few.
    """
    calls = [each for each in known if each.called]
    others = [each for each in known if not each.called]
    if len(calls) < LEAST:
        raise ValueError(f"a calibration takes {LEAST} calls, and there are {len(calls)}")
    curve = fitted([(each.score, each.right) for each in calls])
    line = default_line([(curve.probability(each.score), each.wrong_write) for each in calls])
    writes = [curve.probability(each.score) for each in calls if each.writes and each.right]
    line = min(line, bearable_line(writes, len(known)))
    if before is not None and before.auto > 0:
        line = max(line, curve.probability(before.calls.score(before.auto)))
    return Calibration(
        calls=curve,
        none=fitted([(each.score, each.right) for each in others]) if len(others) >= LEAST else None,
        auto=line,
        decisions=len(calls) + len(others),
    )


def fitted(pairs: Sequence[tuple[float, bool]]) -> Curve:
    """The curve of (score, right) pairs that makes them likeliest. Slopes are not negative: a higher score is never
    worth less."""
    rows = [(*_features(score), float(right)) for score, right in pairs]
    fixed: dict[int, float] = {}
    while True:
        weights = _newton(rows, fixed)
        below = [place for place in (0, 1) if weights[place] < 0]
        if not below:
            return Curve(*weights)
        fixed[min(below, key=lambda place: weights[place])] = 0.0


def default_line(calls: Sequence[tuple[float, bool]]) -> float:
    """The least probability from which on at most WRONG_WRITES of all calls were wrong writes, halfway to the next call
    below it.

    Args:
        calls: (probability, whether it was a wrong write).
    """
    allowed = WRONG_WRITES * len(calls)
    wrong = 0
    highest = sorted(calls, reverse=True)
    for place, (probability, is_wrong) in enumerate(highest):
        wrong += is_wrong
        if wrong > allowed:
            above = next((p for p, _ in reversed(highest[:place]) if p > probability), 1.0)
            return (probability + above) / 2
    return 0.0


def bearable_line(writes: Sequence[float], decisions: int) -> float:
    """The greatest probability below which at most HELD of all decisions are right writes.

    Args:
        writes: probabilities of those that write what was asked for.
        decisions: how many there are in all.
    """
    lowest, most = sorted(writes), int(HELD * decisions)
    return lowest[most] if most < len(lowest) else 1.0


def _features(score: float) -> tuple[float, float]:
    score = min(max(score, EDGE), 1 - EDGE)
    return math.log(score), -math.log1p(-score)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


IDENTITY = (1.0, 1.0, 0.0)


def _newton(rows: Sequence[tuple[float, float, float]], fixed: dict[int, float]) -> list[float]:
    """Weights of (low, high, 1) for which the penalized loss is least; those in `fixed` stay as they are there."""
    free = [place for place in range(3) if place not in fixed]
    weights = [fixed.get(place, IDENTITY[place]) for place in range(3)]
    best = _loss(rows, weights)
    for _ in range(ROUNDS):
        slope = [DRAWN * (weights[i] - IDENTITY[i]) for i in range(3)]
        bend = [[DRAWN * (i == j) for j in range(3)] for i in range(3)]
        for low, high, right in rows:
            x = (low, high, 1.0)
            p = _logistic(sum(w * each for w, each in zip(weights, x, strict=True)))
            for i in range(3):
                slope[i] += (p - right) * x[i]
                for j in range(3):
                    bend[i][j] += p * (1 - p) * x[i] * x[j]
        step = _solved([[bend[i][j] for j in free] for i in free], [slope[i] for i in free])
        loss, share, tried = math.inf, 1.0, weights
        while loss > best and share > ENOUGH:  # a step too far is halved
            tried = list(weights)
            for place, each in zip(free, step, strict=True):
                tried[place] -= share * each
            loss, share = _loss(rows, tried), share / 2
        if loss > best - ENOUGH:
            return weights
        weights, best = tried, loss
    return weights


def _loss(rows: Sequence[tuple[float, float, float]], weights: Sequence[float]) -> float:
    told = 0.0
    for low, high, right in rows:
        x = weights[0] * low + weights[1] * high + weights[2]
        told += max(x, 0.0) - x * right + math.log1p(math.exp(-abs(x)))
    return told + DRAWN / 2 * sum((w - i) ** 2 for w, i in zip(weights, IDENTITY, strict=True))


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """By Gauss, for a symmetric positive matrix of at most three rows."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    n = len(rows)
    for i in range(n):
        for k in range(i + 1, n):
            share = rows[k][i] / rows[i][i]
            rows[k] = [a - share * b for a, b in zip(rows[k], rows[i], strict=True)]
    found = [0.0] * n
    for i in reversed(range(n)):
        found[i] = (rows[i][n] - sum(rows[i][j] * found[j] for j in range(i + 1, n))) / rows[i][i]
    return found
