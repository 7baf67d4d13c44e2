"""How long a request will take, from what is measured."""

from __future__ import annotations

import math

import pytest

from edged.requests.estimate import NEWEST, OVERTIME, Needs, eta_s, left_s, work_s
from edged.types import Need, Speed

BOARD = Speed(prefill_tokens_s=100.0, decode_tokens_s=20.0, batch_tokens_s=20.0)  # one at a time was seen
BUSY = Speed(prefill_tokens_s=100.0, decode_tokens_s=10.0, batch_tokens_s=60.0)  # six at once were
TURN = Need(prompt_tokens=50, steps=30, other_s=0.2, work_s=1.5)
FAR = Need(prompt_tokens=0, steps=0, other_s=4.0, work_s=4.0)  # an upstream's work


@pytest.mark.parametrize(
    ("need", "speed", "beside", "seconds"),
    [
        (TURN, BOARD, 1, 0.5 + 1.5 + 0.2),
        (TURN, BOARD, 4, 4 * 0.5 + 30 * (0.05 + 0.03) + 0.2),  # all of their prompts come first, and steps are longer
        (TURN, BOARD, 0, 0.5 + 1.5 + 0.2),
        (TURN, None, 4, 1.5),  # a scripted model, or one that is not loaded: what it took
        (FAR, BOARD, 8, 4.0),
        (FAR, None, 8, 4.0),
        (None, BOARD, 1, None),
        (None, None, 1, None),
    ],
)
def test_work_is_what_is_needed_at_the_speed_that_was_measured(
    need: Need | None, speed: Speed | None, beside: int, seconds: float | None
) -> None:
    assert work_s(need, speed, beside) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("speed", "sequences", "seconds"),
    [
        (BOARD, 1, 0.05),
        (BOARD, 8, 0.12),
        (BUSY, 6, 0.1),
        (BUSY, 8, 0.12),
        (BUSY, 3, 0.07),
        (BUSY, 1, 0.05),
        (Speed(10.0, 10.0, 60.0), 3, 0.05),  # half as many take at least half as long
        (Speed(10.0, 10.0, 60.0), 1, 1 / 60),
    ],
)
def test_step_with_more_or_fewer_sequences_than_were_seen(speed: Speed, sequences: int, seconds: float) -> None:
    assert speed.step_s(sequences) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("work", "elapsed", "left"), [(10.0, 0.0, 10.0), (10.0, 7.0, 3.0), (10.0, 9.5, 10 * OVERTIME), (10.0, 99.0, 2.0)]
)
def test_running_request_has_left_what_it_did_not_do_yet(work: float, elapsed: float, left: float) -> None:
    assert left_s(work, elapsed) == pytest.approx(left)
    assert left_s(None, elapsed) is None


@pytest.mark.parametrize(
    ("mine", "running", "before", "places", "seconds"),
    [
        (2.0, [], [], 1, 2.0),
        (2.0, [3.0], [], 1, 5.0),
        (2.0, [3.0], [], 2, 2.0),  # a place is free
        (2.0, [3.0, 1.0], [], 2, 3.0),  # behind the one that ends first
        (2.0, [3.0, 1.0], [5.0], 2, 5.0),  # which takes another before it: 1 + 5 is later than 3
        (2.0, [], [5.0, 1.0, 1.0], 2, 4.0),  # two short ones pass beside a long one
        (2.0, [4.0, 6.0], [], 1, 8.0),  # more run than are begun from now on: the last of them leaves the place
        (None, [1.0], [1.0], 2, None),
        (2.0, [None], [1.0], 2, None),
        (2.0, [1.0], [None], 2, None),
    ],
)
def test_eta_plays_the_queue_through(
    mine: float | None, running: list[float | None], before: list[float | None], places: int, seconds: float | None
) -> None:
    assert eta_s(mine, running, before, places) == (None if seconds is None else pytest.approx(seconds))


def test_needs_follow_the_last_requests_of_each_agent() -> None:
    """The first one counts whole; another agent is another one."""
    needs = Needs()
    assert needs.of("house") is None
    needs.learn("house", TURN)
    assert needs.of("house") == TURN
    assert needs.of("shed") is None
    needs.learn("house", FAR)
    mixed = needs.of("house")
    assert mixed is not None
    assert mixed.prompt_tokens == pytest.approx(50 * (1 - NEWEST))
    assert mixed.other_s == pytest.approx(0.2 + NEWEST * 3.8)
    for _ in range(100):
        needs.learn("house", FAR)
    settled = needs.of("house")
    assert settled is not None
    assert math.isclose(settled.work_s, 4.0, rel_tol=1e-6)
