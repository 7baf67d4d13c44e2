"""How much memory there is left to take, looked at: PSI tells of stalls only, and a slow leak stalls nobody until it is
too late. Sizes in bytes; None where the kernel does not tell."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from msgspec import Struct

MEMINFO = Path("/proc/meminfo")
CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
NUMBER = re.compile(r"[0-9]{1,20}")  # as the kernel writes 64 bits
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63
# Of the reserve: a load is planned so that the reserve stays, and then others may still take a part of it. Less than
# half of it left is no such swing any more; what was given up comes back when the reserve is whole again.
LOW = 0.5
LEAST = 16 * 2**20  # where no reserve is configured: below, the kernel itself begins to look for victims
# While so much of the memory is left a stall is somebody else's: a group at its own limit stalls, too, and is counted
# for the whole board. What edged would give up then helps nobody.
PLENTY = 0.25


class MemoryState(Enum):
    """What a look says."""

    LOW = "low"
    UNEASY = "uneasy"  #: neither
    FINE = "fine"


class Room(Struct, frozen=True):
    """What is left.

    available: MemAvailable. group: what the tightest cgroup above this process still allows. The page cache counts as
    neither taken nor gone, but for what is mapped: weights are.
    part: the smaller of what is left, of the whole it belongs to; None where nothing is known.
    """

    available: int | None = None
    group: int | None = None
    part: float | None = None

    @property
    def least(self) -> int | None:
        """The tighter of the two."""
        return min((left for left in (self.available, self.group) if left is not None), default=None)


class Floor:
    """Judges what is left.

    Args:
        reserve: bytes that are to be left to the others of the board.
        meminfo, root, own: where the kernel tells; anything may be missing.
    """

    def __init__(self, reserve: int, meminfo: Path = MEMINFO, root: Path = CGROUP_ROOT, own: Path = OWN_CGROUP) -> None:
        self.low = max(round(LOW * reserve), LEAST)
        self._fine = max(reserve, 2 * LEAST)
        self._meminfo, self._root, self._own = meminfo, root, own

    def look(self) -> tuple[MemoryState, Room]:
        """What is left, and what to think of it."""
        room = self._room()
        if room.least is None or room.least >= self._fine:
            return MemoryState.FINE, room
        return (MemoryState.LOW if room.least < self.low else MemoryState.UNEASY), room

    def _room(self) -> Room:
        board = _numbers(self._meminfo)
        available, total = board.get("MemAvailable"), board.get("MemTotal")
        parts = [available / total] if available is not None and total else []
        groups = self._groups()
        parts += [left / limit for left, limit in groups if limit]
        return Room(available, min((left for left, _ in groups), default=None), min(parts, default=None))

    def _groups(self) -> list[tuple[int, int]]:
        """(left, limit) of every cgroup from ours to the root that has a limit."""
        found: list[tuple[int, int]] = []
        for line in _text(self._own).splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if controllers == "":
                found += self._above(self._root, path, ("memory.max", "memory.high"), ("anon", "file_mapped", "kernel"))
            elif "memory" in controllers.split(","):
                v1 = ("total_rss", "total_mapped_file")
                found += self._above(self._root / "memory", path, ("memory.limit_in_bytes",), v1)
        return found

    def _above(self, root: Path, path: str, names: tuple[str, ...], counted: tuple[str, ...]) -> list[tuple[int, int]]:
        folder, found = root / path.strip("/"), []
        while True:
            texts = [_text(folder / name).strip() for name in names]
            limits = [int(text) for text in texts if NUMBER.fullmatch(text) and int(text) < UNLIMITED]
            if limits and (taken := _numbers(folder / "memory.stat")):
                used = sum(taken.get(name, 0) for name in counted)
                found.append((max(0, min(limits) - used), min(limits)))
            if folder in (root, folder.parent):
                return found
            folder = folder.parent


def _numbers(path: Path) -> dict[str, int]:
    """Lines `Name:   123 kB` and `name 123`, in bytes."""
    numbers = {}
    for line in _text(path).splitlines():
        match line.split():
            case [name, number, "kB"] if NUMBER.fullmatch(number):
                numbers[name.rstrip(":")] = int(number) * 1024
            case [name, number] if NUMBER.fullmatch(number):
                numbers[name.rstrip(":")] = int(number)
    return numbers


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")  # names of groups are bytes
    except (OSError, ValueError):
        return ""
