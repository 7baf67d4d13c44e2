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
    """The folders of our own cgroup as far as they concern a controller ("memory", "cpu"): one, or two on a board with
    both versions.

    Args:
        root, listing: instead of ROOT and OWN.
    """
    for version, top, name in _hierarchies(controller, root or ROOT, listing or OWN):
        yield Folder(version, top / name)


def up(controller: str, root: Path | None = None, listing: Path | None = None) -> Iterator[Folder]:
    """The same, and the folders of all cgroups above each, up to the root."""
    for version, top, name in _hierarchies(controller, root or ROOT, listing or OWN):
        folder = top / name
        yield Folder(version, folder)
        while folder not in (top, folder.parent):
            folder = folder.parent
            yield Folder(version, folder)


def _hierarchies(controller: str, root: Path, listing: Path) -> Iterator[tuple[int, Path, str]]:
    """(version, top folder, name of our group below it)."""
    for line in kernel_files.text(listing, errors="surrogateescape").splitlines():  # names of groups are bytes
        _, _, rest = line.partition(":")
        controllers, colon, name = rest.partition(":")
        if colon and controllers == "":
            yield 2, root, name.strip("/")
        elif controller in controllers.split(","):
            yield 1, root / controller, name.strip("/")
