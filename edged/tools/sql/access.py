"""Whether a database's files can be read and written by this process, and if not, why: SQLite says of many causes only
"attempt to write a readonly database", even where somebody wants to read."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from edged.host.users import own_name, user_name

BESIDE = ("-wal", "-shm", "-journal")  # files that SQLite makes beside a database, in the same folder
WAL_AT = 18  # of the byte in a database's header that says 2 where its journal is a WAL (sqlite.org/fileformat2.html)
IN_WAL = (
    "The database is in WAL mode, in which SQLite makes files there even for a read; else keep the application running "
    "that writes it, or let it run PRAGMA journal_mode = DELETE"
)


def denied(path: str) -> str | None:
    """What this process may not do with the files of a database, and what to do; None: nothing is in the way.

    A folder counts for reading, too, where the journal is a WAL: SQLite makes files there for every reader.
    """
    database, wal = Path(path), _has_wal(Path(path))
    if not os.access(database, os.R_OK):
        return f"{path} cannot be read by {own_name()}: {_cause(database)}"
    beside = [each for each in (Path(path + end) for end in BESIDE) if each.exists()]
    for each in (database, *beside):
        if not os.access(each, os.W_OK):
            return f"{each} cannot be written by {own_name()}: {_cause(each)}"
    if (wal and len(beside) > 1) or os.access(database.parent, os.W_OK | os.X_OK):  # both files of a WAL are there
        return None
    told = f"{database.parent} cannot be written by {own_name()}: {_cause(database.parent)}"
    return f"{told}. {IN_WAL if wal else 'SQLite makes a journal there for every write'}"


def refusal(path: str) -> str | None:
    """Why a write would fail now, and what to do; None: it would not, or another program writes at the moment. Takes
    the lock of a write and gives it back; nothing is changed."""
    if (why := denied(path)) is not None:
        return why
    writer = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        if _size(path + "-wal"):  # somebody died and left it: closing would move it into the database
            writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        writer.set_busy_timeout(0)
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("ROLLBACK")
    except apsw.BusyError:
        return None
    except apsw.Error as error:
        return f"{path} cannot be written: {error}"
    finally:
        writer.close()
    return None


def _cause(path: Path) -> str:
    """Why a file may not be read or written, as far as it can be told, and what to do."""
    try:
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return "its file system is mounted read-only; remount it writable"
        status = path.stat()
    except OSError as error:
        return error.strerror or type(error).__name__
    if os.geteuid() == 0:
        return "not even root may; lsattr shows whether it is immutable, and chattr -i makes it writable"
    owner, mode = user_name(status.st_uid), f"{status.st_mode & 0o777:o}"
    return f"it belongs to {owner} (mode {mode}); give edged's user the right, by its group or an ACL"


def _has_wal(database: Path) -> bool:
    try:
        with database.open("rb") as file:
            return file.read(WAL_AT + 1)[WAL_AT:] == b"\x02"
    except OSError:
        return False


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
