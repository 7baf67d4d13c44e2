"""A memory limit around child processes: a cgroup of one's own, v2 or v1, whichever has the memory controller."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
END_S = 10.0  # for what was in it to end
POLL_S = 0.02


class NotPossible(Exception):
    """This machine lets us make none; the text says why."""


@dataclass(frozen=True)
class Group:
    """A limited cgroup. Everything in bytes."""

    folder: Path
    limit: int
    v2: bool

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command that shall run in it."""
        return ("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.folder / "cgroup.procs"))

    def kills(self) -> int:
        """How many processes the kernel has killed in it for want of memory."""
        return self._fields("memory.events" if self.v2 else "memory.oom_control").get("oom_kill", 0)

    def peak(self) -> int | None:
        """The most that was ever charged to it, page cache included; None where the kernel does not tell."""
        name = "memory.peak" if self.v2 else "memory.max_usage_in_bytes"
        with contextlib.suppress(OSError):
            return int((self.folder / name).read_text())
        return None

    def anonymous(self) -> int:
        """What cannot be reclaimed without swap."""
        return self._fields("memory.stat")["anon" if self.v2 else "total_rss"]

    def used(self) -> int:
        """Anonymous memory and mapped files; not the rest of the page cache, which the kernel gives away first."""
        fields = self._fields("memory.stat")
        return sum(
            fields[name] for name in (("anon", "file_mapped") if self.v2 else ("total_rss", "total_mapped_file"))
        )

    def _fields(self, name: str) -> dict[str, int]:
        return fields((self.folder / name).read_text())


def fields(text: str) -> dict[str, int]:
    """`name number` lines."""
    words = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}


@contextlib.contextmanager
def limited(limit: int) -> Iterator[Group]:
    """A cgroup with this limit and no swap, removed at the end with all that still runs in it.

    Raises:
        NotPossible: where it cannot be made.
    """
    parent, v2 = _parent()
    group = Group(parent / f"edged-bench-{os.getpid()}-{time.monotonic_ns()}", limit, v2)
    try:
        group.folder.mkdir()
    except OSError as error:
        raise NotPossible(f"no cgroup can be made in {parent} ({error.strerror}): it takes root") from None
    try:
        try:
            (group.folder / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(limit))
        except OSError as error:
            raise NotPossible(f"{group.folder} takes no limit: {error.strerror}") from None
        with contextlib.suppress(OSError):  # a kernel that does not count swap
            swap, most = ("memory.swap.max", 0) if v2 else ("memory.memsw.limit_in_bytes", limit)
            (group.folder / swap).write_text(str(most))
        yield group
    finally:
        _remove(group.folder)


def _parent() -> tuple[Path, bool]:
    """Where a cgroup with a memory limit can be made, and whether that is v2."""
    with contextlib.suppress(OSError):
        if "memory" in (ROOT / "cgroup.subtree_control").read_text().split():
            return ROOT, True
    if (ROOT / "memory" / "memory.limit_in_bytes").exists():
        return ROOT / "memory", False
    raise NotPossible("neither cgroup v2 nor v1 has the memory controller here")


def _remove(folder: Path) -> None:
    until = time.monotonic() + END_S
    while folder.exists():
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)  # only what was started in it can be in it
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        if time.monotonic() > until:
            return
        time.sleep(POLL_S)
