"""Who says that memory is short without being asked: the service manager, or the kernel's PSI triggers.

The service manager's protocol is `$MEMORY_PRESSURE_WATCH` of systemd ("Memory Pressure Handling"): what the path is
decides how it is used. A trigger of our own is the same without a service manager: a line written into a file of PSI
(the kernel's documentation, accounting/psi), which then has urgent data whenever the stall it names has been reached.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
from pathlib import Path
from typing import Protocol

from edged.host import cgroups

BOARD = Path("/proc/pressure/memory")
OFF = Path("/dev/null")
# Some task waited for memory for a tenth of two seconds: what systemd asks for, too. Who has no CAP_SYS_RESOURCE gets
# triggers only since Linux 6.5, and with windows of whole multiples of 2 s only (EINVAL for others; EPERM before).
TRIGGER = b"some 200000 2000000"
CHUNK = 4096
CONNECT_S = 1.0  # the service manager answers at once; a start must not wait for one that does not


class Unwatchable(Exception):
    """Nothing will come from there, or no more; the message says why."""


class _File(Protocol):
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Signal:
    """Something that is heard of from time to time. Belongs to the running loop.

    Args:
        name: where it comes from; told as part of the reason.
        file: is watched, and closed with this.
        urgent: it is heard by urgent data (POLLPRI), and nothing is read; else by any data, which is discarded.

    Raises:
        Unwatchable: the kernel does not tell of such a file.
    """

    def __init__(self, name: str, file: _File, *, urgent: bool) -> None:
        self.name = name
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._heard = asyncio.Event()
        self._trouble: str | None = None
        self._epoll: select.epoll | None = None
        try:
            if urgent:
                # asyncio's selector knows no POLLPRI; an epoll descriptor that is ready can itself be read. By edge: it
                # stays ready for ever where nobody reads what made it so.
                self._epoll = select.epoll()
                self._epoll.register(file.fileno(), select.EPOLLPRI | select.EPOLLET)
            self._watched = self._epoll.fileno() if self._epoll else file.fileno()
            self._loop.add_reader(self._watched, self._on_urgent if urgent else self._on_data)
        except OSError as error:  # EPERM: an ordinary file
            self._close_files()
            raise Unwatchable(f"{name} cannot be watched: {error.strerror}") from None

    async def next(self) -> None:
        """Return at the next signal; those that came since the last call are one. Raises Unwatchable at its end."""
        await self._heard.wait()
        self._heard.clear()
        if self._trouble:
            raise Unwatchable(self._trouble)

    def close(self) -> None:
        """Watch no longer."""
        self._loop.remove_reader(self._watched)
        self._close_files()

    def _close_files(self) -> None:
        if self._epoll:
            self._epoll.close()
        self._file.close()

    def _on_urgent(self) -> None:
        # Being called is the signal: asking whether it is ready has used it up already, for a trigger of PSI.
        assert self._epoll is not None
        if any(events & (select.EPOLLERR | select.EPOLLHUP) for _, events in self._epoll.poll(0)):
            self._end(f"{self.name} is gone")
        self._heard.set()

    def _on_data(self) -> None:
        try:
            while True:
                if not os.read(self._file.fileno(), CHUNK):
                    self._end(f"{self.name} was closed at the other end")
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(f"{self.name} cannot be read: {error.strerror}")
        self._heard.set()

    def _end(self, trouble: str) -> None:
        self._trouble = trouble
        self._loop.remove_reader(self._watched)


async def from_manager(path: Path, text: bytes) -> Signal | None:
    """The service manager's signal; None: it wants none to be watched.

    Args:
        path: `$MEMORY_PRESSURE_WATCH`.
        text: what is to be written there first (`$MEMORY_PRESSURE_WRITE`, decoded); may be empty.

    Raises:
        Unwatchable: nothing, or nothing of the kind, is there.
    """
    name = f"the service manager's {path}"
    if path == OFF:
        return None
    try:
        mode = path.stat().st_mode
        if stat.S_ISSOCK(mode):
            return Signal(name, await _connect(path, text), urgent=False)
        if stat.S_ISFIFO(mode):
            # for writing, too: a writer that closes it is no end
            return Signal(name, _Descriptor(path), urgent=False)
        if stat.S_ISREG(mode):
            return Signal(name, _Descriptor(path, text), urgent=True)
    except (OSError, TimeoutError) as error:
        raise Unwatchable(f"{name} cannot be used: {_why(error)}") from None
    raise Unwatchable(f"{name} is neither a file, a FIFO nor a socket")


def trigger(path: Path, name: str) -> Signal:
    """A trigger of PSI of our own.

    Raises:
        Unwatchable: the kernel has no PSI, or gives no triggers to such as us.
    """
    try:
        return Signal(f"{name} ({path})", _Descriptor(path, TRIGGER + b"\0"), urgent=True)
    except OSError as error:
        raise Unwatchable(f"no trigger on {path}: {_why(error)}") from None


def own_group(root: Path | None = None, listing: Path | None = None) -> Path | None:
    """`memory.pressure` of the own cgroup; None where there is none, as with cgroup v1, or where it is the board's, as
    in the root. A container's root is a group like any other: it has a type. root, listing: see `cgroups`."""
    folder = next((path for version, path in cgroups.own("memory", root, listing) if version == 2), None)
    if folder is None or not (folder / "memory.pressure").is_file():
        return None
    is_group = folder != (root or cgroups.ROOT) or (folder / "cgroup.type").exists()
    return folder / "memory.pressure" if is_group else None


class _Descriptor:
    """A file as the kernel has it, opened to be read and written, without ever waiting."""

    def __init__(self, path: Path, text: bytes = b"") -> None:
        self._number = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if text:
                os.write(self._number, text)
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        os.close(self._number)


async def _connect(path: Path, text: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(CONNECT_S):
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, str(path))
            await loop.sock_sendall(connection, text)
    except BaseException:
        connection.close()
        raise
    return connection


def _why(error: OSError | TimeoutError) -> str:
    return getattr(error, "strerror", None) or "it does not answer"
