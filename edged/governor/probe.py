"""What the kernel says about memory, in bytes. None where it does not say."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
ROLLUP = Path("/proc/self/smaps_rollup")
OWN_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63


def board_bytes() -> int:
    """RAM this process may use: the board's, or the cgroup's limit where that is smaller."""
    limits = [_meminfo("MemTotal"), cgroup_limit()]
    return min(limit for limit in limits if limit)


def available_bytes() -> int | None:
    """MemAvailable: free memory and what the kernel can reclaim without swapping."""
    return _meminfo("MemAvailable")


def private_bytes() -> int:
    """Memory of this process alone: what is freed if it goes. Mapped weights are not in it."""
    fields = dict(_fields(ROLLUP))
    return fields.get("Private_Clean", 0) + fields.get("Private_Dirty", 0)


def cgroup_limit() -> int | None:
    """The smallest memory limit on the way from our cgroup to the root; v2, and v1's memory controller."""
    limits = []
    for line in _lines(OWN_CGROUP):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _limits(CGROUP_ROOT, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(CGROUP_ROOT / "memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits(root: Path, path: str, name: str) -> list[int]:
    folder = root / path.strip("/")
    found = []
    while True:
        text = "".join(_lines(folder / name)).strip()
        if text.isdigit() and int(text) < UNLIMITED:
            found.append(int(text))
        if folder == root or folder == folder.parent:
            return found
        folder = folder.parent


def _meminfo(name: str) -> int | None:
    return dict(_fields(MEMINFO)).get(name)


def _fields(path: Path) -> list[tuple[str, int]]:
    """`Name:   123 kB` lines as bytes."""
    fields = []
    for line in _lines(path):
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            fields.append((name, int(words[0]) * 1024))
    return fields


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
