"""Keeps edged's own files from the process of a Python tool or of an MCP server, and from every process it starts
(Landlock). A process cannot take that off again. Tools may not send signals to other processes either.

A Landlock rule allows access below a folder, and no other rule takes a part of that away. So each entry of each folder
on the way to a file of edged's is allowed by itself, and the rest of the disk as a whole. A folder that holds a file of
edged's, or leads to one, takes no new entries from a tool.

    https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from edged.config import Config

# linux/landlock.h. The system calls have one number on all architectures.
CREATE_RULESET, ADD_RULE = 444, 445
VERSION = 1 << 0  # of the interface, in place of a ruleset
PATH_BENEATH = 1
WRITE_FILE, READ_FILE = 1 << 1, 1 << 2
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER = 1 << 13  # since version 2 (Linux 5.19): to rename and link between folders
TRUNCATE = 1 << 14  # since version 3 (Linux 6.2): before, a tool can empty what it cannot write
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1  # of the network: since version 4 (Linux 6.7)
NETWORK_SINCE = 4
SCOPE_SIGNAL = 1 << 1  # since version 6 (Linux 6.12)

# Listing folders (the names of edged's files are no secret) and running programs are not restricted.
FILE = WRITE_FILE | READ_FILE
FOLDER = REMOVE_DIR | REMOVE_FILE | MAKE_CHAR | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK | MAKE_SYM
SINCE = {2: REFER, 3: TRUNCATE}
OF_FILES = FILE | TRUNCATE  # what a rule about something that is no folder may name

WHY_NOT = {
    errno.ENOSYS: "this kernel has no Landlock (Linux 5.13 or later, CONFIG_SECURITY_LANDLOCK)",
    errno.EOPNOTSUPP: "Landlock is switched off; add landlock to lsm= on the kernel's command line",
    errno.EPERM: "a system call filter forbids Landlock",
}


class OwnFiles(Struct, frozen=True):
    """Files and folders that are edged's own. hidden: no tool opens them, nor what has such a name with "-" or "." and
    more after it (journals, copies). kept: tools read them and do not change them."""

    hidden: frozenset[Path] = frozenset()
    kept: frozenset[Path] = frozenset()


NONE = OwnFiles()  # tools may touch everything


def own_files(settings: Config) -> OwnFiles:
    """What the tools of a configuration may not touch."""
    hidden = {settings.store_path, settings.state_dir / "edged.lock", settings.state_dir / "models.json"}
    hidden |= {settings.state_dir / name for name in ("digests.json", "calibrations", "mcp")}
    sockets = {path for path in (settings.socket_path, *settings.http_listeners) if isinstance(path, Path)}
    hidden |= {settings.snapshots_dir, *sockets, *map(Path, settings.secret_files)}
    if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
        hidden.add(Path(credentials))
    kept = {*map(Path, settings.files), settings.models_dir}
    return OwnFiles(frozenset(path.resolve() for path in hidden), frozenset(path.resolve() for path in kept))


def missing() -> str | None:
    """Why this kernel keeps tools from nothing; None where it does."""
    try:
        _version()
    except OSError as error:
        return WHY_NOT.get(error.errno or 0, f"Landlock: {error.strerror}")
    return None


def missing_network() -> str | None:
    """Why this kernel keeps the network from nothing; None where it does."""
    if (why := missing()) is not None:
        return why
    return None if _version() >= NETWORK_SINCE else "this kernel's Landlock knows no network (Linux 6.7 or later)"


def ruleset(own: OwnFiles, *, network: bool = True) -> int | None:
    """A ruleset that keeps edged's own files from a process: a descriptor, for landlock_restrict_self(2) in that
    process; None where the kernel has no Landlock. Looks at every folder on the way to these files: blocks for
    milliseconds.

    Args:
        network: whether the process may open TCP connections, and take some.

    Raises:
        OSError: the kernel refuses what it should take.
    """
    if missing() is not None:
        return None
    version = _version()
    handled = FILE | FOLDER
    for since, rights in SINCE.items():
        handled |= rights if version >= since else 0
    attributes = struct.pack("=Q", handled)
    if version >= NETWORK_SINCE:
        attributes += struct.pack("=Q", 0 if network else BIND_TCP | CONNECT_TCP)
    if version >= 6:
        attributes += struct.pack("=Q", SCOPE_SIGNAL)
    made = _call(CREATE_RULESET, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0)
    try:
        for path, rights in _allowed(own, Path("/")):
            _allow(made, path, rights & handled)
    except BaseException:
        os.close(made)
        raise
    return made


def _allowed(own: OwnFiles, folder: Path) -> Iterator[tuple[Path, int]]:
    """(path, rights) of what lies in a folder that holds something of edged's or leads there."""
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.is_symlink() or _is_hidden(path, own):
            continue  # what a link leads to has a rule of its own
        if any(path in each.parents for each in own.hidden | own.kept):
            yield from _allowed(own, path)
        elif path in own.kept:
            yield path, READ_FILE
        else:
            yield path, FILE | FOLDER | REFER | TRUNCATE


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # not readable for us, so not for a tool
        return []


def _is_hidden(path: Path, own: OwnFiles) -> bool:
    return path in own.hidden or any(
        path.parent == each.parent and path.name.startswith((f"{each.name}-", f"{each.name}.")) for each in own.hidden
    )


def _allow(made: int, path: Path, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or beyond what this user may see
        return
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= OF_FILES
        rule = struct.pack("=Qi", rights, opened)
        _call(ADD_RULE, made, PATH_BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    except OSError as error:
        if error.errno != errno.EBADFD:  # of a file system that has no paths: nothing to allow
            raise
    finally:
        os.close(opened)


def _version() -> int:
    return _call(CREATE_RULESET, None, 0, VERSION)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _call(number: int, *arguments: object) -> int:
    values = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(_libc().syscall(ctypes.c_long(number), *values))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
