"""The life of a request, as a table. Everything that decides a change of state is in this file; nothing here does I/O.

    RECEIVED -claim-> RUNNING -answer-> ANSWERED -delivered-> DONE
    RUNNING -release-> RECEIVED    the daemon stopped, or died and came back
    RUNNING -park-> WAITING_LINK -resume-> RECEIVED    it needs the cloud, and no upstream takes it now
    RECEIVED, RUNNING, WAITING_LINK -fail | expire | cancel-> FAILED | EXPIRED | CANCELLED
    RECEIVED, RUNNING -quarantine-> QUARANTINED    it killed the daemon too often
    FAILED, EXPIRED, QUARANTINED -requeue-> RECEIVED    somebody at the board wants it tried again

The SQL that moves a row names the state it expects and checks the row count, so an event that comes too late changes
nothing and says so.
"""

from __future__ import annotations

from enum import StrEnum

from edged.types import Status


class State(StrEnum):
    """Where a request is."""

    RECEIVED = "received"  #: stored, waits for a worker
    RUNNING = "running"  #: a worker has it
    WAITING_LINK = "waiting_link"  #: stored, waits for an upstream
    ANSWERED = "answered"  #: the answer is stored, somebody has yet to get it
    DONE = "done"  #: answered, and delivered where somebody was to get it
    FAILED = "failed"  #: ended with an error
    EXPIRED = "expired"  #: its deadline passed first
    CANCELLED = "cancelled"  #: somebody ended it
    QUARANTINED = "quarantined"  #: it killed the daemon too often


class Happening(StrEnum):
    """What can happen to a request."""

    CLAIM = "claim"
    RELEASE = "release"
    PARK = "park"
    RESUME = "resume"
    ANSWER = "answer"
    DELIVERED = "delivered"
    FAIL = "fail"
    EXPIRE = "expire"
    CANCEL = "cancel"
    QUARANTINE = "quarantine"
    REQUEUE = "requeue"


TRANSITIONS: dict[State, dict[Happening, State]] = {
    State.RECEIVED: {
        Happening.CLAIM: State.RUNNING,
        Happening.FAIL: State.FAILED,
        Happening.EXPIRE: State.EXPIRED,
        Happening.CANCEL: State.CANCELLED,
        Happening.QUARANTINE: State.QUARANTINED,
    },
    State.RUNNING: {
        Happening.RELEASE: State.RECEIVED,
        Happening.PARK: State.WAITING_LINK,
        Happening.ANSWER: State.ANSWERED,
        Happening.FAIL: State.FAILED,
        Happening.EXPIRE: State.EXPIRED,
        Happening.CANCEL: State.CANCELLED,
        Happening.QUARANTINE: State.QUARANTINED,
    },
    State.WAITING_LINK: {
        Happening.RESUME: State.RECEIVED,
        Happening.FAIL: State.FAILED,
        Happening.EXPIRE: State.EXPIRED,
        Happening.CANCEL: State.CANCELLED,
    },
    State.ANSWERED: {Happening.DELIVERED: State.DONE},
    State.DONE: {},
    State.FAILED: {Happening.REQUEUE: State.RECEIVED},
    State.EXPIRED: {Happening.REQUEUE: State.RECEIVED},
    State.CANCELLED: {},
    State.QUARANTINED: {Happening.REQUEUE: State.RECEIVED},
}

WAITING = (State.RECEIVED, State.WAITING_LINK)
UNFINISHED = (*WAITING, State.RUNNING)

ENDING: dict[Status, Happening] = {
    Status.DONE: Happening.ANSWER,
    Status.FAILED: Happening.FAIL,
    Status.EXPIRED: Happening.EXPIRE,
    Status.CANCELLED: Happening.CANCEL,
    Status.REFUSED: Happening.FAIL,
}


class IllegalTransition(Exception):
    """The row is not in a state in which this can happen."""

    def __init__(self, state: State, happening: Happening) -> None:
        super().__init__(f"{happening} cannot happen to a request that is {state}")


def after(state: State, happening: Happening) -> State:
    """The state that follows; IllegalTransition where none does."""
    try:
        return TRANSITIONS[state][happening]
    except KeyError:
        raise IllegalTransition(state, happening) from None


def sources(happening: Happening) -> tuple[State, ...]:
    """The states in which it can happen."""
    return tuple(state for state, row in TRANSITIONS.items() if happening in row)
