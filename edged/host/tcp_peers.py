"""Which of our descendants is at the other end of a TCP connection from this board: the kernel does not say it with the
connection, as it does for a Unix socket, but it lists all sockets."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from edged.host import process

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))  # proc_pid_net(5)
LOCAL, REMOTE, UID, INODE = 1, 2, 7, 9  # columns


def descendant_with(port: int, ours: int) -> int | None:
    """The process that this one started, or that one of those did, with the other end of a connection; None: it is
    somebody else's. Blocks for milliseconds where there are such processes.

    Args:
        port: of the other end. ours: of this end.
    """
    started = list(_descendants())
    if not started:
        return None
    sockets = {f"socket:[{inode}]" for inode in _inodes(port, ours)}
    return next((pid for pid in started if _holds(pid, sockets)), None)


def row_of(host: str, port: int) -> tuple[Path, str]:
    """(table, socket): where the kernel lists a socket with this address, and how it writes it there."""
    address = ipaddress.ip_address(host)
    words = [address.packed[at : at + 4] for at in range(0, len(address.packed), 4)]  # each in the machine's order
    written = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return TABLES[0 if address.version == 4 else 1], f"{written}:{port:04X}"


def _descendants() -> Iterator[int]:
    waiting = process.children()
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += process.children(pid)


def _inodes(port: int, ours: int) -> Iterator[int]:
    """Of the sockets with these ports that belong to our user: on loopback there may be one for each address."""
    ends, user = (f":{port:04X}", f":{ours:04X}"), str(os.getuid())
    for table in TABLES:
        try:
            rows = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:  # a kernel without IPv6
            continue
        for row in rows:
            fields = row.split()
            if fields[LOCAL].endswith(ends[0]) and fields[REMOTE].endswith(ends[1]) and fields[UID] == user:
                yield int(fields[INODE])


def _holds(pid: int, sockets: set[str]) -> bool:
    with contextlib.suppress(OSError):  # it has ended, and its connection with it
        for descriptor in process.descriptors(pid):
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(descriptor.readlink()) in sockets:
                    return True
    return False
