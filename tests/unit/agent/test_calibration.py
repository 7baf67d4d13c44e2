"""From scores to probabilities, and the line that hangs on them."""

from __future__ import annotations

import math
import random

import pytest

from edged.agent import calibration
from edged.agent.calibration import HELD, Curve, Known, default_line, fit, fitted

TRUE = Curve(a=0.6, b=0.9, c=0.7)


def drawn(number: int, *, seed: int = 0, curve: Curve = TRUE) -> list[tuple[float, bool]]:
    """Scores as a model gives them, and whether its decisions were right, as the curve says."""
    rng = random.Random(seed)
    scores = [math.exp(-rng.expovariate(1.2)) for _ in range(number)]
    return [(score, rng.random() < curve.probability(score)) for score in scores]


def test_curve_that_made_the_decisions_is_found() -> None:
    found = fitted(drawn(5000))
    for score in (0.01, 0.1, 0.3, 0.6, 0.9, 0.99):
        assert found.probability(score) == pytest.approx(TRUE.probability(score), abs=0.04)


def test_share_that_is_right_is_what_is_said_in_every_tenth() -> None:
    """Of decisions that the fit has not seen."""
    found = fitted(drawn(3000))
    fresh = sorted((found.probability(score), right) for score, right in drawn(3000, seed=1))
    for i in range(10):
        tenth = fresh[300 * i : 300 * (i + 1)]
        said, right = (sum(column) / 300 for column in zip(*tenth, strict=True))
        assert said == pytest.approx(right, abs=4 * math.sqrt(0.25 / 300))


@pytest.mark.parametrize(
    "pairs",
    [
        drawn(30),
        [(0.9, True)] * 30,
        [(1.0, True)] * 40 + [(0.0, False)] * 40,  # told apart without a mistake: the slopes could grow for ever
        [(score, not right) for score, right in drawn(500)],  # the surer the worse
        [(0.5, i % 2 == 0) for i in range(30)],
    ],
)
def test_higher_score_is_never_worth_less(pairs: list[tuple[float, bool]]) -> None:
    """And a probability is one, whatever was seen."""
    curve = fitted(pairs)
    told = [curve.probability(i / 100) for i in range(101)]
    assert told == sorted(told)
    assert all(0 < each < 1 for each in told)


def test_few_decisions_leave_the_score_as_it_is() -> None:
    """Drawn to the identity."""
    assert fitted([]).probability(0.37) == pytest.approx(0.37)
    assert fitted([(0.9, False)]).probability(0.9) < 0.9


def test_score_of_a_probability() -> None:
    assert TRUE.probability(TRUE.score(0.8)) == pytest.approx(0.8)


def test_default_line_leaves_at_most_one_wrong_write_in_two_hundred_above_it() -> None:
    calls = [(i / 1000, i in (100, 200, 500, 800, 900)) for i in range(1000)]
    assert default_line(calls) == 0.0  # five are allowed
    calls[950] = (0.95, True)
    line = default_line(calls)
    assert 0.1 < line < 0.101
    assert sum(wrong for probability, wrong in calls if probability >= line) == 5


def test_default_line_of_few_calls_is_above_every_wrong_write() -> None:
    calls = [(0.9, False), (0.8, False), (0.7, True), (0.6, False)]
    assert default_line(calls) == pytest.approx(0.75)
    assert default_line([(0.7, True)]) == pytest.approx(0.85)
    assert default_line([(0.7, False)]) == 0.0


def test_fit_takes_thirty_calls() -> None:
    with pytest.raises(ValueError, match="30 calls, and there are 29"):
        fit([Known(0.9, True)] * 29 + [Known(0.9, True, called=False)] * 10)


def test_decisions_that_call_nothing_have_a_curve_of_their_own() -> None:
    calls = [Known(score, right) for score, right in drawn(400)]
    wrong = [Known(score, False, called=False) for score, _ in drawn(400, seed=2)]
    made = fit(calls + wrong)
    assert made.probability(0.9, called=True) == pytest.approx(TRUE.probability(0.9), abs=0.1)
    assert (made.probability(0.9, called=False) or 1) < 0.1
    assert made.decisions == 800
    assert fit(calls + wrong[:5]).probability(0.9, called=False) is None


def test_own_examples_do_not_lower_the_line() -> None:
    """Thirty of them hardly hold a wrong write."""
    known = [Known(score, right, wrong_write=not right) for score, right in drawn(2000)]
    before = fit(known)
    assert 0.5 < before.auto < 1
    own = [Known(score, True) for score, _ in drawn(40, seed=3)]
    assert fit(own).auto == 0.0
    after = fit(own, before)
    assert after.calls.score(after.auto) == pytest.approx(before.calls.score(before.auto), abs=1e-6)


def test_wrong_writes_above_the_line_are_few_on_other_decisions() -> None:
    known = [Known(score, right, wrong_write=not right and score > 0.2) for score, right in drawn(4000)]
    made = fit(known)
    fresh = drawn(4000, seed=5)
    above = [right for score, right in fresh if made.calls.probability(score) >= made.auto]
    assert sum(not right for right in above) / len(fresh) <= 2 * calibration.WRONG_WRITES


def test_default_line_holds_back_no_more_than_people_bear() -> None:
    """Where a model is often wrong, and sure of it, wrong writes are left above the line."""
    known = [Known(score, right, wrong_write=not right, writes=True) for score, right in drawn(400)]
    reads = [Known(score, right) for score, right in drawn(400, seed=2)]
    made = fit([*known, *reads])
    below = sum(made.calls.probability(each.score) < made.auto for each in known if each.right)
    assert 0.9 * HELD * 800 < below <= HELD * 800
