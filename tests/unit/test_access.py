"""Who may use which agent."""

from __future__ import annotations

import pytest

from edged import access
from edged.access import Policy
from edged.errors import Forbidden
from edged.types import Caller


@pytest.mark.parametrize(
    ("uid", "groups", "allowed"),
    [
        (0, [], True),
        (900, [], True),
        (1000, [50], True),
        (1000, [7, 50, 8], True),
        (1000, [7], False),
        (1000, [], False),
        (50, [900], False),
    ],
    ids=["root", "own-user", "primary-group", "other-group", "no-member", "no-groups", "numbers-swapped"],
)
def test_unix_caller_may_use_every_agent_or_none(uid: int, groups: list[int], allowed: bool) -> None:
    """Root, the daemon's own user and the socket's group; nobody else."""
    caller = Policy(["house", "car"]).unix(uid, groups, own_uid=900, socket_group=50)
    assert caller.agents == (frozenset({"house", "car"}) if allowed else frozenset())
    assert (caller.client, caller.transport, caller.admitted) == (f"unix:{uid}", "unix", allowed)


def test_check_lets_through_what_was_decided_and_refuses_the_rest() -> None:
    """The refusal names caller and agent."""
    caller = Caller("unix:7", "unix", frozenset({"house"}))
    access.check(caller, "house")
    with pytest.raises(Forbidden, match=r"unix:7.*'car'"):
        access.check(caller, "car")
