"""What the doctor makes of files, mounts, clocks and answers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from edged import __version__
from edged.cli.checks import board, files, service
from edged.config import Config, Node
from edged.daemon.checks.finding import Finding, Level
from edged.host import clock, cpus, mounts, power, thermal
from edged.store.database import Database
from edged.store.schema import MIGRATIONS
from tests.support.msgpack_server import StandIn


def settings(folder: Path, **tables: Any) -> Config:
    """A configuration with its files in a folder."""
    places = {"state_dir": f"{folder}/state", "runtime_dir": f"{folder}/run", "models_dir": f"{folder}/models"}
    return Config(node=Node(id="n", **places), files=(f"{folder}/edged.toml",), **tables)


def said(finding: Finding) -> tuple[str, str]:
    """Level and sentence; what is not well has an advice."""
    assert (finding.do is None) == (finding.level is Level.OK)
    return finding.level.value, finding.message


# -- the disk of the state folder


class Vfs:
    """What statvfs says."""

    def __init__(self, free: int, inodes: int = 1, flags: int = 0) -> None:
        self.f_bavail, self.f_frsize = free, 1
        self.f_files, self.f_favail = 1000, inodes
        self.f_flag = flags


@pytest.mark.parametrize(
    ("told", "level"),
    [
        (Vfs(2**30), "ok"),
        (Vfs(100 * 2**20), "warn"),
        (Vfs(2**20), "fail"),
        (Vfs(2**30, inodes=0), "fail"),
    ],
    ids=["enough", "less than the bound", "nothing", "no inodes"],
)
def test_room_is_compared_with_the_stores_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Vfs, level: str
) -> None:
    """[store] max_bytes is 256 MiB."""
    monkeypatch.setattr(os, "statvfs", lambda _: told)
    assert said(files.room(settings(tmp_path)))[0] == level


@pytest.mark.parametrize(
    ("kind", "options", "level", "word"),
    [
        ("ext4", "rw,relatime - ext4 /dev/mmcblk0p2 rw", "ok", "ext4"),
        ("ext4", "rw,relatime - ext4 /dev/mmcblk0p2 rw,data=writeback", "warn", "data=writeback"),
        ("ext4", "rw,relatime - ext4 /dev/mmcblk0p2 rw,nobarrier", "warn", "nobarrier"),
        ("ext4", "rw - ext4 /dev/mmcblk0p2 rw,barrier=0,noload", "warn", "barrier=0, noload"),
        ("f2fs", "rw - f2fs /dev/sda1 rw,fsync_mode=nobarrier", "warn", "lost with the power"),
        ("tmpfs", "rw - tmpfs tmpfs rw,size=100k", "warn", "in memory"),
        ("overlay", "rw - overlay overlayroot rw,lowerdir=/", "warn", "overlay"),
        ("vfat", "rw - vfat /dev/sda1 rw", "warn", "journal"),
        ("nfs4", "rw - nfs4 server:/x rw", "fail", "network"),
    ],
)
def test_mount_that_endangers_data_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, level: str, word: str
) -> None:
    """As the kernel lists it; the advice names the option."""
    listing = tmp_path / "mountinfo"
    listing.write_text(f"27 1 254:0 / / rw - ext4 /dev/vda rw\n30 27 8:1 / {tmp_path} {options}\n")
    monkeypatch.setattr(mounts, "LIST", listing)
    finding = files.disk(settings(tmp_path))
    assert said(finding)[0] == level
    assert kind in finding.message
    assert word in f"{finding.message} {finding.do}"


def test_mount_of_a_path_is_the_nearest_and_the_last_one() -> None:
    """Points with spaces, a mount over another one, a neighbour whose name begins alike."""
    listing = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 8:2 / /srv/my\\040data rw - xfs /dev/b rw\n"
        "3 1 8:3 / /srv/my\\040data rw shared:1 - btrfs /dev/c ro,compress\n"
        "4 1 8:4 / /srv/my rw - vfat /dev/d rw\n"
        "nonsense\n"
    )
    found = mounts.mount_of(Path("/srv/my data/state"), listing)
    assert found is not None
    assert (found.point, found.kind, "compress" in found.options) == ("/srv/my data", "btrfs", True)
    assert (mounts.mount_of(Path("/srv/my"), listing) or found).kind == "vfat"
    assert (mounts.mount_of(Path("/srv/myself"), listing) or found).kind == "ext4"
    assert mounts.mount_of(Path("/"), "") is None


# -- the store


async def closed_store(folder: Path) -> Path:
    """A store as a daemon leaves it."""
    (folder / "state").mkdir(exist_ok=True)
    database = Database(folder / "state" / "edged.db", MIGRATIONS)
    await database.start()
    await database.stop()
    return folder / "state" / "edged.db"


async def test_store_of_a_stopped_daemon_is_looked_at_without_leaving_a_trace(tmp_path: Path) -> None:
    """No log, no shared memory beside it: they would belong to whoever ran the doctor."""
    path = await closed_store(tmp_path)
    before = path.read_bytes()
    level, message = said(files.store(settings(tmp_path)))
    assert (level, f"schema {len(MIGRATIONS)}" in message) == ("ok", True)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


async def test_store_in_use_is_read_beside_its_daemon(tmp_path: Path) -> None:
    """What is in its log counts."""
    (tmp_path / "state").mkdir()
    database = Database(tmp_path / "state" / "edged.db", MIGRATIONS)
    await database.start()
    try:
        assert said(files.store(settings(tmp_path)))[0] == "ok"
    finally:
        await database.stop()


async def test_store_of_another_version_is_told_apart(tmp_path: Path) -> None:
    """An older one is brought up to date, a newer one is refused at the start."""
    path = await closed_store(tmp_path)
    for version, level, word in ((1, "ok", "next start"), (99, "fail", "newer edged")):
        connection = apsw.Connection(str(path))
        connection.pragma("user_version", version)
        connection.close()
        found = said(files.store(settings(tmp_path)))
        assert (found[0], word in found[1]) == (level, True)


def overwrite_header(path: Path) -> None:
    """No database any more."""
    path.write_bytes(b"x" * 8192)


def overwrite_pages(path: Path) -> None:
    """What a dying card does."""
    data = bytearray(path.read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 200] = b"\xff" * 200
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [overwrite_header, overwrite_pages])
async def test_damaged_store_fails_with_what_to_do(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Nothing is repaired by looking."""
    path = await closed_store(tmp_path)
    damage(path)
    finding = files.store(settings(tmp_path))
    assert said(finding)[0] == "fail"
    assert str(path) in (finding.do or "")


