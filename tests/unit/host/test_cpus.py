"""What is seen of the board: CPUs, who uses them, heat."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edged.host import cgroups, cpus
from edged.host.cpus import SPIN_COUNT, Board, BoardWatch, before_loading, cpu_times
from edged.host.power import Supply
from edged.host.thermal import Strain, Thermometer

STAT = """\
cpu  300 0 100 1600 0 0 0 0 0 0
cpu0 100 10 50 800 20 5 5 10 100 10
cpu1 200 0 50 700 50 0 0 0 0 0
cpu10 9 9 9 9 9 9 9 9 9 9
intr 12345 0 0
ctxt 1
"""


@pytest.mark.parametrize(
    ("allowed", "times"),
    [
        ({0}, (1.8, 8.2)),
        ({0, 1}, (4.3, 15.7)),
        ({1}, (2.5, 7.5)),
        ({0, 2}, None),  # a CPU that is not there
    ],
)
def test_cpu_times(allowed: set[int], times: tuple[float, float] | None) -> None:
    """Idle and iowait are idle, stolen time is used, guest time is part of user time."""
    found = cpu_times(STAT, allowed, 100)
    assert found == (pytest.approx(times) if times else None)


def test_cpu_times_of_text_that_is_none() -> None:
    assert cpu_times("cpu0 1 2 x", {0}, 100) is None
    assert cpu_times("", {0}, 100) is None


@pytest.mark.parametrize(
    ("environment", "machine", "spin_count"),
    [
        ({}, "x86_64", str(SPIN_COUNT)),
        ({}, "aarch64", None),  # its turns are short
        ({"GOMP_SPINCOUNT": "5"}, "x86_64", "5"),
        ({"OMP_WAIT_POLICY": "active"}, "x86_64", None),
    ],
)
def test_waiting(environment: dict[str, str], machine: str, spin_count: str | None) -> None:
    """What the user has set stays."""
    before_loading(environment, machine)
    assert environment.get("GOMP_SPINCOUNT") == spin_count


@pytest.mark.skipif(platform.machine() != "x86_64", reason="nothing is set on this machine")
def test_waiting_is_known_to_the_library() -> None:
    """libgomp reads its settings when llama.cpp's libraries are loaded, and nothing before has loaded it."""
    program = "from edged.host import cgroups, cpus; cpus.before_loading(); import llama_cpp"
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stderr
    if "OPENMP DISPLAY ENVIRONMENT" not in shown:
        pytest.skip("llama.cpp was built without libgomp")
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in shown


def test_most_threads_of_this_process_is_at_least_one() -> None:
    assert cpus.most_threads(None) >= 1
    assert cpus.most_threads(3) == 3


def strain(folder: Path) -> Strain:
    """What the files in a folder tell: thermal, hwmon, supplies, get_throttled; any may be missing."""
    flags = folder / "get_throttled"
    return Strain(Thermometer(folder / "thermal", flags), Supply(flags, folder / "hwmon", folder / "supplies"))


@pytest.fixture
def nowhere(tmp_path: Path) -> Strain:
    return strain(tmp_path / "none")


@pytest.fixture
def stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board of two CPUs, both allowed, whose times the test writes."""
    monkeypatch.setattr(cpus, "STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    write(tmp_path / "stat", 0, 0)
    return tmp_path / "stat"


def look(watch: BoardWatch, now: float) -> Board:
    """A look that is due."""
    board = watch.look(now)
    assert board is not None
    return board


def write(path: Path, used: float, idle: float) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    lines = (f"cpu{n} {round(used * ticks / 2)} 0 0 {round(idle * ticks / 2)} 0 0 0 0" for n in (0, 1))
    path.write_text("\n".join(lines), encoding="utf-8")


def test_watch_tells_what_others_use(stat: Path, nowhere: Strain, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = BoardWatch(100.0, None, nowhere)
    write(stat, 1.5, 0.5)
    monkeypatch.setattr(time, "process_time", lambda: 0.7)
    assert watch.look(100.4) is None, "too soon"
    board = look(watch, 101.0)
    assert board.load is not None
    assert (board.most, board.hot, board.load.cpus) == (cpus.most_threads(None), False, 2)
    assert board.load.others == pytest.approx(0.8)
    assert board.load.idle == pytest.approx(0.5)
    assert watch.look(101.3) is None


def test_watch_tells_no_load_of_long_ago_or_where_there_is_none(stat: Path, nowhere: Strain) -> None:
    watch = BoardWatch(0.0, None, nowhere)
    write(stat, 100, 100)
    assert look(watch, 100.0).load is None
    stat.unlink()
    assert look(watch, 101.0).load is None
    write(stat, 0, 0)
    assert look(watch, 102.0).load is None
    write(stat, 1, 1)
    assert look(watch, 103.0).load is not None


def test_watch_follows_affinity(stat: Path, nowhere: Strain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at every ten seconds; a load of other CPUs than before is none."""
    watch = BoardWatch(0.0, None, nowhere)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1})
    assert look(watch, 1.0).load is None
    boards = [look(watch, float(second)) for second in range(2, 11)]
    assert [board.most for board in boards] == [2] * 8 + [1]
    assert all(board.load is not None and board.load.cpus == 1 for board in boards)


