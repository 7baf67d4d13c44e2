"""What is drafted, and when drafts pay."""

from __future__ import annotations

import pytest

from edged.engine.drafts import MOST_DRAFTS, RETRY, Drafting, Lookup

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


def drafting(costs: dict[int, float], chance: float) -> Drafting:
    """One that has seen steps of these costs, and drafts that were right that often."""
    drafting = Drafting()
    for rows, seconds in costs.items():
        drafting.observe_step(rows, seconds)
    for i in range(400):
        drafting.observe_draft(3, 1, int((i * chance) % 1 + chance >= 1))
    return drafting


@pytest.mark.parametrize(
    ("costs", "chance", "least", "most"),
    [(CPU, 0.95, 3, MOST_DRAFTS), (CPU, 0.4, 0, 0), (FLAT, 0.4, 1, 4), (FLAT, 0.95, 5, MOST_DRAFTS)],
)
def test_drafts_are_as_long_as_pays(costs: dict[int, float], chance: float, least: int, most: int) -> None:
    assert least <= drafting(costs, chance).length(1, 3) <= most


def test_nothing_is_drafted_before_the_cost_of_a_step_is_known() -> None:
    assert Drafting().length(1, 4) == 0


def test_drafts_that_do_not_pay_are_tried_again_now_and_then() -> None:
    off = drafting(CPU, 0.1)
    lengths = [off.length(1, 3) for _ in range(2 * RETRY)]
    assert sum(lengths) == 2


def test_drafts_come_back_when_they_are_right_again() -> None:
    off = drafting(CPU, 0.1)
    for _ in range(60):
        off.observe_draft(3, 1, 1)
    assert off.length(1, 3) > 1
    assert off.accepted > 60


def test_endings_are_judged_by_their_length() -> None:
    one = drafting(CPU, 0.1)
    assert one.length(1, 3) == 0
    assert one.length(1, 4) > 0  # nothing was seen of these