# -- the daemon and who may ask it


async def test_daemon_of_another_version_is_a_warning(tmp_path: Path) -> None:
    """It was updated, but not restarted."""
    async with StandIn(tmp_path, {"status": {"version": "0.0.1", "pid": 7, "uptime_s": 5}}) as daemon:
        finding, status = await service.daemon(daemon.path)
        assert said(finding)[0] == "warn"
        assert (__version__ in finding.message, "restart" in (finding.do or "")) == (True, True)
        assert status is not None


async def test_daemon_that_does_not_answer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs, or it died and left its socket; one that was never started is a warning."""
    monkeypatch.setattr(service, "PATIENCE_S", 0.2)
    async with StandIn(tmp_path, {}, silent=("status",)) as daemon:
        assert said((await service.daemon(daemon.path))[0])[0] == "fail"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left.sock"))
    left.close()
    assert said((await service.daemon(tmp_path / "left.sock"))[0])[0] == "fail"
    finding, status = await service.daemon(tmp_path / "none.sock")
    assert (said(finding)[0], status) == ("warn", None)


@pytest.mark.parametrize(
    ("uid", "groups", "level"),
    [(0, [], "ok"), (4242, [], "fail"), (4242, ["the socket's"], "ok")],
    ids=["root", "stranger", "member"],
)
def test_socket_may_be_used_by_root_and_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, groups: list[str], level: str
) -> None:
    """What this session may, not what the list of members says."""
    where = tmp_path / "edged.sock"
    where.touch()
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(os, "getegid", lambda: 4242)
    monkeypatch.setattr(os, "getgroups", lambda: [where.stat().st_gid] if groups else [])
    finding = service.group(settings(tmp_path), where)
    assert said(finding)[0] == level
    assert level == "ok" or "log in again" in (finding.do or "")


@pytest.mark.parametrize(
    ("shown", "level", "word"),
    [
        ({"LoadState": "not-found"}, "warn", "does not start with the board"),
        ({"LoadState": "bad-setting"}, "fail", "bad-setting"),
        ({"LoadState": "loaded", "ActiveState": "failed", "Result": "oom-kill"}, "fail", "oom-kill"),
        ({"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "disabled"}, "warn", "not enabled"),
        ({"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "enabled"}, "warn", "inactive"),
        (
            {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled", "NRestarts": "3"},
            "warn",
            "3 times",
        ),
        (
            {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled", "NRestarts": "0"},
            "ok",
            "enabled and active",
        ),
    ],
)
def test_unit_is_judged_by_what_systemd_shows(shown: dict[str, str], level: str, word: str) -> None:
    """Not installed, broken, failed, not enabled, restarted again and again."""
    found = said(service.judge(shown))
    assert (found[0], word in found[1]) == (level, True)


async def test_systemd_is_asked_only_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`systemctl show` is a child process; in a container there is none."""
    monkeypatch.setattr(service, "BOOTED", tmp_path / "nothing")
    assert await service.unit() is None
    program = tmp_path / "systemctl"
    program.write_text('#!/bin/sh\n[ "$2" = edged.service ] && printf "LoadState=loaded\\nActiveState=failed\\n"\n')
    program.chmod(0o755)
    monkeypatch.setattr(service, "BOOTED", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    finding = await service.unit()
    assert finding is not None
    assert said(finding)[0] == "fail"


# -- the board

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("now", "synchronised", "level"),
    [
        (NOW, True, "ok"),
        (NOW, None, "ok"),
        (NOW, False, "warn"),
        (0.0, True, "warn"),
        (NOW - 30 * 86400, True, "warn"),
        (NOW + 40 * 365 * 86400, True, "warn"),
    ],
    ids=["right", "unknown", "free", "1970", "before our files", "far away"],
)
def test_clock_is_sensible_or_not(now: float, synchronised: bool | None, level: str) -> None:
    """A board without a battery wakes up in the past."""
    assert said(board.clock(now, NOW, synchronised))[0] == level


