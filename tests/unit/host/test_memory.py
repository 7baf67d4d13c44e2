"""What the kernel says about memory, from the files it says it in."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.host import cgroups, memory
from edged.host.memory import Group

MIB = 2**20


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc and a /sys of our own, empty."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "sys")
    return tmp_path


def limit(root: Path, path: str, text: str) -> None:
    """Write a limit file."""
    file = root / "sys" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_meminfo_is_read_in_bytes(kernel: Path) -> None:
    """kB of the kernel are 1024 bytes."""
    (kernel / "meminfo").write_text("MemTotal:        2048 kB\nMemAvailable:    1024 kB\nHugePages_Total: 7\n")
    assert memory.board_bytes() == 2 * MIB
    assert memory.available_bytes() == MIB


def test_available_is_none_where_the_kernel_does_not_say(kernel: Path) -> None:
    """Never an invented number."""
    assert memory.available_bytes() is None
    assert memory.cgroup_limit() is None
    assert memory.private_bytes() == 0


def test_memory_of_files_is_told_apart_from_private_memory(kernel: Path) -> None:
    """Mapped weights are the page cache's, and are not freed by ending. What lies in the swap is still ours."""
    (kernel / "status").write_text(
        "Name:\tedged\nVmRSS:\t 999 kB\nRssAnon:\t 30 kB\nRssFile:\t 500 kB\nRssShmem:\t 4 kB\nVmSwap:\t 2 kB\n"
    )
    assert memory.private_bytes() == 36 * 1024
    assert memory.file_bytes() == 500 * 1024


@pytest.mark.parametrize(
    ("own", "limits", "found"),
    [
        ("0::/a/b", {"a/b/memory.max": "300\n"}, 300),
        ("0::/a/b", {"a/b/memory.max": "max\n", "a/memory.max": "200\n"}, 200),
        ("0::/a/b", {"a/b/memory.max": "300\n", "a/memory.max": "200\n"}, 200),
        ("0::/", {"memory.max": "100\n"}, 100),
        ("0::/a", {"a/memory.max": "max\n"}, None),
        ("0::/a", {"a/memory.max": "max\n", "a/memory.high": "250\n"}, 250),
        ("0::/a", {"a/memory.max": "300\n", "a/memory.high": "max\n"}, 300),
        ("0::/a", {"a/memory.max": "300\n", "a/memory.high": "250\n", "memory.high": "240\n"}, 240),
        ("0::/a", {}, None),
        ("0::/../..", {}, None),
        ("3:cpu,memory:/x\n0::/a", {"memory/x/memory.limit_in_bytes": "500\n"}, 500),
        ("3:memory:/x", {"memory/x/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("3:cpu:/x", {"memory/x/memory.limit_in_bytes": "500\n"}, None),
    ],
    ids=[
        "v2", "v2-parent", "v2-both", "v2-root", "v2-unlimited", "v2-high-only", "v2-high-unlimited",
        "v2-high-above-us", "v2-no-files", "v2-namespace", "v1", "v1-unlimited",
        "v1-other-controller",
    ],
)  # fmt: skip
def test_cgroup_limit_is_the_smallest_on_the_way_to_the_root(
    kernel: Path, own: str, limits: dict[str, str], found: int | None
) -> None:
    """systemd's MemoryMax= may sit on a slice above us."""
    (kernel / "cgroup").write_text(own + "\n")
    for path, text in limits.items():
        limit(kernel, path, text)
    assert memory.cgroup_limit() == found


@pytest.mark.parametrize(
    ("own", "files", "found"),
    [
        (
            "0::/a/b",
            {
                "a/b/memory.max": "900\n", "a/b/memory.high": "800\n", "a/b/memory.current": "500\n",
                "a/b/memory.stat": "anon 100\ninactive_file 250\nactive_file 100\nactive_anon 9\n",
                "a/memory.max": "max\n", "memory.max": "2000\n", "memory.current": "1500\n",
                "memory.stat": "inactive_file 1\n",
            },
            [Group(800, 500, 350), Group(2000, 1500, 1)],
        ),
        (
            "4:memory:/x",
            {
                "memory/x/memory.limit_in_bytes": "900\n", "memory/x/memory.usage_in_bytes": "400\n",
                "memory/x/memory.stat": "inactive_file 1\ntotal_inactive_file 30\ntotal_active_file 20\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            [Group(900, 400, 50)],
        ),
        ("0::/a", {"a/memory.max": "900\n"}, [Group(900, 0, 0)]),
        ("0::/a", {"a/memory.max": "max\n", "a/memory.current": "400\n"}, []),
        ("", {}, []),
    ],
    ids=["v2-nested", "v1-counts-what-is-below", "says-nothing-of-its-use", "unlimited", "none"],
)  # fmt: skip
def test_cgroups_tell_limit_use_and_page_cache(
    kernel: Path, own: str, files: dict[str, str], found: list[Group]
) -> None:
    """memory.high counts as a limit: a service above it is throttled."""
    (kernel / "cgroup").write_text(own + "\n" if own else "")
    for path, text in files.items():
        limit(kernel, path, text)
    assert memory.cgroups() == found


def test_board_is_the_cgroups_limit_where_that_is_smaller(kernel: Path) -> None:
    """A container sees the RAM of its host, and may not use it."""
    (kernel / "meminfo").write_text("MemTotal: 2048 kB\n")
    (kernel / "cgroup").write_text("0::/a\n")
    limit(kernel, "a/memory.max", str(MIB))
    assert memory.board_bytes() == MIB
    limit(kernel, "a/memory.max", str(9 * MIB))
    assert memory.board_bytes() == 2 * MIB


def test_real_kernel_answers_with_sizes_that_fit_together() -> None:
    """On any Linux board."""
    available = memory.available_bytes()
    assert available is not None
    assert 0 < memory.private_bytes() < 2**40
    assert 0 < available < 2**50
    assert memory.board_bytes() > MIB


@pytest.mark.parametrize(
    ("own", "files", "kills"),
    [
        ("0::/a/b", {"a/b/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"}, 2),
        ("4:memory:/x\n0::/", {"memory/x/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}, 1),
        ("0::/a", {"a/memory.events": "low 0\n"}, None),
        ("0::/a", {}, None),
        ("", {}, None),
    ],
    ids=["v2", "v1", "an-old-kernel", "no-counter", "no-cgroup"],
)
def test_oom_kills_are_those_of_the_own_cgroup(
    kernel: Path, own: str, files: dict[str, str], kills: int | None
) -> None:
    """As the kernel counts them."""
    (kernel / "cgroup").write_text(own + "\n" if own else "")
    for path, text in files.items():
        limit(kernel, path, text)
    assert memory.oom_kills() == kills
