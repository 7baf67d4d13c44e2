"""The cgroups of this process, in both versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edged.host import kernel_files

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


class Folder(NamedTuple):
    """The folder of a cgroup. version: 1 or 2; the files in it differ."""

    version: int
    path: Path


def own(controller: str, root: Path | None = None, listing: Path | None = None) -> Iterator[Folder]:
    """The folders of our own cgroup and of all above it, ours first, as far as they concern a controller ("memory",
    "cpu"). A board with both versions has both.

    Args:
        root, listing: instead of ROOT and OWN.
    """
    top = root or ROOT
    # names of groups are bytes
    for line in kernel_files.text(listing or OWN, errors="surrogateescape").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, name = rest.partition(":")
        if colon and controllers == "":
            yield from _way_up(2, top, name)
        elif controller in controllers.split(","):
            yield from _way_up(1, top / controller, name)


def _way_up(version: int, root: Path, name: str) -> Iterator[Folder]:
    folder = root / name.strip("/")
    while True:
        yield Folder(version, folder)
        if folder in (root, folder.parent):
            return
        folder = folder.parent
