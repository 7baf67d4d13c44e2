"""The sockets that clients connect to. They outlive the parts of the daemon, so a reload refuses no one: meanwhile
clients wait in the kernel's queue. Some were passed by systemd, which keeps them over a restart too; the others are
made here.
"""

from __future__ import annotations

import grp
import logging
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from edged.config import Config
from edged.errors import ConfigError
from edged.transport.base import SocketAddress
from edged.transport.sockets import BACKLOG, group_id, listen

log = logging.getLogger("edged.daemon.listeners")

Name = str | tuple[str, int]  # what getsockname() says: the path, or the numeric host and the port


class _Listening(Struct):
    """A socket; passed: by systemd, which made it and keeps it. file: of a Unix socket that was made here, to be known
    again (device, inode): another program may delete it, and put its own in its place."""

    end: socket.socket
    passed: bool
    file: tuple[int, int] | None = None


class Listeners:
    """Listening sockets by address.

    Args:
        passed: by systemd (see systemd.listen_fds).
    """

    def __init__(self, passed: Iterable[socket.socket] = ()) -> None:
        self._open: dict[Name, _Listening] = {}
        self._names: dict[SocketAddress, list[Name]] = {}
        self._given_up: set[Name] = set()
        for inherited in passed:
            if _listens(inherited):
                self._open[_name(inherited)] = _Listening(inherited, passed=True)
            else:
                log.warning(
                    "socket %s passed by systemd is closed: it is no listening stream socket with a name",
                    inherited.getsockname(),
                    extra={"event": "socket_refused"},
                )
                inherited.close()

    def open(self, settings: Config, addresses: Iterable[SocketAddress], group: str | None) -> None:
        """Have sockets for these addresses, with the mode and group of `[ipc]`. Blocks.

        Raises:
            ConfigError: one cannot be made, or does not agree with what systemd made. Nothing has changed then.
        """
        mode, gid = int(settings.ipc.mode, 8), group_id(group)
        made: dict[Name, _Listening] = {}
        wanted = {address: _names(address) for address in addresses}
        try:
            for name in (name for names in wanted.values() for name in names):
                known = self._open.get(name)
                if known is None or (_made_here(known) and known.file != _file(name)):  # deleted: nobody can connect
                    made[name] = self._make(name, mode, gid)
                elif known.passed and isinstance(name, str):
                    _check_agreement(settings, name)
        except ConfigError:
            for name, listening in made.items():
                _close(name, listening)
            raise
        for name, kept in self._open.items():
            if name in made:
                log.warning("the socket %s was deleted, and is made again", name, extra={"event": "socket_remade"})
                kept.end.close()
            elif _made_here(kept) and kept.file == _file(name):
                os.chown(str(name), -1, gid)
                Path(str(name)).chmod(mode)
        self._open |= made
        self._names |= wanted

    def keep_only(self, addresses: Iterable[SocketAddress]) -> None:
        """Close what no listener of the configuration wants."""
        self._names = {address: self._names[address] for address in addresses}
        for name in self._open.keys() - {name for names in self._names.values() for name in names}:
            listening = self._open.pop(name)
            if listening.passed:
                log.warning(
                    "socket %s passed by systemd is closed: no listener of the configuration wants it",
                    name,
                    extra={"event": "socket_refused"},
                )
                self._given_up.add(name)
            _close(name, listening)

    def sockets(self, address: SocketAddress) -> list[socket.socket]:
        """The sockets of an address: one, or several where a host name has several addresses. They stay the owner's:
        serve a duplicate."""
        return [self._open[name].end for name in self._names[address]]

    def close(self) -> None:
        """The end. What was made here disappears; what systemd passed goes on queueing for the next start."""
        for name, listening in self._open.items():
            _close(name, listening)
        self._open, self._names = {}, {}

    def _make(self, name: Name, mode: int, gid: int) -> _Listening:
        if name in self._given_up:
            raise ConfigError(_text(name), "", "systemd's socket for it was closed: systemctl restart edged")
        if isinstance(name, str):
            return _Listening(listen(Path(name), mode, gid), passed=False, file=_file(name))
        family = socket.AF_INET6 if ":" in name[0] else socket.AF_INET
        try:
            return _Listening(socket.create_server(name, family=family, backlog=BACKLOG), passed=False)
        except OSError as error:
            raise ConfigError(_text(name), "", f"cannot be listened on: {os.strerror(error.errno or 0)}") from None


def _names(address: SocketAddress) -> list[Name]:
    if isinstance(address, Path):
        return [str(address)]
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(_text(address), "", f"no such host: {error.strerror}") from None
    return list(dict.fromkeys((str(place[0]), int(place[1])) for *_, place in found))


def _name(listening: socket.socket) -> Name:
    name = listening.getsockname()
    return name if isinstance(name, str) else (name[0], name[1])


def _text(name: Name) -> str:
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


def _listens(passed: socket.socket) -> bool:
    if passed.type != socket.SOCK_STREAM or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    if passed.family == socket.AF_UNIX:
        return isinstance(passed.getsockname(), str)  # an abstract one has no file, so no group could guard it
    return passed.family in (socket.AF_INET, socket.AF_INET6)


def _made_here(listening: _Listening) -> bool:
    """Whether it is a Unix socket of ours, with a file to look after."""
    return listening.file is not None


def _file(name: Name) -> tuple[int, int] | None:
    """The file of a Unix socket's name as it is now; None: there is none."""
    try:
        status = Path(str(name)).lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_agreement(settings: Config, path: str) -> None:
    """The unit made the socket: `[ipc]` may repeat its mode and group, not contradict them."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        about = {"event": "socket_gone"}
        log.error("systemd's socket %s was deleted: systemctl restart edged.socket edged", path, extra=about)
        return
    mode = stat.S_IMODE(status.st_mode)
    if settings.is_given("ipc", "mode") and int(settings.ipc.mode, 8) != mode:
        problem = f"systemd made {path} with mode {mode:04o}: take the key out, or change SocketMode= of edged.socket"
        raise settings.error(("ipc", "mode"), f"{settings.ipc.mode!r}, but {problem}")
    if settings.is_given("ipc", "group") and group_id(settings.ipc.group) != status.st_gid:
        owner = _group_name(status.st_gid)
        problem = f"systemd made {path} for group {owner}: take the key out, or change SocketGroup= of edged.socket"
        raise settings.error(("ipc", "group"), f"{settings.ipc.group!r}, but {problem}")


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _close(name: Name, listening: _Listening) -> None:
    listening.end.close()
    if listening.file is None or listening.file != _file(name):
        return
    try:
        Path(str(name)).unlink(missing_ok=True)
    except OSError as error:  # the folder became read-only, say; the next start takes the place of a dead socket
        log.warning("the socket %s stays there: %s", name, error.strerror, extra={"event": "socket_left"})
