"""What is drafted, and when drafts pay."""

from __future__ import annotations

from itertools import takewhile

import pytest

from edged.engines.llama.drafts import MOST_DRAFTS, RETRY, Drafter, Drafting, Lookup
from edged.engines.llama.speed import Costs

# Seconds of a step by its rows, as measured with a 0.5B on two x86 cores and with what a GPU-like board would show.
CPU = {1: 0.0193, 2: 0.038, 4: 0.050, 8: 0.085}
FLAT = {1: 0.020, 2: 0.021, 4: 0.022, 8: 0.024}


@pytest.mark.parametrize(
    ("tokens", "start", "found"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 0, (3, 3)),
        ([1, 2, 9, 1, 2], 0, (2, 2)),
        ([5, 1, 2, 3, 4, 9, 8, 1, 2, 3, 4], 0, (5, 4)),
        ([1, 2, 7, 1, 2, 8, 1, 2], 0, (5, 2)),  # the last time counts
        ([1, 2, 3, 4], 0, (0, 0)),
        ([1, 2, 9, 1, 2], 2, (0, 0)),  # what lies before the start suggests nothing
    ],
)
def test_lookup_finds_what_followed_the_longest_ending(tokens: list[int], start: int, found: tuple[int, int]) -> None:
    lookup = Lookup(start)
    for length in range(len(tokens)):
        lookup.find(tokens[:length])
    assert lookup.find(tokens) == found
    assert Lookup(start).find(tokens) == found


def drafting(costs: dict[int, float]) -> Drafting:
    """One that has seen steps of these costs."""
    seen = Costs()
    for _ in range(20):
        for rows, seconds in costs.items():
            seen.observe(rows, seconds)
    return Drafting(seen)


@pytest.mark.parametrize(
    ("costs", "chance", "least", "most"),
    [(CPU, 0.95, 3, MOST_DRAFTS), (CPU, 0.4, 0, 0), (FLAT, 0.4, 1, 4), (FLAT, 0.95, 5, MOST_DRAFTS)],
)
def test_drafts_are_as_long_as_pays(costs: dict[int, float], chance: float, least: int, most: int) -> None:
    assert least <= drafting(costs).length(1, chance) <= most


def test_nothing_is_drafted_before_the_cost_of_a_step_is_known() -> None:
    assert Drafting(Costs()).length(1, 1.0) == 0


def test_what_does_not_pay_is_tried_again_now_and_then() -> None:
    off = drafting(CPU)
    lengths = [off.length(1, 0.1) for _ in range(2 * RETRY)]
    assert sum(length > 0 for length in lengths) == 2


@pytest.mark.parametrize("slow", [3.0, 10.0])
def test_drafts_pay_after_steps_that_something_else_made_slow(slow: float) -> None:
    """What was drafted while another program had the board is no reason to draft no more."""
    costs = Costs()
    one = Drafting(costs)
    for _ in range(50):
        costs.observe(1, CPU[1])
    for rows in (1, 2, 1, 4, 2, 1):
        costs.observe(rows, slow * CPU[rows])
    lengths = []
    for _ in range(4 * RETRY):
        lengths.append(one.length(1, 0.95))
        costs.observe(1 + lengths[-1], 0.0193 + 0.0094 * lengths[-1])
    assert min(lengths[-RETRY:]) >= 3


LOOP = [11, 12, 13, 14, 15, 16]


def drafts_of(drafter: Drafter, text: list[int]) -> list[int]:
    """How many tokens are drafted at each step of a text that is written whatever is guessed."""
    lengths, at = [], 0
    while at < len(text):
        drafts = drafter.draft(text[:at], 1, len(text) - at)
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(drafts, text[at:], strict=False)))
        lengths.append(len(drafts))
        at += right + 1
    return lengths


def test_text_that_begins_to_repeat_itself_is_drafted_within_a_few_tokens() -> None:
    """Though nothing was drafted before: guesses are judged without being computed."""
    shared = drafting(CPU)
    shared.chances = dict.fromkeys(shared.chances, 0.1)
    lengths = drafts_of(Drafter(0, shared), list(range(100, 150)) + LOOP * 20)
    assert set(lengths[:50]) == {0}
    assert len(lengths) < 50 + 120 - 60
    assert min(lengths[-8:-2]) >= 3


def test_text_that_is_guessed_wrong_is_drafted_no_more() -> None:
    """Endings that came before, and each time something else behind them."""
    shared = drafting(CPU)
    text = [token for i in range(100) for token in (1, 2, 1000 + i)]
    lengths = drafts_of(Drafter(0, shared), text)
    assert sum(length > 0 for length in lengths) <= 10
    assert drafts_of(Drafter(0, shared), LOOP * 8)[-3] > 0, "that says nothing of another text"


def test_endings_are_judged_by_their_length() -> None:
    """A short ending is followed by many things, a long one by what it was followed by before."""
    shared = drafting(CPU)
    shared.chances = {**shared.chances, 2: 0.1}
    assert Drafter(0, shared).draft([1, 2, 9, 9, 1, 2], 1, 9) == ()
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4]
    assert len(Drafter(0, shared).draft(text, 1, 9)) > 1
    assert len(Drafter(0, shared).draft(text, 1, 1)) == 1, "no more than there is room for"


def test_costs_compare_sizes_that_were_seen_while_the_board_changed_its_speed() -> None:
    """Three times slower, as when threads are taken away, for as long as one likes."""
    costs = Costs()
    for speed in (1.0, 3.0, 1.0, 2.0):
        for _ in range(100):
            for rows, seconds in CPU.items():
                costs.observe(rows, speed * seconds)
    for rows, seconds in CPU.items():
        assert costs.weight(rows) / costs.weight(1) == pytest.approx(seconds / CPU[1], rel=0.05)
    assert costs.weight(2) < costs.weight(3) < costs.weight(4), "between its neighbours"


def test_rows_that_fit_a_time() -> None:
    costs = Costs()
    assert costs.rows_within(0.05, 16) == 16, "nothing is known"
    for _ in range(40):
        for rows, seconds in CPU.items():
            costs.observe(rows, seconds)
    assert [costs.rows_within(seconds, 8) for seconds in (0.001, 0.02, 0.052, 9.0)] == [1, 1, 4, 8]
