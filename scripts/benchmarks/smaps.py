"""What a process has of the memory, as the kernel tells it in /proc/PID/smaps.

Pages of a file that only one process maps count as its private ones there. Weights are mapped, so they are told apart
by their mapping's name: private memory is what is freed if the process goes, mapped weights are what the kernel could
read again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
WEIGHTS = ".gguf"  # how the names of their files end
DELETED = " (deleted)"  # what the kernel appends where the file has no name any more
MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$")  # addresses, rights, offset, device, inode, name


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes. private: without the weights; mapped: resident pages of weights."""

    private: int
    mapped: int

    @property
    def whole(self) -> int:
        """Both."""
        return self.private + self.mapped


def of(pid: int) -> Memory:
    """Of a process; OSError where there is none, or it is somebody else's."""
    return parsed(Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8"))


def parsed(text: str) -> Memory:
    """Of the text of an smaps file."""
    private = mapped = 0
    weights = False
    for line in text.splitlines():
        if found := MAPPING.match(line):
            weights = found[1].removesuffix(DELETED).endswith(WEIGHTS)
            continue
        name, _, rest = line.partition(":")
        if weights and name == "Rss":
            mapped += _bytes(rest)
        elif not weights and name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb"):
            private += _bytes(rest)
    return Memory(private, mapped)


def _bytes(kilobytes: str) -> int:
    """`   123 kB`."""
    return int(kilobytes.split(maxsplit=1)[0]) * 1024
