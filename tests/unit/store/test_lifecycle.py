"""The table of a request's life."""

from __future__ import annotations

import random

import pytest

from edged.store import lifecycle
from edged.store.lifecycle import ENDING, TRANSITIONS, UNFINISHED, Happening, IllegalTransition, State
from edged.types import Status

ENDED = {State.DONE, State.FAILED, State.EXPIRED, State.CANCELLED, State.QUARANTINED}
ALLOWED = {
    (State.RECEIVED, Happening.CLAIM, State.RUNNING),
    (State.RECEIVED, Happening.FAIL, State.FAILED),
    (State.RECEIVED, Happening.EXPIRE, State.EXPIRED),
    (State.RECEIVED, Happening.CANCEL, State.CANCELLED),
    (State.RECEIVED, Happening.QUARANTINE, State.QUARANTINED),
    (State.RUNNING, Happening.RELEASE, State.RECEIVED),
    (State.RUNNING, Happening.PARK, State.WAITING_LINK),
    (State.WAITING_LINK, Happening.RESUME, State.RECEIVED),
    (State.WAITING_LINK, Happening.FAIL, State.FAILED),
    (State.WAITING_LINK, Happening.EXPIRE, State.EXPIRED),
    (State.WAITING_LINK, Happening.CANCEL, State.CANCELLED),
    (State.FAILED, Happening.REQUEUE, State.RECEIVED),
    (State.EXPIRED, Happening.REQUEUE, State.RECEIVED),
    (State.QUARANTINED, Happening.REQUEUE, State.RECEIVED),
    (State.RUNNING, Happening.ANSWER, State.ANSWERED),
    (State.RUNNING, Happening.FAIL, State.FAILED),
    (State.RUNNING, Happening.EXPIRE, State.EXPIRED),
    (State.RUNNING, Happening.CANCEL, State.CANCELLED),
    (State.RUNNING, Happening.QUARANTINE, State.QUARANTINED),
    (State.ANSWERED, Happening.DELIVERED, State.DONE),
}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("happening", list(Happening))
def test_lifecycle_allows_what_is_drawn_and_nothing_else(state: State, happening: Happening) -> None:
    """Every pair of the table."""
    targets = [target for s, h, target in ALLOWED if (s, h) == (state, happening)]
    if targets:
        assert lifecycle.after(state, happening) is targets[0]
        assert state in lifecycle.sources(happening)
    else:
        with pytest.raises(IllegalTransition, match=f"{happening} cannot happen to a request that is {state}"):
            lifecycle.after(state, happening)
        assert state not in lifecycle.sources(happening)


def test_lifecycle_ends_are_final_and_everything_else_can_end() -> None:
    """A request is never stuck, and never ends twice by itself: only somebody at the board can have it tried again."""
    assert {s for s, row in TRANSITIONS.items() if not set(row) - {Happening.REQUEUE}} == ENDED
    assert Happening.REQUEUE not in TRANSITIONS[State.DONE]
    assert Happening.REQUEUE not in TRANSITIONS[State.CANCELLED]
    for start in State:
        reached, edge = {start}, {start}
        while edge:
            edge = {t for s in edge for t in TRANSITIONS[s].values()} - reached
            reached |= edge
        assert reached & ENDED


def test_lifecycle_every_status_ends_an_unfinished_request() -> None:
    """Whatever the outcome, it can be stored; while it only waits, all but an answer."""
    for status in Status:
        assert lifecycle.after(State.RUNNING, ENDING[status]) not in UNFINISHED
        if status is not Status.DONE:
            assert lifecycle.after(State.RECEIVED, ENDING[status]) in ENDED


def test_lifecycle_random_walks_give_one_outcome() -> None:
    """However things happen, a request gets exactly one outcome and keeps it."""
    chance = random.Random(7)
    by_itself = [happening for happening in Happening if happening is not Happening.REQUEUE]
    for _ in range(300):
        state, outcomes = State.RECEIVED, 0
        for _ in range(60):
            try:
                following = lifecycle.after(state, chance.choice(by_itself))
            except IllegalTransition:
                continue
            outcomes += state in UNFINISHED and following not in UNFINISHED
            state = following
        assert outcomes == 1
        assert state in ENDED | {State.ANSWERED}
