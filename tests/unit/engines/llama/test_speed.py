"""A model's speed, from steps."""

from __future__ import annotations

import pytest

from edged.engines.llama.speed import MEMORY_S, MIN_TOKENS, STEP_S, Rates, StepBudget

PREFILL_S, DECODE_S = 0.002, 0.05  # a token of a prompt, a step that generates: 500 and 20 a second


def seen(*steps: tuple[int, int], slower: float = 1.0) -> Rates:
    """After steps of (prompt tokens, rows), each of which took what it should."""
    rates = Rates()
    run(rates, *steps, slower=slower)
    return rates


def run(rates: Rates, *steps: tuple[int, int], slower: float = 1.0) -> None:
    for prompt, rows in steps:
        rates.observe(prompt, rows, slower * (prompt * PREFILL_S + (DECODE_S if rows else 0.0)))


def told(rates: Rates) -> tuple[float | None, float | None, float | None]:
    return rates.prefill_tokens_s, rates.decode_tokens_s, rates.batch_tokens_s


@pytest.mark.parametrize(
    ("steps", "speeds"),
    [
        ([], (None, None, None)),
        ([(256, 0)], (500.0, None, None)),
        ([(256, 0), (3, 0)], (500.0, None, None)),
        ([(0, 1)], (None, 20.0, 20.0)),
        ([(0, 8), (0, 8)], (None, 20.0, 160.0)),
        ([(64, 4)], (None, None, None)),  # nobody knows which was how long
        ([(64, 4), (64, 0)], (500.0, None, None)),
        ([(64, 0), (0, 4)], (500.0, 20.0, 80.0)),
        ([(64, 0), (0, 4), (64, 4), (200, 4)], (500.0, 20.0, 80.0)),
    ],
)
def test_each_phase_is_told_once_it_was_seen_by_itself(
    steps: list[tuple[int, int]], speeds: tuple[float | None, float | None, float | None]
) -> None:
    assert told(seen(*steps)) == tuple(None if s is None else pytest.approx(s) for s in speeds)


@pytest.mark.parametrize("step", [(0, 0, 1.0), (-1, 0, 1.0), (64, 0, 0.0), (0, 4, -1.0)])
def test_what_cannot_be_is_no_step(step: tuple[int, int, float]) -> None:
    rates = Rates()
    rates.observe(*step)
    assert told(rates) == (None, None, None)


def test_short_end_of_a_prompt_does_not_count_as_much_as_its_long_pieces() -> None:
    """Three tokens cost what reading the weights costs."""
    rates = seen(*[(256, 0)] * 8)
    rates.observe(3, 0, DECODE_S)
    assert rates.prefill_tokens_s == pytest.approx(500, rel=0.02)


def test_board_that_becomes_hot_is_followed_within_the_memory() -> None:
    """Steps take twice as long; after as many seconds as are remembered most of it is known."""
    rates = seen(*[(256, 0), (0, 4)] * 100)
    for _ in range(int(2 * MEMORY_S / (2 * DECODE_S))):
        run(rates, (0, 4), slower=2.0)
    assert rates.decode_tokens_s == pytest.approx(10, rel=0.15)
    assert rates.prefill_tokens_s == pytest.approx(500)  # nothing was seen of it


def test_mixed_steps_alone_show_a_board_that_slows_down() -> None:
    """Under steady work hardly a step has one phase only. How much of it is which phase's is a share only."""
    rates = seen(*[(256, 0), (0, 4)] * 10)
    for _ in range(500):
        run(rates, (64, 4), slower=1.5)
    prefill, decode, _ = told(rates)
    assert prefill == pytest.approx(500 / 1.5, rel=0.15)
    assert decode == pytest.approx(20 / 1.5, rel=0.15)
    assert prefill is not None
    assert decode is not None
    assert 64 / prefill + 1 / decode == pytest.approx(1.5 * (64 * PREFILL_S + DECODE_S), rel=0.02)


@pytest.mark.parametrize(
    ("tokens_per_s", "budget"), [(5, MIN_TOKENS), (100, MIN_TOKENS), (130, 64), (300, 128), (100_000, 256)]
)
def test_budget_keeps_steps_short(tokens_per_s: float, budget: int) -> None:
    budgets = StepBudget(256)
    for _ in range(20):
        budgets.observe(budgets.budget, budgets.budget / tokens_per_s)
    assert budgets.budget == budget
    assert budget == MIN_TOKENS or budget / tokens_per_s <= STEP_S


def test_budget_learns_nothing_from_single_tokens() -> None:
    budgets = StepBudget(256)
    before = budgets.budget
    budgets.observe(1, 10.0)
    assert budgets.budget == before
