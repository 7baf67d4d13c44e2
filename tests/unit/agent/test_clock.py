"""Whether the board knows what time it is."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edged.agent import clock as agents_clock
from edged.agent.clock import BoardClock
from edged.host import clock

NOW = 2_000_000_000.0
HOUR = 3600.0


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of an hour ago; edged was installed a year ago."""
    for name, ago in (("store", HOUR), ("installed", 365 * 24 * HOUR)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (NOW - ago, NOW - ago))
    monkeypatch.setattr(agents_clock, "INSTALLED", tmp_path / "installed")
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("now", "synchronised", "lacks_rtc", "known"),
    [
        (NOW, True, True, True),
        (NOW, False, False, True),
        (NOW, None, True, True),
        (NOW, False, True, False),  # a board without a battery whose system has kept the time of the last shutdown
        (NOW - 2 * HOUR, False, False, False),  # it has been later than that
        (NOW - 2 * HOUR, None, False, False),
        (NOW - 2 * HOUR, True, False, True),  # then that was wrong
        (NOW - HOUR - 30, False, False, True),
        (0.0, True, False, False),
        (0.0, None, False, False),
    ],
)
def test_clock_is_set_or_not(
    written: Path, monkeypatch: pytest.MonkeyPatch, now: float, synchronised: bool | None, lacks_rtc: bool, known: bool
) -> None:
    """A clock that something keeps right is right; another must not be earlier than what has happened."""
    monkeypatch.setattr(clock, "wall", lambda: now)
    monkeypatch.setattr(clock, "synchronised", lambda: synchronised)
    monkeypatch.setattr(clock, "lacks_rtc", lambda: lacks_rtc)
    board = BoardClock("UTC", [written, written.with_name("none")])
    assert board.is_set is known
    assert (board.now().at is not None) is known


def test_what_is_written_later_does_not_count(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon itself writes by the clock that is in question."""
    monkeypatch.setattr(clock, "wall", lambda: NOW)
    monkeypatch.setattr(clock, "synchronised", lambda: None)
    board = BoardClock("UTC", [written])
    os.utime(written, (NOW + 2 * HOUR, NOW + 2 * HOUR))
    assert board.is_set
    assert not BoardClock("UTC", [written]).is_set


def test_moment_is_in_the_configured_zone() -> None:
    moment = BoardClock("Asia/Tokyo").moment(0.0)
    assert moment.at == datetime(1970, 1, 1, tzinfo=UTC)
    assert moment.line == "Now: Thu 1970-01-01 09:00, Asia/Tokyo"


@pytest.mark.parametrize(
    ("model", "rtcs", "lacks"), [(True, [], True), (True, ["rtc0"], False), (False, [], False), (True, None, False)]
)
def test_board_without_a_real_time_clock_is_one_that_the_kernel_says_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: bool, rtcs: list[str] | None, lacks: bool
) -> None:
    """A PC has one, and a virtual machine its host's, whatever is listed; some kernels list nothing."""
    monkeypatch.setattr(clock, "BOARD", tmp_path / "model")
    monkeypatch.setattr(clock, "RTCS", tmp_path / "rtc")
    if model:
        (tmp_path / "model").touch()
    if rtcs is not None:
        (tmp_path / "rtc").mkdir()
        for name in rtcs:
            (tmp_path / "rtc" / name).touch()
    assert clock.lacks_rtc() is lacks
