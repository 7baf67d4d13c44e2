"""Which processes were started by Python tools: they are not clients of edged.

A process that outlives the tool that started it becomes the daemon's child instead of init's. So a tool started a
process if, and only if, the daemon is among its ancestors. (The daemon's other children connect to nothing.)
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
    """From now on orphans of tools become this process's children, and are reaped when they end. To be called in the
    main thread: it installs a signal handler.

    Args:
        living: numbers of the tools' own processes, which `process` reaps.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, _reap, living)


def comes_of(pid: int, daemon: int) -> bool:
    """Whether a process of the daemon's own user descends from the daemon. The answer is yes where nobody can tell: the
    process is gone, or hidden."""
    for _ in range(TRIES):
        if (answer := _look(pid, daemon)) is not None:
            return answer
    return True


def _reap(living: Collection[int]) -> None:
    """Reap orphans that have ended."""
    mine = os.getsid(0)
    for pid in process.children():
        if pid not in living:
            with contextlib.suppress(OSError):  # gone meanwhile; no child of ours
                if os.getsid(pid) != mine:  # tools have sessions of their own, so a child in ours is not from one
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
    """What kill(2) tells of a process: `ours` (and /proc hides it), `foreign` (another user's; a tool cannot become
    one) or `gone`."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "foreign"
    except ProcessLookupError:
        return "gone"
    return "ours"
