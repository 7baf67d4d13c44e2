"""What the kernel says about memory, in bytes. None where it does not say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from edged.host import cgroups as control_groups
from edged.host.kernel_files import count, counts

MEMINFO = Path("/proc/meminfo")
# The kernel's counters, which are read in microseconds; smaps walks all pages: 20 ms and more with weights mapped.
STATUS = Path("/proc/self/status")
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63


class _Names(NamedTuple):
    """Files of a cgroup, and lines of its memory.stat. taken: what only ends with its owner, or is mapped by it."""

    limits: tuple[str, ...]
    usage: str
    cache: tuple[str, ...]
    taken: tuple[str, ...]
    kills: str


NAMES = {  # by the version of the cgroup
    1: _Names(
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
        ("total_rss", "total_mapped_file"),
        "memory.oom_control",
    ),
    2: _Names(
        ("memory.max", "memory.high"),
        "memory.current",
        ("inactive_file", "active_file"),
        ("anon", "file_mapped", "kernel"),
        "memory.events",
    ),
}


class Group(Struct, frozen=True):
    """A cgroup with a limit, in bytes.

    limit: the smaller of memory.max and memory.high: a service above the second is throttled until it seems dead.
    used: all that is charged to it. cache: file pages in it.
    """

    limit: int
    used: int
    cache: int


class Room(Struct, frozen=True):
    """What is left to take.

    available: MemAvailable. group: what the tightest cgroup above this process still allows. The page cache counts as
    neither taken nor gone, except for what is mapped: weights are.
    part: the smaller of what is left, of the whole it belongs to; None where nothing is known.
    """

    available: int | None = None
    group: int | None = None
    part: float | None = None

    @property
    def least(self) -> int | None:
        """The tighter of the two."""
        return min((left for left in (self.available, self.group) if left is not None), default=None)


def board_bytes() -> int:
    """RAM this process may use: the board's, or the cgroup's limit where that is smaller."""
    limits = [counts(MEMINFO).get("MemTotal"), cgroup_limit()]
    return min(limit for limit in limits if limit)


def available_bytes() -> int | None:
    """MemAvailable: free memory and what the kernel can reclaim without swapping."""
    return counts(MEMINFO).get("MemAvailable")


def private_bytes() -> int:
    """Memory of this process alone, that no file holds: what is freed if it goes, swapped out or not. Neither mapped
    weights nor code of libraries are in it."""
    fields = counts(STATUS)
    return sum(fields.get(name, 0) for name in ("RssAnon", "RssShmem", "VmSwap"))


def file_bytes() -> int:
    """Resident pages of files that this process maps: weights, and code of libraries."""
    return counts(STATUS).get("RssFile", 0)


def cgroup_limit() -> int | None:
    """The smallest memory limit on the way from our cgroup to the root; v2, and v1's memory controller."""
    return min((group.limit for group in cgroups()), default=None)


def cgroups() -> list[Group]:
    """Cgroups with a limit, from ours to the root. One that does not say what it uses counts as empty."""
    return [
        Group(limit, count(folder / names.usage) or 0, sum(stat.get(name, 0) for name in names.cache))
        for limit, stat, names, folder in _limited()
    ]


def oom_kills() -> int | None:
    """How many processes of our cgroup the kernel has ended for want of memory; None where it does not say."""
    for version, folder in control_groups.own("memory"):
        counted = counts(folder / NAMES[version].kills).get("oom_kill")
        if counted is not None:
            return counted
    return None


def left(meminfo: Path | None = None, root: Path | None = None, listing: Path | None = None) -> Room:
    """What is left to take now.

    Args:
        meminfo: instead of MEMINFO; root, listing: see `cgroups.up`. Anything may be missing.
    """
    board = counts(meminfo or MEMINFO)
    available, total = board.get("MemAvailable"), board.get("MemTotal")
    parts = [available / total] if available is not None and total else []
    groups = [
        (max(0, limit - sum(stat.get(name, 0) for name in names.taken)), limit)
        for limit, stat, names, _ in _limited(root, listing)
        if stat
    ]
    parts += [free / limit for free, limit in groups if limit]
    return Room(available, min((free for free, _ in groups), default=None), min(parts, default=None))


def _limited(
    root: Path | None = None, listing: Path | None = None
) -> Iterator[tuple[int, dict[str, int], _Names, Path]]:
    """(limit, memory.stat, names, folder) of every cgroup that has a limit, from ours to the root."""
    for version, folder in control_groups.up("memory", root, listing):
        names = NAMES[version]
        limits = [each for name in names.limits if (each := count(folder / name)) is not None and each < UNLIMITED]
        if limits:
            yield min(limits), counts(folder / "memory.stat"), names, folder
