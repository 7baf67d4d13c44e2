"""What is left to take, from faked files of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.host import memory
from edged.host.memory import Room
from edged.residency.pressure.low_memory import LowMemory, MemoryState

MIB = 2**20
RESERVE = 96 * MIB


def board(folder: Path, available: int | str, total: int = 1024) -> Path:
    """/proc/meminfo, in MiB."""
    number = available * 1024 if isinstance(available, int) else available
    (folder / "meminfo").write_text(f"MemTotal: {total * 1024} kB\nMemFree: 1 kB\nMemAvailable:  {number} kB\n")
    return folder


def judge(folder: Path, reserve: int = RESERVE) -> LowMemory:
    return LowMemory(reserve, lambda: memory.left(folder / "meminfo", folder / "cgroup", folder / "own"))


def group(folder: Path, path: str, files: dict[str, str]) -> None:
    at = folder / "cgroup" / path
    at.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (at / name).write_text(text)


@pytest.mark.parametrize(
    ("available", "reserve", "state"),
    [
        (500, RESERVE, MemoryState.FINE),
        (96, RESERVE, MemoryState.FINE),
        (95, RESERVE, MemoryState.UNEASY),
        (48, RESERVE, MemoryState.UNEASY),
        (47, RESERVE, MemoryState.LOW),
        (0, RESERVE, MemoryState.LOW),
        (40, 0, MemoryState.FINE),  # no reserve: what the kernel itself needs
        (20, 0, MemoryState.UNEASY),
        (15, 0, MemoryState.LOW),
        ("what", RESERVE, MemoryState.FINE),  # nothing is known
        ("²", RESERVE, MemoryState.FINE),
    ],
)
def test_floor_of_the_board(tmp_path: Path, available: int | str, reserve: int, state: MemoryState) -> None:
    """Half of the reserve is low, all of it is fine."""
    found, room = judge(board(tmp_path, available), reserve).look()
    assert found is state
    if isinstance(available, int):
        assert room == Room(available * MIB, None, available / 1024)


def test_without_any_file_all_is_well(tmp_path: Path) -> None:
    assert judge(tmp_path).look() == (MemoryState.FINE, Room())


def test_file_that_is_no_text_is_none(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_bytes(b"\xff\xfe\x00MemAvailable")
    assert judge(tmp_path).look() == (MemoryState.FINE, Room())


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"memory.max": "max"}, None),
        ({"memory.max": str(300 * MIB)}, 60),
        ({"memory.max": str(400 * MIB), "memory.high": str(280 * MIB)}, 40),  # held back from there on
        ({"memory.max": "max", "memory.high": str(280 * MIB)}, 40),
        ({"memory.max": str(200 * MIB)}, 0),
        ({"memory.max": "what"}, None),
    ],
)
def test_what_a_group_leaves(tmp_path: Path, limits: dict[str, str], left: int | None) -> None:
    """Its own memory, the kernel's for it and mapped files count as taken; the page cache does not."""
    (tmp_path / "own").write_text("0::/edged\n")
    stat = f"anon {100 * MIB}\nfile {500 * MIB}\nfile_mapped {120 * MIB}\nkernel {20 * MIB}\n"
    group(tmp_path, "edged", {"memory.stat": stat, **limits})
    state, room = judge(board(tmp_path, 900)).look()
    assert room.group == (None if left is None else left * MIB)
    assert state is (MemoryState.FINE if left is None else MemoryState.UNEASY if left == 60 else MemoryState.LOW)
    assert room.least == (900 if left is None else left) * MIB


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/a/b\n")
    group(tmp_path, "a/b", {"memory.stat": f"anon {10 * MIB}\n", "memory.max": str(500 * MIB)})
    group(tmp_path, "a", {"memory.stat": f"anon {190 * MIB}\n", "memory.max": str(200 * MIB)})
    _, room = judge(board(tmp_path, 900)).look()
    assert room == Room(900 * MIB, 10 * MIB, 0.05)


def test_old_cgroups(tmp_path: Path) -> None:
    """Version 1 has a folder for each controller, and writes a number for no limit."""
    (tmp_path / "own").write_text("9:name=systemd:/\n4:cpu,memory:/x/y\n0::/\n")
    stat = f"cache {700 * MIB}\ntotal_rss {100 * MIB}\ntotal_mapped_file {50 * MIB}\n"
    group(tmp_path, "memory/x/y", {"memory.stat": stat, "memory.limit_in_bytes": str(800 * MIB)})
    group(tmp_path, "memory/x", {"memory.stat": stat, "memory.limit_in_bytes": "9223372036854771712"})
    state, room = judge(board(tmp_path, 2000, 4000)).look()
    assert (state, room.group, room.part) == (MemoryState.FINE, 650 * MIB, 0.5)


def test_group_that_has_just_gone_leaves_the_board(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("nonsense\n0::/gone\n")
    assert judge(board(tmp_path, 900)).look()[1].group is None
