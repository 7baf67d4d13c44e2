"""What the kernel says about memory, in bytes. None where it does not say."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

MEMINFO = Path("/proc/meminfo")
# The kernel's counters, which are read in microseconds; smaps walks all pages: 20 ms and more with weights mapped.
STATUS = Path("/proc/self/status")
OWN_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
NUMBER = re.compile(r"[0-9]{1,20}")  # as the kernel writes 64 bits
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63
# Names of the same thing in both versions: limits, usage, file pages in memory.stat.
V1 = (("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
V2 = (("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))


def board_bytes() -> int:
    """RAM this process may use: the board's, or the cgroup's limit where that is smaller."""
    limits = [_meminfo("MemTotal"), cgroup_limit()]
    return min(limit for limit in limits if limit)


def available_bytes() -> int | None:
    """MemAvailable: free memory and what the kernel can reclaim without swapping."""
    return _meminfo("MemAvailable")


def private_bytes() -> int:
    """Memory of this process alone, that no file holds: what is freed if it goes, swapped out or not. Neither mapped
    weights nor code of libraries are in it."""
    fields = dict(_fields(STATUS))
    return sum(fields.get(name, 0) for name in ("RssAnon", "RssShmem", "VmSwap"))


def file_bytes() -> int:
    """Resident pages of files that this process maps: weights, and code of libraries."""
    return dict(_fields(STATUS)).get("RssFile", 0)


def cgroup_limit() -> int | None:
    """The smallest memory limit on the way from our cgroup to the root; v2, and v1's memory controller."""
    return min((group.limit for group in cgroups()), default=None)


def cgroups() -> list[Group]:
    """Cgroups with a limit, from ours to the root. One that does not say what it uses counts as empty."""
    groups = []
    for line in _lines(OWN_CGROUP):
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon:
            continue
        if controllers == "":
            groups += _groups(CGROUP_ROOT, path, *V2)
        elif "memory" in controllers.split(","):
            groups += _groups(CGROUP_ROOT / "memory", path, *V1)
    return groups


def oom_kills() -> int | None:
    """How many processes of our cgroup the kernel has ended for want of memory; None where it does not say."""
    for line in _lines(OWN_CGROUP):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            counter = CGROUP_ROOT / path.strip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            counter = CGROUP_ROOT / "memory" / path.strip("/") / "memory.oom_control"
        else:
            continue
        counted = dict(line.split()[:2] for line in _lines(counter) if len(line.split()) == 2)
        if NUMBER.fullmatch(counted.get("oom_kill", "")):
            return int(counted["oom_kill"])
    return None


def _groups(root: Path, path: str, limits: tuple[str, ...], usage: str, cache: tuple[str, ...]) -> list[Group]:
    folder = root / path.strip("/")
    found = []
    while True:
        numbers = [number for name in limits if (number := _number(folder / name)) is not None and number < UNLIMITED]
        if numbers:
            pages = dict(line.split()[:2] for line in _lines(folder / "memory.stat") if len(line.split()) == 2)
            cached = sum(int(pages[name]) for name in cache if NUMBER.fullmatch(pages.get(name, "")))
            found.append(Group(min(numbers), _number(folder / usage) or 0, cached))
        if folder == root or folder == folder.parent:
            return found
        folder = folder.parent


def _number(path: Path) -> int | None:
    """A file's only number; None for `max`, and where there is no such file."""
    text = "".join(_lines(path)).strip()
    return int(text) if NUMBER.fullmatch(text) else None


def _meminfo(name: str) -> int | None:
    return dict(_fields(MEMINFO)).get(name)


def _fields(path: Path) -> list[tuple[str, int]]:
    """`Name:   123 kB` lines as bytes."""
    fields = []
    for line in _lines(path):
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and NUMBER.fullmatch(words[0]):
            fields.append((name, int(words[0]) * 1024))
    return fields


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()  # names of groups are bytes
    except (OSError, ValueError):  # a NUL in the path
        return []


class Group(Struct, frozen=True):
    """A cgroup with a limit, in bytes.

    limit: the smaller of memory.max and memory.high: a service above the second is throttled until it seems dead.
    used: all that is charged to it. cache: file pages in it.
    """

    limit: int
    used: int
    cache: int
