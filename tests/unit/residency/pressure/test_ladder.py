"""What is given up and taken back, and when, as tables."""

from __future__ import annotations

import itertools
import random

import pytest

from edged.residency.pressure.ladder import Calm, Ladder, Move, Rung

RUNGS = (Rung("caches"), Rung("idle models", 0.5, anew=False), Rung("batch work", 2), Rung("new work", 2))
CALM = Calm(first_s=10, next_s=5, again_s=60, most_s=40)


def play(ladder: Ladder, sights: dict[float, str], until_s: float, tick_s: float = 0.25) -> list[tuple[float, int]]:
    """(when, level) of every step; sights: what is seen at which time, "!" trouble, "?" doubt."""
    steps = []
    for tick in range(int(until_s / tick_s) + 1):
        now = tick * tick_s
        match sights.get(now):
            case "!":
                ladder.see(now)
            case "?":
                ladder.doubt(now)
        if ladder.step(now):
            steps.append((now, ladder.level))
            ladder.settled(now)
    return steps


def trouble(*times: float) -> dict[float, str]:
    return dict.fromkeys(times, "!")


@pytest.mark.parametrize(
    ("sights", "steps"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param(trouble(1), [(1, 1), (1.5, 2), (11, 1), (16, 0)], id="one signal: caches, idle models, and back"),
        pytest.param(trouble(0, 1, 2), [(0, 1), (0.5, 2), (12, 1), (17, 0)], id="too early for what was done to work"),
        pytest.param(trouble(0, 2.5), [(0, 1), (0.5, 2), (2.5, 3), (12.5, 2), (17.5, 1), (22.5, 0)], id="it lasts"),
        pytest.param(
            trouble(0, 2, 4, 6, 8, 10),
            [(0, 1), (0.5, 2), (4, 3), (6, 4), (20, 3), (25, 2), (30, 1), (35, 0)],
            id="it goes on and on",
        ),
        pytest.param(
            {**trouble(0), 9.0: "?", 18.0: "?"}, [(0, 1), (0.5, 2), (28, 1), (33, 0)], id="not well: nothing comes back"
        ),
        pytest.param({3.0: "?"}, [], id="not well on the ground"),
        pytest.param(
            trouble(0, 12),
            [(0, 1), (0.5, 2), (10, 1), (12, 2), (32, 1), (37, 0)],
            id="it comes back: twice the patience",
        ),
    ],
)
def test_steps(sights: dict[float, str], steps: list[tuple[float, int]]) -> None:
    """Up while it lasts, a step at a time; down in reverse, when it has been over for a while."""
    assert play(Ladder(RUNGS, CALM), sights, 60) == steps


def test_patience_grows_with_every_return_and_is_forgotten_in_the_end() -> None:
    """A board that gives up and takes back in turns does it less and less often."""
    ladder, now, seen = Ladder(RUNGS, CALM), 0.0, []
    for _ in range(5):
        ladder.see(now)
        seen.append(ladder.patience_s)
        while (due := ladder.next_at()) is not None:
            now = max(now, due)
            ladder.step(now)
            ladder.settled(now)
        now += 1
    assert seen == [10, 20, 40, 40, 40]
    now += CALM.most_s + CALM.again_s
    ladder.see(now)
    assert ladder.patience_s == 10


def test_time_of_an_act_counts_as_none_of_its_effect() -> None:
    """An unload that takes long is not followed by the next step before it could help."""
    ladder = Ladder(RUNGS, CALM)
    ladder.see(0)
    assert ladder.step(0) is Move.UP
    ladder.settled(0)
    assert ladder.step(0.5) is Move.UP
    ladder.see(2.5)
    ladder.settled(3)
    assert ladder.step(3) is None
    ladder.see(4)
    assert ladder.step(5) is None
    ladder.see(5)
    assert ladder.step(5) is Move.UP


def test_asked_only_when_it_says_it_moves_as_if_asked_all_the_time() -> None:
    """`next_at` misses nothing; never more than a rung at once, never off either end."""
    for seed in range(50):
        dice = random.Random(seed)
        sights = {n / 4: dice.choice("!!?") for n in sorted(dice.sample(range(400), dice.randint(1, 40)))}
        expected, ladder, steps = play(Ladder(RUNGS, CALM), sights, 150), Ladder(RUNGS, CALM), []
        events = iter([*sorted(sights), 150.0])
        until, now = next(events), 0.0
        while now < 150:
            due = ladder.next_at()
            now = min(until, due) if due is not None else until
            if now == until:
                (ladder.see if sights.get(now) == "!" else ladder.doubt)(now)
                until = next(events, 150.0)
            if now <= 150 and ladder.step(now):
                steps.append((now, ladder.level))
                ladder.settled(now)
        assert [s for s in steps if s[0] < 149] == [s for s in expected if s[0] < 149]
        levels = [0, *(level for _, level in steps)]
        assert all(abs(a - b) == 1 for a, b in itertools.pairwise(levels))
        assert set(levels) <= set(range(5))
