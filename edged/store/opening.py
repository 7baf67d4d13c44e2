"""A store's file is opened, or made, and brought up to date; one that is damaged is salvaged first."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import apsw

from edged.errors import ConfigError
from edged.store.recovery import salvage
from edged.store.recovery.salvage import Salvaged

log = logging.getLogger("edged.store")

# Page cache that the writer and the reader may use; the tables are read by index, a few pages at a time, and the kernel
# has the file in its own cache. A commit of many requests has some hundred pages.
CACHE_KIB, READER_CACHE_KIB = 1024, 256
# Of a new file, and of an old one after its next start. A request changes a few bytes on each of 20 pages, and all of a
# page is written: 80 KiB a request with SQLite's default of 4 KiB. The log is written in one piece, so small pages cost
# the medium nothing.
PAGE_BYTES = 512
WAL_BYTES = 4 * 2**20  # what a WAL that had to grow behind a long read is cut back to
ALONE = "unix-excl"  # SQLite's VFS for a file that only one process uses
INCREMENTAL = 2  # PRAGMA auto_vacuum
BUSY_MS = 10_000  # another process (a backup, a curious person with a shell) may hold the file for a moment


def open_or_salvage(
    path: Path, migrations: tuple[str, ...], mend: Callable[[apsw.Connection], None]
) -> tuple[apsw.Connection, Salvaged | None]:
    """The file; a damaged one is set aside, and what can be read of it is in the new one."""
    if not salvage.is_under_way(path):
        suspect = salvage.is_suspect(path)
        try:
            connection = open_file(path, migrations)
            if not suspect or (salvage.is_whole(connection) and _is_sound(connection, path, mend)):
                salvage.marker(path).unlink(missing_ok=True)
                return connection, None
            connection.close()
        except salvage.DAMAGE:
            pass
    aside = salvage.set_aside(path)
    log.error("the store is damaged; it is set aside as %s", aside)
    new = path.with_name(path.name + ".new")
    for suffix in ("", "-wal", "-shm"):
        new.with_name(new.name + suffix).unlink(missing_ok=True)
    connection = open_file(new, migrations[: salvage.version(aside, len(migrations))])
    rows = salvage.copy(aside, connection)
    _migrate(connection, new, migrations)
    mend(connection)
    connection.close()
    salvage.put_in_place(new, path)
    return open_file(path, migrations), Salvaged(str(aside), rows)


def _is_sound(connection: apsw.Connection, path: Path, mend: Callable[[apsw.Connection], None]) -> bool:
    """Whether what rows of a whole file hold can be read: pages have no checksums. Only where somebody met damage."""
    if not salvage.marker(path).exists():
        return True
    before = connection.total_changes()
    connection.execute("BEGIN IMMEDIATE")
    try:
        mend(connection)
        return connection.total_changes() == before
    except salvage.UNREADABLE:  # text that is none
        return False
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def open_file(path: Path, migrations: tuple[str, ...]) -> apsw.Connection:
    """The writer's connection to a file that is there, or is made; its tables are as the migrations leave them."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # SQLite gives its other files the mode of this one
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with contextlib.suppress(PermissionError):  # somebody else's, as a test's may be
        path.chmod(0o600)
    connection = _connected(path)
    _check_version(connection, path, migrations)
    if connection.pragma("auto_vacuum") != INCREMENTAL:  # saying so again would write
        connection.pragma("auto_vacuum", INCREMENTAL)  # before the first table: lets retention shrink the file
    _set_page_size(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("PRAGMA synchronous = FULL")
    _migrate(connection, path, migrations)
    return connection


def _connected(path: Path) -> apsw.Connection:
    """A connection that has read the file. On a full disk there is no room for the index that SQLite keeps beside the
    log, so it is kept in memory then: until the next start no other program can read the file."""
    for vfs in (None, ALONE):
        connection = apsw.Connection(str(path), vfs=vfs)
        connection.set_busy_timeout(BUSY_MS)
        try:
            connection.pragma("user_version")
            return connection
        except apsw.IOError as error:
            connection.close()
            if vfs is not None or getattr(error, "extendedresult", None) != apsw.SQLITE_IOERR_SHMSIZE:
                raise
        log.error("the disk is full; until the next start only the daemon can read its store")
    raise AssertionError


def _set_page_size(connection: apsw.Connection) -> None:
    """Of a new file, before its first table; a file of an earlier edged is written anew, once."""
    if connection.pragma("page_size") == PAGE_BYTES:
        return
    try:
        connection.execute("PRAGMA journal_mode = DELETE")  # in WAL mode the size stays
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("VACUUM")
    except (apsw.FullError, apsw.BusyError) as error:  # it takes twice its size for a moment, and nobody else may read
        log.warning("the store keeps its large pages until the next start, and writes more than it needs to: %s", error)


def open_reader(path: Path, writer: apsw.Connection) -> apsw.Connection:
    """A connection that only reads, beside the writer's."""
    vfs = writer.vfsname("main")  # what that one keeps in memory only the same VFS finds
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=vfs)
    connection.set_busy_timeout(BUSY_MS)
    connection.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB}")
    return connection


def _check_version(connection: apsw.Connection, path: Path, migrations: tuple[str, ...]) -> int:
    version = int(cast(int, connection.execute("PRAGMA user_version").get))
    if version > len(migrations):
        raise ConfigError(str(path), "", f"made by a newer edged (schema {version}, this one knows {len(migrations)})")
    return version


def _migrate(connection: apsw.Connection, path: Path, migrations: tuple[str, ...]) -> None:
    version = _check_version(connection, path, migrations)
    for number, script in enumerate(migrations[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(script)
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
