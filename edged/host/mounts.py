"""What a folder is mounted on, and whether that keeps what it says it keeps. Reads the kernel's list of mounts."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

LIST = Path("/proc/self/mountinfo")

# What makes a disk forget what it said it had written, or a power cut damage the file system itself.
DANGEROUS = {
    "data=writeback": "after a power cut, files may hold what was in their blocks before",
    "nobarrier": "what was acknowledged may be lost with the power",
    "barrier=0": "what was acknowledged may be lost with the power",
    "fsync_mode=nobarrier": "what was acknowledged may be lost with the power",
    "noload": "its journal is not used",
    "norecovery": "its journal is not used",
}
IN_MEMORY = {"tmpfs", "ramfs"}
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs"}
WITHOUT_JOURNAL = {"vfat", "msdos", "exfat", "ext2"}


class Mount(Struct, frozen=True):
    """A line of the kernel's list. point: where; kind: of file system; options: of the mount and the file system."""

    point: str
    kind: str
    options: frozenset[str]


class Danger(Struct, frozen=True):
    """What may happen there, and what to do; fatal: the store cannot work there at all."""

    what: str
    do: str
    fatal: bool = False


def read() -> str:
    """The kernel's list; empty where it has none."""
    return LIST.read_text(encoding="utf-8", errors="surrogateescape") if LIST.exists() else ""


def mount_of(path: Path, listing: str) -> Mount | None:
    """The mount a path is on: the longest point above it, and the last one mounted there."""
    found: Mount | None = None
    for entry in listing.splitlines():
        before, dash, after = entry.partition(" - ")
        fields, kinds = before.split(), after.split()
        if not dash or len(fields) < 6 or len(kinds) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if path.is_relative_to(point) and (found is None or len(point) >= len(found.point)):
            options = frozenset(f"{fields[5]},{kinds[2]}".split(","))
            found = Mount(point, kinds[0], options)
    return found


def danger(mount: Mount) -> Danger | None:
    """What is dangerous for a store there; None: nothing."""
    another = "set [node] state_dir to another disk"
    if mount.kind in NETWORK:
        return Danger("over a network the store's files cannot be locked", another, fatal=True)
    if mount.kind in IN_MEMORY:
        return Danger("in memory; requests are lost with the power", another)
    if mount.kind == "overlay":
        return Danger("an overlay; what is written may be gone after the next boot", another)
    if mount.kind in WITHOUT_JOURNAL:
        return Danger("without a journal a power cut may damage it", another)
    if wrong := sorted(mount.options & set(DANGEROUS)):
        told = "; ".join(f"{option}: {DANGEROUS[option]}" for option in wrong)
        return Danger(f"mounted with {told}", f"take {', '.join(wrong)} out of /etc/fstab and reboot")
    return None
