"""When the upstreams' mind takes a request: only as the router has decided, and only while that still holds."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edged.agent.loop import Declined, Run
from edged.agent.minds.base import Resources
from edged.agent.minds.cloud import CloudMind
from edged.agent.router import Decision, Go, Reason
from edged.config import Agent, Upstream
from edged.types import Message, Request, UpstreamFacts

THERE = Decision(Go.CLOUD, Reason.CLOUD_ASKED, "far", may_leave=True)


class Links:
    """Stands for the cloud: what is known of its one upstream."""

    def __init__(self, **facts: bool) -> None:
        self._facts = facts

    def facts(self, names: Collection[str]) -> tuple[UpstreamFacts, ...]:
        """See Cloud."""
        return tuple(UpstreamFacts(name, **self._facts) for name in names)


def begun(decision: Decision, **facts: bool) -> Any:
    """What it does about a request."""
    far = Upstream(base_url="http://far/v1", model="large")
    resources = Resources(
        config=cast("Any", SimpleNamespace(upstreams={"far": far})), tools={}, cloud=cast("Any", Links(**facts)),
        engine=cast("Any", None), served=cast("Any", None), speak=cast("Any", None),
    )  # fmt: skip
    run = Run(
        "r1", Agent(model="m"), Request(agent="a", messages=(Message("user", "hi"),)), toolbox=cast("Any", None),
        journal=cast("Any", None), history=(), steps=(), stream=None,
    )  # fmt: skip
    return CloudMind(resources).begin(run, decision)


def test_it_takes_what_goes_to_an_upstream_and_nothing_else() -> None:
    """The reply names the upstream and the reason of the router."""
    route = begun(THERE).route
    assert (route.where, route.model, route.upstream, route.reason) == ("cloud", "large", "far", "cloud_asked")
    for go in (Go.LOCAL, Go.WAIT, Go.FAIL):
        assert begun(Decision(go, Reason.LOCAL_OK)) is None


@pytest.mark.parametrize("facts", [{"up": False}, {"room": False}, {"budget_left": False}])
def test_it_declines_where_the_decision_has_become_old(facts: dict[str, bool]) -> None:
    """Some time may have passed since: the router decides again."""
    with pytest.raises(Declined):
        begun(THERE, **facts)


def test_it_declines_what_may_not_leave() -> None:
    """Whatever was decided before; a configuration may have changed."""
    with pytest.raises(Declined):
        begun(Decision(Go.CLOUD, Reason.CLOUD_ASKED, "far"))
