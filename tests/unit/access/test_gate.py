"""The gate: rates, and what the audit log hears."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from edged.access.gate import KEPT, NOISE, Buckets, Gate
from edged.access.policy import Policy
from edged.config.roles import Access, Role
from edged.errors import BadRequest, Busy, Forbidden
from edged.types import AuditEntry, Caller, Rate


class Clock:
    """A monotonic clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def test_bucket_gives_a_burst_and_then_its_rate() -> None:
    """The wait it tells is the wait there is; more than a burst is never saved up."""
    clock, rate = Clock(), Rate(30.0, 3)
    buckets = Buckets(clock)
    assert [buckets.take("a", rate) for _ in range(4)] == [None, None, None, 2.0]
    clock.now += 1.0
    assert buckets.take("a", rate) == pytest.approx(1.0)
    clock.now += 1.0
    assert buckets.take("a", rate) is None
    assert buckets.take("b", rate) is None
    clock.now += 3600
    assert [buckets.take("a", rate) is None for _ in range(4)] == [True, True, True, False]


def test_token_that_was_given_back_is_there_again_and_not_twice() -> None:
    """A bucket is never fuller than a burst."""
    buckets, rate = Buckets(Clock()), Rate(1.0, 1)
    assert buckets.take("a", rate) is None
    buckets.give_back("a", rate)
    buckets.give_back("a", rate)
    assert buckets.take("a", rate) is None
    assert buckets.take("a", rate) == 60.0


def test_buckets_that_are_full_again_are_forgotten() -> None:
    """Clients come and go without end; those that have to wait are kept."""
    clock, rate = Clock(), Rate(60.0, 1)
    buckets = Buckets(clock)
    for n in range(KEPT):
        buckets.take(str(n), rate)
    clock.now += 0.5
    buckets.take("new", rate)
    assert len(buckets) == KEPT + 1
    clock.now += 0.5
    buckets.take("newer", rate)
    assert len(buckets) == 2


@pytest.fixture
def told() -> list[AuditEntry]:
    """What the audit log heard."""
    return []


@pytest.fixture
def gate(told: list[AuditEntry]) -> Gate:
    """With a role that may do little."""
    role = Role(agents=("house",), tools=("level",), requests_per_minute=1.0)
    policy = Policy(["house"], {"viewer": role}, Access(api_key={"panel": "viewer"}))
    return Gate(policy, audit=told.append, now=Clock())


@pytest.fixture
def viewer(gate: Gate) -> Caller:
    """Somebody of that role."""
    return gate.policy.key("panel")


def test_every_refusal_is_told_to_the_audit_log(gate: Gate, viewer: Caller, told: list[AuditEntry]) -> None:
    """Who, by which role, what, and why."""
    refusals: tuple[Callable[[], None], ...] = (
        lambda: gate.ask(viewer, "car", None),
        lambda: gate.tool(viewer, "valve", "r1"),
        lambda: gate.model(viewer, "small"),
        lambda: gate.manage(viewer, "load models", model="small"),
        lambda: gate.enter(gate.policy.key("other"), ""),
    )
    for refuse in refusals:
        with pytest.raises(Forbidden) as caught:
            refuse()
        assert (told[-1].outcome, told[-1].about["reason"]) == ("forbidden", caught.value.message)
    what = ["request.refused", "tool.refused", "completion.refused", "manage.refused", "access.refused"]
    assert [entry.what for entry in told] == what
    assert {(entry.who, entry.role) for entry in told[:4]} == {("key:panel", "viewer")}
    assert (told[4].who, told[4].role) == ("key:other", "")
    assert (told[1].rid, told[1].about["tool"]) == ("r1", "valve")


