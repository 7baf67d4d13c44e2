"""What transports need of Unix sockets: a socket in its place, with its mode and group, and who is at the other end."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import grp
import os
import pwd
import socket
import stat
import struct
from array import array
from pathlib import Path
from typing import NamedTuple

from edged.config import Config
from edged.errors import ConfigError

BACKLOG = socket.SOMAXCONN  # connections that wait until they are accepted: at a start, and while the daemon reloads

SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; the module has no name for it
PYTHON_BYTES = 1024  # as much as Python's getsockopt() takes: 256 groups
CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
GID = "I"  # gid_t


class Peer(NamedTuple):
    """The process at the other end, as it was at connect(). pid: 0 where it is none of this PID namespace. groups:
    primary and supplementary; None: this kernel does not tell (see `with_groups`)."""

    pid: int
    uid: int
    gid: int
    groups: list[int] | None


def group_of(settings: Config) -> str | None:
    """Name of the group that may connect to our sockets: as configured, else `edged` where there is one and we may give
    it away; None: the process's own."""
    if settings.is_given("ipc", "group"):
        return settings.ipc.group
    try:
        gid = grp.getgrnam(settings.ipc.group).gr_gid
    except KeyError:
        return None
    return settings.ipc.group if os.geteuid() == 0 or gid in os.getgroups() else None


def group_id(name: str | None) -> int:
    """Of the group that may connect; None: the process's own."""
    return grp.getgrnam(name).gr_gid if name else os.getgid()


def listen(path: Path, mode: int, gid: int) -> socket.socket:
    """A listening socket. Blocks.

    Raises:
        ConfigError: it cannot be made, another process answers on it, or what is there is no socket.
    """
    _take_place(path)
    made = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(made.fileno(), 0o600)  # Linux makes the file with this mode: nobody gets in before the group is set
        made.bind(str(path))
        os.chown(path, -1, gid)
        path.chmod(mode)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise ConfigError(str(path), "", f"the socket cannot be made: {error.strerror or error}") from None
    return made


def gid_of(path: Path, otherwise: int) -> int:
    """The group of a socket that was made elsewhere; `otherwise` where its file was deleted, and no one can connect."""
    try:
        return path.stat().st_gid
    except FileNotFoundError:
        return otherwise


def peer(connected: socket.socket) -> Peer:
    """Who connected, by the credentials the kernel took at connect(). The user database is not asked: it does not know
    of groups that a service manager gave to one process (SupplementaryGroups=), and may be behind a network."""
    pid, uid, gid = CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    try:
        raw = connected.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, PYTHON_BYTES)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return Peer(pid, uid, gid, None)
        if error.errno != errno.ERANGE:
            raise
        raw = _many_groups(connected)
    return Peer(pid, uid, gid, [gid, *array(GID, raw)])


async def with_groups(known: Peer) -> Peer:
    """The same with its groups, where need be by the user database, which may take its time."""
    if known.groups is not None:
        return known
    return known._replace(groups=await asyncio.to_thread(_groups_by_name, known.uid, known.gid))


def _groups_by_name(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:  # a uid without a name, as in containers
        return [gid]


def _many_groups(connected: socket.socket) -> bytes:
    """SO_PEERGROUPS of a process with more groups than fit into what Python asks for. Raises OSError."""
    size = ctypes.c_uint32(PYTHON_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    while True:
        buffer = ctypes.create_string_buffer(size.value)
        if not libc.getsockopt(connected.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(size)):
            return buffer.raw[: size.value]
        if (number := ctypes.get_errno()) != errno.ERANGE:  # else the kernel has put there what it needs
            raise OSError(number, os.strerror(number))


def _take_place(path: Path) -> None:
    """Remove a socket nobody listens on (left by a killed daemon); refuse to take over a living one's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(str(path), "", f"the socket cannot be made: {error.strerror or error}") from None
    if not stat.S_ISSOCK(there):  # connecting to it is refused as by a dead socket, and it may be a database
        raise ConfigError(str(path), "", "is in the way: it is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(str(path), "", f"is in the way: {error.strerror or error}") from None
    raise ConfigError(str(path), "", "another process is listening here already")
