"""How many threads compute, and how many tokens a step."""

from __future__ import annotations

import random

import pytest

from edged.engine import cpus
from edged.engine.pace import MIN_TOKENS, STEP_S, Pace
from edged.engine.threads import REVISE_STEPS, TRIAL_STEPS, Tuner, most_threads, quota_cpus


@pytest.mark.parametrize(
    ("texts", "cpus_allowed"),
    [
        ([], None),
        (["max 100000\n"], None),
        (["150000 100000\n"], 1.5),
        (["max 100000", "400000 100000", "200000 100000"], 2.0),
        (["", "nonsense", "1 2 3", "100000 0"], None),
    ],
)
def test_quota_is_the_smallest_of_all_groups(texts: list[str], cpus_allowed: float | None) -> None:
    assert quota_cpus(texts) == cpus_allowed


@pytest.mark.parametrize(
    ("affinity", "quota", "configured", "threads"),
    [
        (4, None, None, 4),
        (64, None, None, 8),
        (4, 2.5, None, 2),
        (4, 0.5, None, 1),
        (2, 8.0, None, 2),
        (4, None, 1, 1),
        (2, 1.0, 6, 6),
        (4, None, 0, 1),
    ],
)
def test_most_threads(affinity: int, quota: float | None, configured: int | None, threads: int) -> None:
    assert most_threads(affinity, quota, configured) == threads


def test_most_threads_of_this_process_is_at_least_one() -> None:
    assert cpus.most_threads(None) >= 1
    assert cpus.most_threads(3) == 3


def run(tuner: Tuner, cost: dict[int, float], steps: int, noise: float = 0.0, shapes: tuple[int, ...] = (1,)) -> int:
    """Steps that take what the count costs, in changing shapes; the count settled on."""
    rng = random.Random(1)
    for i in range(steps):
        tokens = shapes[i % len(shapes)]
        tuner.observe(tokens, cost[tuner.count] * (3 + tokens) * (1 + noise * rng.random()))
    return tuner._settled


QUIET = {1: 4.0, 2: 2.0, 3: 1.5, 4: 1.0}
BUSY = {1: 4.0, 2: 6.0, 3: 12.0, 4: 20.0}


def test_tuner_stays_with_all_cores_on_a_quiet_board() -> None:
    assert run(Tuner(4), QUIET, 10 * REVISE_STEPS, noise=0.2) == 4


def test_tuner_goes_down_on_a_busy_board_within_few_steps() -> None:
    assert run(Tuner(4), BUSY, 12 * TRIAL_STEPS) < 4


def test_tuner_follows_a_board_that_becomes_busy_and_quiet_again() -> None:
    tuner = Tuner(4)
    run(tuner, QUIET, 2 * REVISE_STEPS)
    assert run(tuner, BUSY, 5 * REVISE_STEPS) == 1
    assert run(tuner, QUIET, 12 * REVISE_STEPS) == 4


def test_tuner_learns_from_any_mix_of_work() -> None:
    """Prompts, batches and single tokens: nothing has to come twice in a row."""
    shapes = (12, 1, 64, 5, 2, 9)
    assert run(Tuner(4), BUSY, 20 * TRIAL_STEPS, shapes=shapes) == 1
    assert run(Tuner(4), QUIET, 10 * REVISE_STEPS, noise=0.2, shapes=shapes) == 4


def test_tuner_learns_from_steps_that_are_never_alike() -> None:
    """Tool calls: a turn of another length each time, and forced runs of all lengths."""
    shapes = tuple(range(1, 6 * TRIAL_STEPS))
    assert run(Tuner(2), {1: 1.0, 2: 20.0}, 5 * TRIAL_STEPS, shapes=shapes) == 1
    assert run(Tuner(2), {1: 2.0, 2: 1.0}, 3 * REVISE_STEPS, noise=0.2, shapes=shapes) == 2


def test_tuner_needs_few_steps_when_the_board_collapses() -> None:
    tuner = Tuner(4)
    run(tuner, QUIET, REVISE_STEPS // 2)
    assert tuner.count == 4
    collapse = {1: 5.0, 2: 40.0, 3: 60.0, 4: 100.0}
    assert run(tuner, collapse, 5 * TRIAL_STEPS) == 1


def test_tuner_does_not_move_for_equal_counts() -> None:
    assert run(Tuner(2), {1: 1.0, 2: 1.0}, 10 * REVISE_STEPS, noise=0.05) == 2


def test_tuner_leaves_a_configured_count_alone() -> None:
    assert run(Tuner(4, fixed=True), BUSY, 3 * REVISE_STEPS) == 4


@pytest.mark.parametrize(
    ("tokens_per_s", "budget"), [(5, MIN_TOKENS), (100, MIN_TOKENS), (130, 64), (300, 128), (100_000, 256)]
)
def test_pace_keeps_steps_short(tokens_per_s: float, budget: int) -> None:
    pace = Pace(256)
    for _ in range(20):
        pace.observe(pace.budget, pace.budget / tokens_per_s)
    assert pace.budget == budget
    assert budget == MIN_TOKENS or budget / tokens_per_s <= STEP_S


def test_pace_learns_nothing_from_single_tokens() -> None:
    pace = Pace(256)
    before = pace.budget
    pace.observe(1, 10.0)
    assert pace.budget == before
