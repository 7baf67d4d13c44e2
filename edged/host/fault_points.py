"""Named points at which a test may kill the process (the idea is dbos' debug triggers). Without a test they do nothing.

Every point lies where something just became true that a crash must not undo, or where it nearly did.
"""

from __future__ import annotations

from collections.abc import Callable

POINTS = (
    "accept.before",  # a request is decoded, nothing of it is stored
    "accept.committed",  # it is stored, the transport does not know yet (no PUBACK was sent)
    "work.claimed",  # a worker has it
    "agent.decided",  # the model chose a call, the journal does not know
    "journal.intent",  # the call is in the journal, nothing was done
    "tool.effect",  # the effect is committed in the tool's database, the journal does not know
    "journal.result",  # the journal knows
    "link.parked",  # it waits for a link, durably, and nothing has been told
    "agent.answered",  # the answer exists in memory only
    "settle.committed",  # the answer is stored, nothing was sent
    "deliver.confirmed",  # the broker has the reply, the store does not know
    "deliver.marked",  # the store knows
    "update.pulled",  # the new file of a model is here and whole, nothing was asked of it
    "update.tested",  # it passed its self-test, the old one is in force
    "update.recorded",  # it is written down as the one in force, the old one still answers
    "update.switched",  # it answers, nobody was told
)

_armed: dict[str, Callable[[], None]] = {}


def arm(name: str, action: Callable[[], None]) -> None:
    """Run `action` whenever the point is passed; ValueError for a point that does not exist."""
    if name not in POINTS:
        raise ValueError(f"no fault point {name!r}; there are {', '.join(POINTS)}")
    _armed[name] = action


def point(name: str) -> None:
    """Pass a point."""
    if _armed and (action := _armed.get(name)):
        action()