@pytest.mark.parametrize(
    ("ends_with", "outcome"),
    [
        (None, "ok"),
        (Busy("later"), "busy"),
        (ZeroDivisionError(), "internal"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_act_is_told_when_it_is_over_with_its_outcome(
    told: list[AuditEntry], ends_with: BaseException | None, outcome: str
) -> None:
    """Also where its caller has left, or a bug has ended it; the error goes on."""
    gate = Gate(Policy(["house"]), audit=told.append)
    caller = gate.policy.key("panel")
    for managing in (False, True):
        told.clear()
        with contextlib.suppress(Busy, ZeroDivisionError, asyncio.CancelledError):
            act = gate.managing(caller, "load models", model="m") if managing else gate.acting(caller, "tool.called")
            with act:
                assert not told
                if ends_with is not None:
                    raise ends_with
            assert ends_with is None
        what = "tool.called" if not managing else "manage.done" if outcome == "ok" else "manage.failed"
        assert [(entry.what, entry.outcome, entry.who) for entry in told] == [(what, outcome, "key:panel")]


def test_act_that_may_not_be_done_is_told_as_refused_and_not_begun(
    gate: Gate, viewer: Caller, told: list[AuditEntry]
) -> None:
    """One entry, with the reason."""
    with pytest.raises(Forbidden), gate.managing(viewer, "load models"):
        pytest.fail("it was begun")
    assert [(entry.what, entry.outcome) for entry in told] == [("manage.refused", "forbidden")]


def test_what_is_allowed_is_not_told(gate: Gate, viewer: Caller, told: list[AuditEntry]) -> None:
    """The audit log has entries of its own for what was done."""
    gate.enter(viewer, "")
    gate.ask(viewer, "house", None)
    gate.tool(viewer, "level")
    gate.spend(viewer, "request.refused")
    assert not told


def test_rate_is_refused_as_busy_with_the_time_to_wait(gate: Gate, viewer: Caller, told: list[AuditEntry]) -> None:
    """And is the client's, not the role's."""
    gate.spend(viewer, "request.refused")
    with pytest.raises(Busy) as caught:
        gate.spend(viewer, "request.refused")
    assert caught.value.retryable
    assert caught.value.retry_after_s == pytest.approx(60, abs=0.2)
    assert (told[-1].what, told[-1].outcome, told[-1].who) == ("request.refused", "busy", "key:panel")
    for _ in range(3):
        gate.spend(Policy(["house"]).key("free"), "request.refused")


def test_refusal_that_nobody_told_is_told_once(gate: Gate, viewer: Caller, told: list[AuditEntry]) -> None:
    """What is no request, by code; not what the gate has told, and not what is no refusal."""
    gate.unread(viewer, BadRequest("no JSON" + "x" * 1000))
    assert (told[-1].what, told[-1].who, told[-1].outcome) == ("request.refused", "key:panel", "bad_request")
    assert str(told[-1].about["reason"]).startswith("no JSON")
    assert len(str(told[-1].about["reason"])) < 400
    with pytest.raises(Forbidden) as caught:
        gate.tool(viewer, "valve")
    gate.unread(viewer, caught.value)
    gate.unread(viewer, Busy("later"))
    assert [entry.what for entry in told] == ["request.refused", "tool.refused"]


def test_noise_of_one_is_counted_and_hides_nobody_else(gate: Gate, viewer: Caller, told: list[AuditEntry]) -> None:
    """Strangers, and what nobody can read: so many entries, then a number."""
    for _ in range(500):
        gate.stranger("192.0.2.1", Forbidden("no key"))
    for _ in range(500):
        gate.unread(viewer, BadRequest("no JSON"))
    assert [entry.who for entry in told].count("192.0.2.1") == NOISE.burst
    assert [entry.who for entry in told].count("key:panel") == NOISE.burst
    assert sum(int(str(entry.about.get("left_out", 0))) for entry in told) == 500 - NOISE.burst


def test_noise_over_mqtt_is_one_whatever_topics_it_names(gate: Gate, told: list[AuditEntry]) -> None:
    """Each message may name a Response Topic and an agent of its own; readable or not, admitted or not."""
    for n in range(200):
        gate.unread(Caller(f"mqtt:reply/{n}", "mqtt", frozenset({"house"})), BadRequest("no JSON"))
        with pytest.raises(Forbidden):
            gate.enter(gate.policy.mqtt(f"mqtt:reply/{n}", f"edged/n1/agents/{n}/request"), "")
    assert len(told) == NOISE.burst
