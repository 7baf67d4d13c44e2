"""This process, and others, as the kernel counts them."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edged.host import kernel_files

PROC = Path("/proc")
OWN = PROC / "self"
IO = OWN / "io"
FIRST_TO_GO = "1000"  # oom_score_adj: the kernel ends such a process before any other
# Addresses, rights, offset in the file, device, inode, path (proc_pid_maps(5)).
MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)(?: +(.*))?$", re.MULTILINE
)


class Mapping(NamedTuple):
    """A mapping of our address space. start, end: addresses. offset: in the file of this device and inode; inode 0: of
    no file."""

    start: int
    end: int
    rights: str
    offset: int
    device: int
    inode: int
    path: str


def began_ticks() -> int:
    """When the kernel started this process, in clock ticks since the boot: with its number, nobody else's."""
    return int(_stat("self")[19])


def age_s() -> float:
    """Seconds since the kernel started this process: what a user waits for, imports included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks() / os.sysconf("SC_CLK_TCK")


def exists(pid: int) -> bool:
    """Whether there is a process of that number, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def parent_of(pid: int) -> int:
    """The parent's number. OSError: there is no such process, or the unit's ProtectProc= hides it."""
    return int(_stat(str(pid))[1])


def children(pid: int | None = None) -> list[int]:
    """Of all threads of a process, by default this one: an orphan may become any one's."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for task in (PROC / str(pid or "self") / "task").iterdir():
            with contextlib.suppress(OSError):  # a thread that ended meanwhile; a kernel without CONFIG_PROC_CHILDREN
                found += map(int, (task / "children").read_text(encoding="utf-8").split())
    return found


def descriptors(pid: int) -> list[Path]:
    """Links to what a process has open. OSError: it has ended, or is not our user's."""
    return list((PROC / str(pid) / "fd").iterdir())


def written_bytes() -> int | None:
    """Bytes that this process had written to the disk; None where the kernel does not count, or does not say."""
    return kernel_files.counts(IO).get("write_bytes")


def dirty_bytes() -> int:
    """Pages that this process has written. Walks all pages: 20 ms and more with weights mapped."""
    return kernel_files.counts(OWN / "smaps_rollup").get("Private_Dirty", 0)


def mappings() -> Iterator[Mapping]:
    """All mappings of our address space; about a millisecond."""
    for found in MAPPING.finditer((OWN / "maps").read_text(encoding="utf-8", errors="replace")):
        start, end, offset, major, minor = (int(found[i], 16) for i in (1, 2, 4, 5, 6))
        yield Mapping(start, end, found[3], offset, os.makedev(major, minor), int(found[7]), found[8] or "")


def be_first_to_go() -> None:
    """Where memory runs out, this process is ended before others; a sandbox may keep us from saying so."""
    with contextlib.suppress(OSError):
        (OWN / "oom_score_adj").write_text(FIRST_TO_GO, encoding="utf-8")


def _stat(pid: str) -> list[str]:
    """Fields of /proc/PID/stat from the third on, the state: the second is a name, which may hold anything."""
    return (PROC / pid / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
