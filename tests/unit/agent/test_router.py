"""Where a request is answered, as a table. The numbers are those of router.decide."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from edged.agent import router
from edged.agent.router import CHARS_PER_TOKEN, Decision, Facts, Go, Reason
from edged.errors import BadRequest
from edged.types import Finding, Offline, Preference, Privacy, UpstreamFacts

AUTO, LOCAL, CLOUD = Preference.AUTO, Preference.LOCAL, Preference.CLOUD
WAIT, HERE, FAIL = Offline.WAIT, Offline.LOCAL, Offline.FAIL
UP = UpstreamFacts("first")
DOWN = UpstreamFacts("first", up=False)
FULL = UpstreamFacts("first", room=False)
SPENT = UpstreamFacts("first", budget_left=False)
SECOND = UpstreamFacts("second")


def facts(asked: Preference | None = None, configured: Preference = AUTO, **more: Any) -> Facts:
    """Of an agent that may use the cloud, with one upstream that is up."""
    return Facts(asked=asked, configured=configured, **{"privacy": Privacy.ANY, "upstreams": (UP,), **more})


@pytest.mark.parametrize(
    ("asked", "configured", "decision"),
    [
        (None, AUTO, Decision(Go.LOCAL, Reason.LOCAL_OK)),
        (None, LOCAL, Decision(Go.LOCAL, Reason.LOCAL_ASKED)),
        (None, CLOUD, Decision(Go.CLOUD, Reason.CLOUD_ASKED, "first")),
        (AUTO, AUTO, Decision(Go.LOCAL, Reason.LOCAL_OK)),
        (AUTO, LOCAL, Decision(Go.LOCAL, Reason.LOCAL_OK)),
        (AUTO, CLOUD, Decision(Go.LOCAL, Reason.LOCAL_OK)),
        (LOCAL, AUTO, Decision(Go.LOCAL, Reason.LOCAL_ASKED)),
        (LOCAL, LOCAL, Decision(Go.LOCAL, Reason.LOCAL_ASKED)),
        (LOCAL, CLOUD, Decision(Go.LOCAL, Reason.LOCAL_ASKED)),
        (CLOUD, AUTO, Decision(Go.CLOUD, Reason.CLOUD_ASKED, "first")),
        (CLOUD, LOCAL, Decision(Go.CLOUD, Reason.CLOUD_ASKED, "first")),
    ],
)
def test_decide_puts_what_is_asked_before_what_is_configured(
    asked: Preference | None, configured: Preference, decision: Decision
) -> None:
    """(2) (3) (5): the reason says whether somebody wanted it so."""
    assert router.decide(facts(asked, configured)) == decision


def nowhere(finding: Finding) -> Decision:
    """Of a request that nobody else may get."""
    return Decision(Go.LOCAL if finding is Finding.UNSURE else Go.FAIL, router.REASONS[finding])


def test_decide_asks_about_an_unsure_call_that_no_budget_is_left_for() -> None:
    """(8): a question costs nothing. Where the agent says "fail" it fails."""
    spent: dict[str, Any] = {"upstreams": (SPENT,), "findings": (Finding.UNSURE,)}
    assert router.decide(facts(**spent)) == Decision(Go.LOCAL, Reason.UNSURE)
    assert router.decide(facts(**spent, when_offline=FAIL)) == Decision(Go.FAIL, Reason.OVER_BUDGET)
    assert router.decide(facts(upstreams=(SPENT,), findings=(Finding.ESCALATED,))).go is Go.FAIL


@pytest.mark.parametrize("finding", list(Finding))
@pytest.mark.parametrize("offline", list(Offline))
@pytest.mark.parametrize("upstreams", [(), (UP,), (DOWN,), (SPENT,)], ids=["none", "up", "down", "spent"])
def test_decide_private_never_leaves_whatever_happened(
    finding: Finding, offline: Offline, upstreams: tuple[UpstreamFacts, ...]
) -> None:
    """(1): here, and after a failed attempt not at all; about an unsure call edged asks."""
    private: dict[str, Any] = {"privacy": Privacy.DEVICE, "when_offline": offline, "upstreams": upstreams}
    assert router.decide(facts(**private)) == Decision(Go.LOCAL, Reason.LOCAL_OK)
    assert router.decide(facts(LOCAL, **private)) == Decision(Go.LOCAL, Reason.LOCAL_ASKED)
    assert router.decide(facts(None, CLOUD, **private)) == Decision(Go.LOCAL, Reason.PRIVATE)
    assert router.decide(facts(**private, chars=10**6, context=256)) == Decision(Go.LOCAL, Reason.PRIVATE)
    assert router.decide(facts(**private, findings=(finding,))) == nowhere(finding)
    assert not router.may_leave(facts(**private))


@pytest.mark.parametrize(
    ("more", "decision"),
    [
        ({}, Decision(Go.CLOUD, Reason.PRESSURE, "first")),
        ({"upstreams": (DOWN, SECOND)}, Decision(Go.CLOUD, Reason.PRESSURE, "second")),
        ({"upstreams": (FULL,)}, Decision(Go.WAIT, Reason.PRESSURE)),
        ({"upstreams": (DOWN,)}, Decision(Go.LOCAL, Reason.LOCAL_OK)),
        ({"upstreams": (DOWN,), "when_offline": FAIL}, Decision(Go.LOCAL, Reason.LOCAL_OK)),
        ({"upstreams": (SPENT,)}, Decision(Go.LOCAL, Reason.LOCAL_OK)),
        ({"upstreams": ()}, Decision(Go.LOCAL, Reason.LOCAL_OK)),
        ({"privacy": Privacy.DEVICE}, Decision(Go.LOCAL, Reason.PRIVATE)),
        ({"asked": LOCAL}, Decision(Go.LOCAL, Reason.LOCAL_ASKED)),
        ({"asked": CLOUD}, Decision(Go.CLOUD, Reason.CLOUD_ASKED, "first")),
        ({"findings": (Finding.FAILED,), "upstreams": (DOWN,)}, Decision(Go.WAIT, Reason.LOCAL_FAILED)),
    ],
)
def test_decide_under_pressure_leaves_to_an_upstream_what_it_can_do_now(
    more: dict[str, Any], decision: Decision
) -> None:
    """(5) (6) (7): what it cannot is done here, if it was accepted; nothing waits for a link because of it."""
    assert router.decide(facts(more.pop("asked", None), pressed=True, **more)) == decision


@pytest.mark.parametrize("finding", list(Finding))
def test_decide_local_asked_is_not_escalated(finding: Finding) -> None:
    """(2): who asks for the board gets the board, or the reason why it could not."""
    assert router.decide(facts(LOCAL, findings=(finding,))) == nowhere(finding)
    assert not router.may_leave(facts(LOCAL))


@pytest.mark.parametrize(
    ("finding", "reason"),
    [
        (Finding.CONTEXT, Reason.CONTEXT),
        (Finding.ESCALATED, Reason.ESCALATED),
        (Finding.UNSURE, Reason.UNSURE),
        (Finding.FAILED, Reason.LOCAL_FAILED),
        (Finding.UNAVAILABLE, Reason.NO_LOCAL_MODEL),
    ],
)
def test_decide_finding_goes_to_the_cloud_under_its_own_reason(finding: Finding, reason: Reason) -> None:
    """(5) after an attempt here; (4) fails where there is no cloud, (6) waits where it has no room."""
    assert router.decide(facts(findings=(finding,))) == Decision(Go.CLOUD, reason, "first")
    assert router.decide(facts(findings=(finding,), upstreams=())) == nowhere(finding)
    assert nowhere(finding).reason is reason
    assert router.decide(facts(findings=(finding,), upstreams=(FULL,))) == Decision(Go.WAIT, reason)
    assert router.decide(facts(findings=(finding,), upstreams=(DOWN,))) == Decision(Go.WAIT, reason)


@pytest.mark.parametrize("finding", [None, Finding.ESCALATED, Finding.UNSURE])
@pytest.mark.parametrize(("upstream", "reason"), [(DOWN, Reason.OFFLINE), (SPENT, Reason.OVER_BUDGET)])
def test_decide_falls_back_to_the_board_where_the_agent_says_so(
    finding: Finding | None, upstream: UpstreamFacts, reason: Reason
) -> None:
    """(8) (9): degraded, and only where another local attempt can end otherwise."""
    found = (finding,) if finding else ()
    asked = CLOUD if finding is None else AUTO
    here = facts(asked, upstreams=(upstream,), when_offline=HERE, findings=found)
    assert router.decide(here) == Decision(Go.LOCAL, reason, degraded=True)
    assert router.decide(facts(asked, upstreams=(upstream,), when_offline=FAIL, findings=found)) == Decision(
        Go.FAIL, reason
    )


@pytest.mark.parametrize("finding", [Finding.CONTEXT, Finding.FAILED, Finding.UNAVAILABLE])
def test_decide_does_not_repeat_a_local_attempt_that_cannot_work(finding: Finding) -> None:
    """(9): falling back to what failed already would go round in circles."""
    offline = facts(upstreams=(DOWN,), when_offline=HERE, findings=(Finding.ESCALATED, finding))
    assert router.decide(offline) == Decision(Go.FAIL, Reason.OFFLINE)


def test_decide_over_budget_does_not_wait_for_tomorrow() -> None:
    """(8): waiting is for a link; a spent budget is told at once, with when to ask again."""
    assert router.decide(facts(CLOUD, upstreams=(SPENT,))) == Decision(Go.FAIL, Reason.OVER_BUDGET)


@pytest.mark.parametrize(
    ("upstreams", "decision"),
    [
        ((UP, SECOND), Decision(Go.CLOUD, Reason.CLOUD_ASKED, "first")),
        ((DOWN, SECOND), Decision(Go.CLOUD, Reason.CLOUD_ASKED, "second")),
        ((SPENT, SECOND), Decision(Go.CLOUD, Reason.CLOUD_ASKED, "second")),
        ((FULL, SECOND), Decision(Go.CLOUD, Reason.CLOUD_ASKED, "second")),
        ((FULL, DOWN), Decision(Go.WAIT, Reason.CLOUD_ASKED)),
        ((DOWN, SPENT), Decision(Go.FAIL, Reason.OVER_BUDGET)),
    ],
)
def test_decide_takes_the_first_upstream_that_can(upstreams: tuple[UpstreamFacts, ...], decision: Decision) -> None:
    """(5) (6) (8): in the order of the file."""
    assert router.decide(facts(CLOUD, upstreams=upstreams)) == decision


def test_decide_knows_what_cannot_fit() -> None:
    """(3) (4): a prompt that cannot fit goes straight to the cloud; where there is none, the engine counts."""
    long: dict[str, Any] = {"chars": 256 * CHARS_PER_TOKEN + 1, "context": 256}
    assert router.decide(facts(**long)) == Decision(Go.CLOUD, Reason.CONTEXT, "first")
    assert router.decide(facts(**long, upstreams=())) == Decision(Go.LOCAL, Reason.LOCAL_OK)
    assert router.decide(facts(chars=256 * CHARS_PER_TOKEN, context=256)).go is Go.LOCAL


@pytest.mark.parametrize(
    ("more", "match"),
    [({"privacy": Privacy.DEVICE}, "contradicts privacy 'device'"), ({"upstreams": ()}, "no upstream is configured")],
)
def test_decide_refuses_a_cloud_that_can_never_be(more: dict[str, Any], match: str) -> None:
    """(1) (4): insisting on the cloud is never quietly answered here."""
    with pytest.raises(BadRequest, match=match):
        router.decide(facts(CLOUD, **more))


def test_stricter_privacy_wins() -> None:
    """Neither the agent nor the request can loosen what the other says."""
    assert router.stricter(Privacy.ANY, None) is Privacy.ANY
    assert router.stricter(Privacy.ANY, Privacy.DEVICE) is Privacy.DEVICE
    assert router.stricter(Privacy.DEVICE, Privacy.ANY) is Privacy.DEVICE


@pytest.mark.parametrize("go", list(Go))
@pytest.mark.parametrize("upstream", [None, "far", "two words"])
def test_decision_is_kept_in_words(go: Go, upstream: str | None) -> None:
    """Where and why; what it permits is not kept."""
    for reason in Reason:
        for degraded in (False, True):
            decision = Decision(go, reason, upstream, degraded)
            kept = structs.replace(decision, served=True, may_leave=True)
            assert router.from_words(router.in_words(kept)) == decision


@pytest.mark.parametrize("words", ["", "local", "local none_such 0", "nowhere local_ok 0 x"])
def test_words_of_another_edged_are_no_decision(words: str) -> None:
    """It is made again."""
    assert router.from_words(words) is None
