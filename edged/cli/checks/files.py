"""The state folder: may it be written, is there room, does its disk keep what it says it keeps, is the store whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import apsw

from edged.cli.checks.finding import Finding, fail, nearest, ok, own_name, user_name, warn
from edged.cli.common import size
from edged.config import Config
from edged.store.schema import MIGRATIONS

MOUNTS = Path("/proc/self/mountinfo")
LEAST_FREE = 16 * 2**20  # bytes; the store's log and a checkpoint of it need a few MiB to get anything done at all
BUSY_MS = 2000  # the daemon may be in the middle of a commit
MAX_PROBLEMS = 5  # of a damaged store: the first ones say it

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


class Mount(NamedTuple):
    """A line of the kernel's list."""

    point: str
    kind: str
    options: frozenset[str]


def look(settings: Config) -> Iterator[Finding]:
    """All about the state folder."""
    for name, check in (("state folder", folder), ("free space", room), ("disk", disk), ("store", store)):
        try:
            yield check(settings)
        except PermissionError as error:
            yield warn(name, f"{error.filename} may not be looked into by {own_name()}", "run: sudo edged doctor")


def folder(settings: Config) -> Finding:
    """Whether the daemon can write there."""
    path = settings.state_dir
    there = nearest(path)
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        do = "remount it writable, or set [node] state_dir to another disk"
        return fail("state folder", f"{path} is on a file system that is mounted read-only", do)
    if there.exists() and not there.is_dir():
        return fail("state folder", f"{there} is no folder", "move it away, or set [node] state_dir")
    if not os.access(there, os.W_OK | os.X_OK):
        owner = user_name(there.stat().st_uid)
        message = f"{there} belongs to {owner} and cannot be written by {own_name()}"
        return warn("state folder", message, f"run edged (and this) as {owner}, or set [node] state_dir")
    made = "" if there == path else "; it is made at the first start"
    return ok("state folder", f"{path} can be written{made}")


def room(settings: Config) -> Finding:
    """Whether the store can grow to its bound."""
    system = os.statvfs(nearest(settings.state_dir))
    free = system.f_bavail * system.f_frsize
    used = _bytes(settings.store_path)
    message = f"{size(free)} free for {settings.state_dir}; [store] max_bytes is {settings.store.max_bytes}"
    do = "free some space, or set [store] max_bytes lower"
    if free < LEAST_FREE:
        return fail("free space", message, do)
    if system.f_files and not system.f_favail:
        return fail("free space", f"no inode is free for {settings.state_dir}", "delete some files")
    if free < settings.store_bytes - used:
        return warn("free space", message, do)
    return ok("free space", message)


def disk(settings: Config) -> Finding:
    """Whether the disk keeps what it says it keeps."""
    path = nearest(settings.state_dir).resolve()
    mount = mount_of(path, MOUNTS.read_text() if MOUNTS.exists() else "")
    if mount is None:
        return ok("disk", "this kernel does not tell how it is mounted")
    where = f"{settings.state_dir} is on {mount.kind} at {mount.point}"
    another = "set [node] state_dir to another disk"
    if mount.kind in NETWORK:
        return fail("disk", f"{where}: over a network the store's files cannot be locked", another)
    if mount.kind in IN_MEMORY:
        return warn("disk", f"{where}: in memory; requests are lost with the power", another)
    if mount.kind == "overlay":
        return warn("disk", f"{where}: an overlay; what is written may be gone after the next boot", another)
    if mount.kind in WITHOUT_JOURNAL:
        return warn("disk", f"{where}: without a journal a power cut may damage it", another)
    if wrong := sorted(mount.options & set(DANGEROUS)):
        told = "; ".join(f"{option}: {DANGEROUS[option]}" for option in wrong)
        return warn("disk", f"{where} with {told}", f"take {', '.join(wrong)} out of /etc/fstab and reboot")
    return ok("disk", where)


def store(settings: Config) -> Finding:
    """Whether edged's own database is whole and of a version we know. Only reads."""
    path = settings.store_path
    if not path.exists():
        return ok("store", f"{path} is made at the first start")
    if not os.access(path, os.R_OK):
        return warn("store", f"{path} may not be read by {own_name()}", "run: sudo edged doctor")
    try:
        version, problems = _read(path)
    except apsw.NotADBError:
        return fail("store", f"{path} is no database", _start_anew(path))
    except apsw.CorruptError as error:
        return fail("store", f"{path} is damaged: {error}", _start_anew(path))
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.BusyError, apsw.IOError) as error:
        return warn("store", f"{path} cannot be looked at now: {error}", "run: sudo edged doctor")
    if problems:
        return fail("store", f"{path} is damaged: {'; '.join(problems)}", _start_anew(path))
    if version > len(MIGRATIONS):
        do = "install that version of edged again, or set [node] state_dir to a new folder"
        return fail("store", f"{path} was made by a newer edged (schema {version}, not {len(MIGRATIONS)})", do)
    older = f", brought to {len(MIGRATIONS)} at the next start" if version < len(MIGRATIONS) else ""
    return ok("store", f"{path} is whole: {size(_bytes(path))}, schema {version}{older}")


def _read(path: Path) -> tuple[int, list[str]]:
    """(schema version, what is wrong). Without a log beside it nobody has the file open: then it is read as it lies,
    because opening it would leave new files in the folder."""
    closed = not path.with_name(f"{path.name}-wal").exists()
    name = (
        f"file:{re.sub(r'[%?#]', lambda m: f'%{ord(m[0]):02x}', str(path))}?mode=ro{'&immutable=1' if closed else ''}"
    )
    connection = apsw.Connection(name, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        connection.set_busy_timeout(BUSY_MS)
        version = cast(int, connection.execute("PRAGMA user_version").get)
        rows = [str(text) for (text,) in connection.execute(f"PRAGMA quick_check({MAX_PROBLEMS})")]
        return version, [] if rows == ["ok"] else rows
    finally:
        connection.close()


def _start_anew(path: Path) -> str:
    return f"stop edged, move {path} (with -wal and -shm) to a safe place, start it again: it begins with an empty one"


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


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