@pytest.mark.parametrize(
    ("governor", "driver", "level"),
    [
        ("ondemand", "cpufreq-dt", "ok"),
        ("powersave", "cpufreq-dt", "warn"),
        ("powersave", "intel_pstate", "ok"),
        (None, None, "ok"),
    ],
)
def test_processor_held_at_its_lowest_clock_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, governor: str | None, driver: str | None, level: str
) -> None:
    """A driver that governs by itself means something else by that word."""
    monkeypatch.setattr(cpus, "FREQUENCY", tmp_path)
    for name, text in (("scaling_governor", governor), ("scaling_driver", driver)):
        if text is not None:
            (tmp_path / name).write_text(f"{text}\n")
    assert said(board.processor())[0] == level


@pytest.mark.parametrize(
    ("text", "level", "word"),
    [
        ("0\n", "ok", "nothing"),
        ("50005\n", "warn", "now: the voltage is too low, it is throttled"),
        ("0x80000\n", "warn", "since the boot, but not now: it is near its temperature limit"),
    ],
)
def test_raspberrys_firmware_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, level: str, word: str
) -> None:
    """The usual cable that is too thin."""
    told = tmp_path / "get_throttled"
    told.write_text(text)
    monkeypatch.setattr(power, "FIRMWARE", told)
    (finding,) = board.power()
    assert said(finding)[0] == level
    assert word in finding.message


def test_board_that_tells_nothing_gets_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No firmware of that kind, or one that says something else; no sensors."""
    told = tmp_path / "get_throttled"
    monkeypatch.setattr(power, "FIRMWARE", told)
    assert list(board.power()) == []
    told.write_text("unknown\n")
    assert list(board.power()) == []
    monkeypatch.setattr(thermal, "THERMAL", tmp_path)
    assert list(board.temperature()) == []


@pytest.mark.parametrize(("degrees", "level"), [("45000", "ok"), ("83500", "warn")])
def test_hottest_sensor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, degrees: str, level: str) -> None:
    """In thousandths of a degree."""
    monkeypatch.setattr(thermal, "THERMAL", tmp_path)
    for zone, text in (("thermal_zone0", "30000"), ("thermal_zone1", degrees)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "temp").write_text(f"{text}\n")
    (finding,) = board.temperature()
    assert said(finding)[0] == level


def test_this_kernel_says_whether_its_clock_is_kept_right() -> None:
    """The call is one that only reads."""
    assert clock.synchronised() in (True, False, None)
