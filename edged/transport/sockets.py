"""What transports need of Unix sockets: one in its place with its mode and group, and who is at the other end."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from edged.config import Config
from edged.errors import ConfigError

BACKLOG = socket.SOMAXCONN  # connections that wait until they are accepted: at a start, and while the daemon reloads


class Peer(NamedTuple):
    """The process at the other end. pid: 0 where it is none of this PID namespace."""

    pid: int
    uid: int
    groups: list[int]


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


def peer(connected: socket.socket) -> Peer:
    """Who connected, by the credentials the kernel took at connect()."""
    pid, uid, gid = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return Peer(pid, uid, os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    except KeyError:  # a uid without a name, as in containers
        return Peer(pid, uid, [gid])


def _take_place(path: Path) -> None:
    """Remove a socket nobody listens on (left by a killed daemon); refuse to take over a living one's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(str(path), "", f"the socket cannot be made: {error.strerror or error}") from None
    if not stat.S_ISSOCK(there):  # connecting to it is refused as by a dead socket, and it may be somebody's database
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