def test_watch_follows_a_quota(stat: Path, nowhere: Strain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "cgroup" / "edged.service"
    group.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/edged.service\n")
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
    watch = BoardWatch(0.0, None, nowhere)
    assert look(watch, 10.0).most == 2
    (group / "cpu.max").write_text("150000 100000\n")
    assert look(watch, 15.0).most == 2, "every ten seconds"
    assert look(watch, 20.0).most == 1
    assert look(BoardWatch(0.0, 2, nowhere), 10.0).most == 2, "configured"


def zone(folder: Path, number: int, temperature: int | str, **trips: int) -> Path:
    """A thermal zone; trips: temperatures by type, in thousandths of a degree (several of a type: type_2)."""
    path = folder / f"thermal_zone{number}"
    path.mkdir(parents=True)
    (path / "type").write_text("cpu-thermal\n")
    (path / "temp").write_text(f"{temperature}\n")
    for n, (kind, trip) in enumerate(trips.items()):
        (path / f"trip_point_{n}_type").write_text(kind.partition("_")[0] + "\n")
        (path / f"trip_point_{n}_temp").write_text(f"{trip}\n")
    return path / "temp"


@pytest.mark.parametrize(
    ("temperature", "trips", "hot"),
    [
        (81_000, {"passive": 85_000}, False),
        (83_000, {"passive": 85_000}, True),
        (90_000, {"passive": 85_000, "critical": 110_000}, True),
        (74_000, {"passive": 75_000, "passive_2": 85_000, "critical": 115_000}, False),  # the first: watched from there
        (83_000, {"passive": 75_000, "passive_2": 85_000}, True),
        (83_000, {"hot": 85_000}, True),
        (96_000, {"passive": 99_000, "hot": 97_000}, False),
        (60_000, {"active": 50_000, "critical": 110_000}, False),  # a fan is no limit
        (60_000, {"passive": 0}, False),  # not set
        (60_000, {"passive": -274_000}, False),
        ("", {"passive": 85_000}, False),
        ("nonsense", {"passive": 85_000}, False),
        (150_000, {}, False),
    ],
)
def test_heat(tmp_path: Path, temperature: int | str, trips: dict[str, int], hot: bool) -> None:
    zone(tmp_path, 0, temperature, **trips)
    assert Thermometer(tmp_path, tmp_path / "none").is_hot() == hot


def test_hot_until_clearly_cooler(tmp_path: Path) -> None:
    temp = zone(tmp_path, 0, 70_000, passive=85_000)
    other = zone(tmp_path, 1, 70_000, passive=95_000)
    thermometer = Thermometer(tmp_path, tmp_path / "none")
    seen = []
    for degrees in (81, 83, 80, 78, 76, 81, 83):
        temp.write_text(f"{degrees}000")
        seen.append(thermometer.is_hot())
    assert seen == [False, True, True, True, False, False, True]
    other.unlink()  # a sensor that has gone
    temp.unlink()
    assert not thermometer.is_hot()


@pytest.mark.parametrize(
    ("flags", "hot"),
    [
        ("0\n", False),
        ("1", False),  # under-voltage only: the supply's
        ("2", True),
        ("4", True),
        ("8", True),
        ("50000", False),  # has been, since the boot
        ("50005", True),
        ("", False),
        ("what", False),
    ],
)
def test_firmware_of_the_raspberry_pi(tmp_path: Path, flags: str, hot: bool) -> None:
    (tmp_path / "get_throttled").write_text(flags)
    thermometer = Thermometer(tmp_path / "none", tmp_path / "get_throttled")
    assert thermometer.is_hot() == hot
    assert thermometer.exists == (flags not in ("", "what"))


def test_a_board_without_sensors(tmp_path: Path) -> None:
    thermometer = Thermometer(tmp_path / "none", tmp_path / "none either")
    assert not thermometer.exists
    assert not thermometer.is_hot()


def test_watch_reads_heat_now_and_then(stat: Path, tmp_path: Path) -> None:
    temp = zone(tmp_path / "thermal", 0, 70_000, passive=85_000)
    watch = BoardWatch(0.0, None, strain(tmp_path))
    temp.write_text("90000")
    assert not look(watch, 4.0).hot
    assert look(watch, 5.0).hot


def supply(folder: Path, **files: str) -> Path:
    """A power supply of the kernel."""
    path = folder / "supplies" / files.get("type", "none").lower()
    path.mkdir(parents=True)
    for name, word in files.items():
        (path / name).write_text(word + "\n")
    return path


def test_undervoltage_is_trouble_while_it_lasts_and_when_it_came_between_two_looks(tmp_path: Path) -> None:
    """The firmware remembers since the boot; what it remembered at the start is old news."""
    flags, seen = tmp_path / "get_throttled", []
    flags.write_text("0\n")
    watched = strain(tmp_path)
    for told in ("0", "50001", "50000", "50000", "1", "", "what", "0"):
        flags.write_text(told)
        seen.append(watched.look() is not None)
    assert seen == [False, True, False, False, True, False, False, False]
    flags.write_text("10000")
    assert strain(tmp_path).look() is None
    flags.write_text("0")
    watched = strain(tmp_path)
    flags.write_text("10000")
    assert watched.look() == "the supply's voltage is too low"
    assert watched.look() is None


def test_alarm_of_the_voltage_sensor(tmp_path: Path) -> None:
    for number, name, alarm in ((0, "cpu_thermal", "1"), (1, "rpi_volt", "0")):
        (tmp_path / "hwmon" / f"hwmon{number}").mkdir(parents=True)
        (tmp_path / "hwmon" / f"hwmon{number}" / "name").write_text(name + "\n")
        (tmp_path / "hwmon" / f"hwmon{number}" / "in0_lcrit_alarm").write_text(alarm + "\n")
    watched = strain(tmp_path)
    assert watched.exists
    assert watched.look() is None
    (tmp_path / "hwmon" / "hwmon1" / "in0_lcrit_alarm").write_text("1\n")
    assert watched.look() == "the supply's voltage is too low"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"type": "Battery", "status": "Discharging", "capacity_level": "Normal"}, None),
        ({"type": "Battery", "status": "Charging", "capacity_level": "Low"}, None),
        ({"type": "Battery", "status": "Discharging", "capacity_level": "Low"}, "battery is nearly empty"),
        ({"type": "Battery", "status": "Discharging", "capacity_level": "Critical"}, "battery is nearly empty"),
        ({"type": "Battery", "status": "Discharging", "capacity_level": "Low", "scope": "Device"}, None),  # a mouse
        ({"type": "USB", "health": "Good"}, None),
        ({"type": "USB", "health": "Under voltage"}, "usb reports 'Under voltage'"),
        ({"type": "Mains"}, None),
    ],
)
def test_power_supplies(tmp_path: Path, files: dict[str, str], reason: str | None) -> None:
    supply(tmp_path, **files)
    found = strain(tmp_path).look()
    assert found is None if reason is None else found is not None and reason in found


def test_a_thread_less_while_the_voltage_is_too_low(stat: Path, tmp_path: Path) -> None:
    """As when it is hot."""
    (tmp_path / "get_throttled").write_text("0")
    watch = BoardWatch(0.0, None, strain(tmp_path))
    (tmp_path / "get_throttled").write_text("10001")
    assert look(watch, 5.0).hot
    (tmp_path / "get_throttled").write_text("10000")
    assert not look(watch, 10.0).hot


def test_heat_comes_before_power(tmp_path: Path) -> None:
    zone(tmp_path / "thermal", 0, 90_000, passive=85_000)
    (tmp_path / "get_throttled").write_text("1")
    assert "temperature" in (strain(tmp_path).look() or "")
