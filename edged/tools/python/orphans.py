"""Which processes come of Python tools: those are no clients of edged's.

What a tool started and left becomes the daemon's child, not that of init, when its parent ends: so a process comes of a
tool if, and only if, the daemon is among its ancestors. (The daemon's other children talk to nobody.)
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Collection

from edged.host import process

PR_SET_CHILD_SUBREAPER = 36  # prctl.h
TRIES = 5  # a parent may end between two looks, and its child then has another one


def adopt(living: Collection[int]) -> None:
    """From now on orphans of tools are this process's children, and are reaped when they end. In the main thread only,
    as everything about signals.

    Args:
        living: the tools' own processes, which somebody else waits for.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, _bury, living)


def comes_of(pid: int, daemon: int) -> bool:
    """Whether a process of the daemon's own user descends from the daemon. One that is gone, or hides, might,
    and so it does."""
    for _ in range(TRIES):
        if (answer := _look(pid, daemon)) is not None:
            return answer
    return True


def _bury(living: Collection[int]) -> None:
    """Reap orphans that have ended."""
    mine = os.getsid(0)
    for pid in process.children():
        if pid not in living:
            with contextlib.suppress(OSError):  # gone meanwhile; no child of ours
                if os.getsid(pid) != mine:  # what has our session was not left by a tool: each has one of its own
                    os.waitpid(pid, os.WNOHANG)


def _look(pid: int, daemon: int) -> bool | None:
    """None: look again."""
    first = pid
    while pid > 1:
        try:
            pid = process.parent_of(pid)
        except OSError:
            there = _exists(pid)
            if there == "foreign":
                return False
            return True if there == "ours" or pid == first else None
        if pid == daemon:
            return True
    return False


def _exists(pid: int) -> str:
    """Asked without /proc: `ours` (it hides), `foreign` (another user's, which a tool cannot become) or `gone`."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "foreign"
    except ProcessLookupError:
        return "gone"
    return "ours"
