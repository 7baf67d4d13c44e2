"""The three clocks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edged.host import clock


def test_boot_counts_from_the_kernels_boot_and_only_forward() -> None:
    """The same clock as /proc/uptime, which is what `systemctl` and people see."""
    before = clock.boot()
    uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    after = clock.boot()
    assert before - 0.1 <= uptime <= after + 0.1
    assert before <= after


def test_wall_follows_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the clock that may jump."""
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert clock.wall() == 5.0
    assert clock.boot() > 0


def test_boot_id_is_one_line_and_stays_within_a_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another boot has another one."""
    assert clock.boot_id() == clock.boot_id() != ""
    (tmp_path / "id").write_text("abc-def\n")
    monkeypatch.setattr(clock, "BOOT_ID", tmp_path / "id")
    assert clock.boot_id() == "abc-def"


def test_stopwatch_gives_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a tenth of a microsecond."""
    moments = iter([10.0, 10.25000004])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    assert clock.Stopwatch().ms() == 250.0
