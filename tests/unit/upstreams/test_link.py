"""The link to an upstream, as a table over the numbered cases of link.ended and as random walks."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from msgspec.structs import replace

from edged.upstreams import link
from edged.upstreams.link import Link, LinkState, ProbeTiming, Seen, Sign

PACE = ProbeTiming()
UNKNOWN, UP, DOWN = LinkState.UNKNOWN, LinkState.UP, LinkState.DOWN
NOW = 1000.0
MIDDLE = 0.5  # the chance with which a delay is what it is called


def a_link(state: LinkState = UP, **more: Any) -> Link:
    """One request is with it, unless it is down."""
    flying = 0 if state is DOWN else 1
    return Link(**{"since": 0.0, "probe_at": 500.0, "state": state, "in_flight": flying, **more})


def chat(sign: Sign, pause_s: float | None = None) -> Seen:
    return Seen(sign=sign, reason="" if sign is Sign.GOOD else "why", pause_s=pause_s)


def probe(sign: Sign, pause_s: float | None = None) -> Seen:
    return replace(chat(sign, pause_s), probe=True)


def after(before: Link, seen: Seen, *, era: int | None = None) -> Link:
    return link.ended(before, before.era if era is None else era, seen, NOW, MIDDLE, PACE)


GOOD, WEAK, STRONG, REFUSED, BUSY = Sign.GOOD, Sign.WEAK, Sign.STRONG, Sign.REFUSED, Sign.BUSY


@pytest.mark.parametrize(
    ("before", "seen", "changes"),
    [
        pytest.param(
            a_link(UNKNOWN), chat(GOOD), {"state": UP, "since": NOW, "window": 2, "probe_at": NOW + 60}, id="2-first"
        ),
        pytest.param(
            a_link(UP, weak=2, downs=4, reason="x", window=8),
            chat(GOOD),
            {"weak": 0, "downs": 0, "reason": "", "window": 8, "probe_at": NOW + 60},
            id="2-all-doubts-go-and-the-window-ends",
        ),
        pytest.param(
            a_link(UNKNOWN, in_flight=0), probe(GOOD), {"state": UP, "since": NOW, "probe_at": NOW + 60}, id="3-first"
        ),
        pytest.param(
            a_link(UP, in_flight=0, weak=2, downs=3, reason="x", window=4),
            probe(GOOD),
            {"weak": 0, "downs": 0, "reason": "", "window": 4, "probe_at": NOW + 60},
            id="3-well-again",
        ),
        pytest.param(
            a_link(DOWN, downs=3, reason="x"),
            probe(GOOD),
            {"state": UP, "since": NOW, "reason": "", "weak": 2, "downs": 3, "window": 1, "probe_at": NOW + 60},
            id="4-on-probation",
        ),
        pytest.param(
            a_link(UP, window=8),
            chat(BUSY, 30.0),
            {"reason": "why", "paused_until": NOW + 30, "window": 4, "probe_at": NOW + 90},
            id="5-pause-asked-for",
        ),
        pytest.param(
            a_link(UP),
            chat(BUSY, 0.0),
            {"reason": "why", "paused_until": NOW + 1, "probe_at": NOW + 61},
            id="5-pause-of-nothing-is-a-second",
        ),
        pytest.param(
            a_link(UNKNOWN),
            chat(BUSY, 1e9),
            {"reason": "why", "paused_until": NOW + 900, "probe_at": NOW + 960},
            id="5-endless-pause-is-a-quarter-of-an-hour",
        ),
        pytest.param(
            a_link(UP, downs=2),
            chat(BUSY),
            {"reason": "why", "downs": 3, "paused_until": NOW + 4, "probe_at": NOW + 64},
            id="5-no-pause-named-backs-off",
        ),
        pytest.param(
            a_link(UP, paused_until=NOW + 100),
            chat(BUSY, 5.0),
            {"reason": "why", "paused_until": NOW + 100, "probe_at": NOW + 160},
            id="5-a-shorter-pause-does-not-shorten",
        ),
        pytest.param(
            a_link(DOWN, downs=2, reason="x"),
            probe(BUSY, 30.0),
            {"reason": "why", "paused_until": NOW + 30, "probe_at": NOW + 30},
            id="6-stays-down-probe-waits",
        ),
        pytest.param(
            a_link(UP, window=6),
            chat(WEAK),
            {"reason": "why", "weak": 1, "window": 3, "probe_at": NOW + 60},
            id="7-first-weak",
        ),
        pytest.param(
            a_link(UP, in_flight=0, weak=1),
            probe(WEAK),
            {"reason": "why", "weak": 2, "probe_at": NOW + 2},
            id="7-weak-probe-again-soon",
        ),
        pytest.param(
            a_link(UP, weak=2, window=6),
            chat(WEAK),
            {
                "state": DOWN, "since": NOW, "reason": "why", "weak": 0, "downs": 1, "era": 1, "window": 1,
                "in_flight": 0, "probe_at": NOW + 1,
            },
            id="8-third-weak",
        ),
        pytest.param(
            a_link(UNKNOWN, in_flight=3, window=4),
            chat(STRONG),
            {
                "state": DOWN, "since": NOW, "reason": "why", "downs": 1, "era": 1, "window": 1, "in_flight": 0,
                "probe_at": NOW + 1,
            },
            id="8-strong-at-once",
        ),
        pytest.param(
            a_link(UP, weak=2, downs=3),
            chat(WEAK),
            {
                "state": DOWN, "since": NOW, "reason": "why", "weak": 0, "downs": 4, "era": 1, "in_flight": 0,
                "probe_at": NOW + 8,
            },
            id="8-probation-failed-backoff-goes-on",
        ),
        pytest.param(
            a_link(UP, paused_until=NOW + 50),
            chat(STRONG),
            {
                "state": DOWN, "since": NOW, "reason": "why", "downs": 1, "era": 1, "in_flight": 0,
                "probe_at": NOW + 50,
            },
            id="8-probe-keeps-the-pause",
        ),
        pytest.param(
            a_link(UP),
            chat(REFUSED),
            {
                "state": DOWN, "since": NOW, "reason": "why", "downs": 1, "era": 1, "in_flight": 0,
                "probe_at": NOW + 60,
            },
            id="9-refused",
        ),
        pytest.param(
            a_link(DOWN, downs=2, reason="x"),
            probe(REFUSED),
            {"reason": "why", "downs": 3, "probe_at": NOW + 240},
            id="9-refused-while-down",
        ),
        pytest.param(
            a_link(DOWN, downs=2, reason="x"),
            probe(WEAK),
            {"reason": "why", "downs": 3, "probe_at": NOW + 4},
            id="10-probe-failed",
        ),
        pytest.param(
            a_link(DOWN, downs=99),
            probe(STRONG),
            {"reason": "why", "downs": 100, "probe_at": NOW + 180},
            id="10-backoff-has-a-cap",
        ),
    ],
)  # fmt: skip
def test_link_ended_follows_its_numbered_cases(before: Link, seen: Seen, changes: dict[str, Any]) -> None:
    """What an exchange of this era shows; what is not named stays."""
    over = {"probing": False} if seen.probe else {"in_flight": max(0, before.in_flight - 1)}
    before = replace(before, probing=seen.probe)
    assert after(before, seen) == replace(before, **{**over, **changes})


@pytest.mark.parametrize("sign", list(Sign))
@pytest.mark.parametrize("state", list(LinkState))
def test_link_news_from_before_it_went_down_only_hastens_a_probe(state: LinkState, sign: Sign) -> None:
    """(1): a request that hung through an outage must not take the link down that has come back."""
    before = a_link(state, era=3, window=2, probe_at=NOW + 99)
    hastened = replace(before, probe_at=NOW)
    assert after(before, chat(sign), era=2) == (hastened if state is DOWN and sign is GOOD else before)


@pytest.mark.parametrize("era", [0, 1])
def test_link_abandoned_exchange_gives_back_its_place_and_shows_nothing(era: int) -> None:
    """Somebody cancelled: in its own era a place becomes free, in a later one it was free before."""
    before = a_link(UP, era=1, in_flight=2, probing=True)
    assert link.abandoned(before, era) == replace(before, in_flight=2 - (era == 1))
    assert link.abandoned(before, era, probe=True) == replace(before, probing=False)


def test_link_fresh_may_be_tried_and_is_probed_at_once() -> None:
    """Nobody waits for the first probe."""
    new = link.fresh(NOW)
    assert link.usable(new, NOW)
    assert link.places(new, NOW) == 1
    assert link.next_probe(new) == NOW


@pytest.mark.parametrize(
    ("before", "is_usable", "places", "next_probe", "usable_at"),
    [
        (a_link(UP, window=4), True, 3, None, NOW),
        (a_link(UP, in_flight=0), True, 1, 500.0, NOW),
        (a_link(UP, in_flight=0, probing=True), True, 1, None, NOW),
        (a_link(UP, window=1, in_flight=5), True, 0, None, NOW),
        (a_link(UP, window=4, paused_until=NOW + 5), False, 0, None, NOW + 5),
        (a_link(DOWN, probe_at=NOW + 7), False, 0, NOW + 7, NOW + 7),
        (a_link(DOWN, probe_at=NOW + 7, paused_until=NOW + 9), False, 0, NOW + 7, NOW + 9),
        (a_link(DOWN, probe_at=NOW - 1, probing=True), False, 0, None, NOW),
    ],
    ids=["busy", "idle", "probing", "more-than-it-bears", "paused", "down", "down-and-paused", "down-and-probing"],
)
def test_link_says_what_may_go_out(
    before: Link, is_usable: bool, places: int, next_probe: float | None, usable_at: float
) -> None:
    """Requests, probes, and when to ask again."""
    assert link.usable(before, NOW) is is_usable
    assert link.places(before, NOW) == places
    assert link.next_probe(before) == next_probe
    assert link.usable_at(before, NOW) == usable_at


def test_link_probes_get_rarer_and_never_come_in_step() -> None:
    """About 1 s, doubled to a few minutes, a quarter more or less by chance."""
    before = a_link(DOWN)
    waits: list[float] = []
    for _ in range(12):
        early = link.ended(before, 0, probe(STRONG), NOW, 0.0, PACE).probe_at - NOW
        late = link.ended(before, 0, probe(STRONG), NOW, 1.0, PACE).probe_at - NOW
        before = after(before, probe(STRONG))
        waits.append(before.probe_at - NOW)
        assert (early, late) == pytest.approx((waits[-1] * 0.75, waits[-1] * 1.25))
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 180, 180, 180, 180]


def test_link_of_a_server_whose_completions_always_fail_is_tried_ever_more_rarely() -> None:
    """Its list of models works, so each probe brings the link up; without a probation every request would be tried."""
    one, now = link.fresh(0.0), 0.0
    tried: list[float] = []
    while len(tried) < 12:
        if link.usable(one, now):
            tried.append(now)
            one = link.ended(link.begin(one), one.era, chat(WEAK), now, MIDDLE, PACE)
        else:
            now = one.probe_at
            one = link.ended(link.begin_probe(one), one.era, probe(GOOD), now, MIDDLE, PACE)
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert gaps == [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 180]


@pytest.mark.parametrize("seed", range(20))
def test_link_walks_keep_the_invariants(seed: int) -> None:
    """Whatever happens in whatever order: the books balance, nothing is stuck, and only evidence changes the state."""
    chance = random.Random(seed)
    one, now = link.fresh(0.0), 0.0
    flying: list[int] = []
    probes: list[int] = []
    signs = chance.choices(list(Sign), k=3)  # a world of its own for each walk
    for _ in range(3000):
        now += chance.choice([0.0, 0.1, 1.0, 30.0, 400.0])
        before, seen, fresh_news = one, None, False
        what = chance.choice(["chat", "chat", "probe", "end", "end", "end-probe", "abandon"])
        if what == "chat" and link.places(one, now):
            flying.append(one.era)
            one = link.begin(one)
        elif what == "probe" and (due := link.next_probe(one)) is not None and due <= now:
            probes.append(one.era)
            one = link.begin_probe(one)
        elif what == "abandon" and flying:
            one = link.abandoned(one, flying.pop(chance.randrange(len(flying))))
        elif (what == "end" and flying) or (what == "end-probe" and probes):
            is_probe = what == "end-probe"
            pause = chance.choice([None, 0.0, 5.0, 1e12])
            seen = Seen(sign=chance.choice(signs), reason="why", pause_s=pause, probe=is_probe)
            eras = probes if is_probe else flying
            era = eras.pop(chance.randrange(len(eras)))
            fresh_news = era == one.era
            one = link.ended(one, era, seen, now, chance.random(), PACE)

        assert one.in_flight == sum(era == one.era for era in flying)
        assert one.probing == bool(probes)
        assert len(probes) <= 1
        assert 1 <= one.window <= PACE.window_limit
        assert 0 <= one.weak < PACE.weak_limit
        assert one.since <= now
        assert one.paused_until <= now + PACE.refused_longest_s * 1.25
        assert one.probe_at <= now + PACE.refused_longest_s * 1.25 + PACE.idle_s * 1.25
        assert one.era == before.era + (one.state is DOWN and before.state is not DOWN)
        assert link.places(one, now) == 0 or one.state is not DOWN
        assert link.next_probe(one) is not None or probes or one.in_flight  # something will happen
        if seen is None or not fresh_news:
            assert (one.state, one.window, one.weak, one.downs) == (
                before.state, before.window, before.weak, before.downs,
            )  # fmt: skip
        elif before.state is DOWN and one.state is not DOWN:
            assert seen.probe
            assert seen.sign is GOOD
            assert one.window == 1
        elif one.state is DOWN and before.state is not DOWN:
            assert seen.sign in (STRONG, REFUSED) or (seen.sign is WEAK and before.weak == PACE.weak_limit - 1)
        if fresh_news and seen is not None and before.state is not DOWN and seen.sign in (STRONG, REFUSED):
            assert one.state is DOWN
        if fresh_news and seen is not None and seen.sign is BUSY:
            assert one.state is before.state
            assert not link.usable(one, now)
