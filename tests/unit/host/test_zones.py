"""Time zones of the board."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import TZPATH

import pytest

from edged.host import zones

WINTER = datetime(2026, 1, 1, tzinfo=UTC)
ZONES = next(Path(folder) for folder in TZPATH if Path(folder).is_dir())


@pytest.fixture(autouse=True)
def _nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TZ", raising=False)
    monkeypatch.setattr(zones, "LOCALTIME", tmp_path / "localtime")
    monkeypatch.setattr(zones, "TIMEZONE", tmp_path / "timezone")


@pytest.mark.parametrize(
    "name", ["Europe/Nowhere", "Europe", "", "../zoneinfo/UTC", "/etc/localtime", "a\0b", "x" * 999]
)
def test_name_of_no_zone_is_told(name: str) -> None:
    with pytest.raises(ValueError, match="this board knows no time zone"):
        zones.named(name)


def test_utc_needs_no_file() -> None:
    assert zones.named("UTC") is UTC


def test_board_that_says_nothing_is_in_utc() -> None:
    assert zones.own() == ("UTC", UTC)


def test_zone_of_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    zones.LOCALTIME.symlink_to(ZONES / "Europe" / "Berlin")
    monkeypatch.setenv("TZ", ":Asia/Tokyo")
    assert zones.own()[0] == "Asia/Tokyo"
    monkeypatch.setenv("TZ", "CET-1CEST")  # a rule, and no name
    assert zones.own()[0] == "Europe/Berlin"


def test_link_tells_the_name() -> None:
    zones.LOCALTIME.symlink_to(ZONES / "Europe" / "Berlin")
    zones.TIMEZONE.write_text("Asia/Tokyo\n")  # left behind
    name, zone = zones.own()
    assert (name, WINTER.astimezone(zone).utcoffset()) == ("Europe/Berlin", timedelta(hours=1))


def test_copy_has_the_name_that_is_written_beside_it() -> None:
    shutil.copyfile(ZONES / "Asia" / "Tokyo", zones.LOCALTIME)
    name, zone = zones.own()
    assert (name, WINTER.astimezone(zone).utcoffset()) == ("JST", timedelta(hours=9))
    zones.TIMEZONE.write_text("Asia/Tokyo\n")
    assert zones.own()[0] == "Asia/Tokyo"


@pytest.mark.parametrize("content", [None, b"no zone"])
def test_file_that_is_no_zone_is_utc(content: bytes | None) -> None:
    if content is None:
        zones.LOCALTIME.symlink_to("/nowhere")
    else:
        zones.LOCALTIME.write_bytes(content)
    assert zones.own() == ("UTC", UTC)
