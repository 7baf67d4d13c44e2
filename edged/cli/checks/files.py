"""The state folder: may it be written, is there room, does its disk keep what it says it keeps, is the store whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import apsw

from edged.cli.checks.finding import Finding, fail, nearest, ok, warn
from edged.cli.common import size
from edged.config import Config
from edged.host import mounts
from edged.host.users import own_name, user_name
from edged.store.recovery import salvage
from edged.store.schema import MIGRATIONS

LEAST_FREE = 16 * 2**20  # bytes; the store's log and a checkpoint of it need a few MiB to get anything done at all
BUSY_MS = 2000  # the daemon may be in the middle of a commit
MAX_PROBLEMS = 5  # of a damaged store: the first ones say it


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
    mount = mounts.mount_of(nearest(settings.state_dir).resolve(), mounts.read())
    if mount is None:
        return ok("disk", "this kernel does not tell how it is mounted")
    where = f"{settings.state_dir} is on {mount.kind} at {mount.point}"
    if (danger := mounts.danger(mount)) is None:
        return ok("disk", where)
    return (fail if danger.fatal else warn)("disk", f"{where}: {danger.what}", danger.do)


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
    suspect = salvage.marker(path)
    told = "the start sets it aside and salvages what can be read of it"
    return f"run: sudo touch {suspect}, and restart edged: {told}"


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
