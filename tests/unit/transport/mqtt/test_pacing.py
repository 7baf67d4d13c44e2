"""When to try again, with what, and what to say of it."""

from __future__ import annotations

from random import Random

import pytest

from edged.transport.mqtt.pacing import (
    CLOSES_TO_GIVE_UP_V5,
    EVICTIONS_TO_BELIEVE,
    FAILURES_TO_RETRY_V5,
    V5,
    V311,
    Backoff,
    Evictions,
    Outage,
    Versions,
)


@pytest.mark.parametrize(
    ("failures", "most"), [(0, 1), (1, 1), (2, 2), (3, 4), (5, 16), (6, 30), (7, 30), (10_000, 30)], ids=str
)
def test_wait_doubles_to_its_cap_with_full_jitter(failures: int, most: float) -> None:
    """Anything between nothing and the bound: boards that lost one broker come back one by one."""
    chance = Random(1)
    waits = [Backoff().delay(failures, chance) for _ in range(300)]
    assert 0 <= min(waits) < most * 0.1
    assert most * 0.9 < max(waits) <= most


def test_wait_after_a_takeover_is_long() -> None:
    """Never less than a minute."""
    chance = Random(1)
    waits = [Backoff().taken_over(chance) for _ in range(100)]
    assert min(waits) >= 60
    assert max(waits) <= 90


def test_version_5_is_given_up_when_refused_in_words() -> None:
    """Case 1."""
    versions = Versions(V5)
    versions.refused()
    assert versions.current == V311


def test_version_5_is_given_up_when_closed_at_connect_repeatedly_only() -> None:
    """Case 2; an unreachable broker in between starts the count again."""
    versions = Versions(V5)
    versions.closed()
    versions.failed()
    for _ in range(CLOSES_TO_GIVE_UP_V5 - 1):
        versions.closed()
    assert versions.current == V5
    versions.closed()
    assert versions.current == V311


def test_version_5_is_tried_again_after_failures_in_a_row() -> None:
    """Case 3; success in between starts the count again."""
    versions = Versions(V5)
    versions.refused()
    versions.failed()
    versions.connected()
    for _ in range(FAILURES_TO_RETRY_V5 - 1):
        versions.closed()
    assert versions.current == V311
    versions.refused()
    assert versions.current == V5


def test_version_311_stays_when_it_was_asked_for() -> None:
    """Case 4."""
    versions = Versions(V311)
    for _ in range(10):
        versions.refused()
        versions.closed()
        versions.failed()
    assert versions.current == V311


def test_repeated_short_connections_raise_the_suspicion_of_a_second_daemon() -> None:
    """A long one, or a broker that was away, takes it back."""
    evictions = Evictions(30)
    suspicions = [evictions.ended(by_peer=True, lasted_s=1) for _ in range(EVICTIONS_TO_BELIEVE)]
    assert suspicions == [False] * (EVICTIONS_TO_BELIEVE - 1) + [True]
    assert evictions.ended(by_peer=True, lasted_s=1)
    assert not evictions.ended(by_peer=False, lasted_s=0)
    assert not evictions.ended(by_peer=True, lasted_s=1)
    assert not evictions.ended(by_peer=True, lasted_s=31)


def test_outage_is_told_at_its_start_each_minute_and_at_its_end() -> None:
    """An outage of five minutes with an attempt each second: six lines and one."""
    outage = Outage()
    lines = [line for second in range(301) if (line := outage.failed("refused", now=1000 + second))]
    assert lines[0] == "refused"
    assert lines[1] == "refused (failed 61 times in 60 s)"
    assert len(lines) == 6
    assert outage.ended(now=1301) == "back after 301.0 s (failures: 301)"
    assert outage.ended(now=1302) is None


def test_flapping_link_does_not_fill_the_log() -> None:
    """A new outage within the minute is silent, and so is its end; the next minute has a line again."""
    outage = Outage()
    assert outage.failed("lost", now=0) == "lost"
    assert outage.ended(now=1) is not None
    assert outage.failed("lost", now=2) is None
    assert outage.ended(now=3) is None
    assert outage.failed("lost", now=61) == "lost"
