"""How the daemon's last process ended, as far as its successor can know: whether the process itself was at fault, or
somebody ended it.

* Under systemd the unit's ExecStopPost leaves $SERVICE_RESULT, $EXIT_CODE, $EXIT_STATUS and the cgroup's count of OOM
  kills in the runtime folder. The watchdog, a signal that a process brings on itself, an exit with an error and the
  kernel's OOM killer are the process's own fault. SIGTERM and SIGKILL otherwise come from systemd or an administrator.
* Without systemd nobody tells. A signal that the process brought on itself leaves the stacks of its threads in a file
  (faulthandler); an OOM kill shows in the cgroup's counter, which is compared with what it was when the process
  started. What leaves neither was SIGKILL, and nothing tells who sent it: it is taken for an administrator's. If it was
  none, the request that is to blame soon runs alone, and is found by that.
* Whether the board was switched off meanwhile, the boot id in the store tells.

The files lie in the runtime folder. Where that is in memory, as it should be, they are gone with the power.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from edged.host import memory, process

RECORD = "last-end"  # written by ExecStopPost, see systemd/edged.service
NOTE = "process"  # written by the process when it begins
STACKS = "stacks"  # written by faulthandler when the process dies of itself
# Signals that a process brings on itself. SIGABRT is also the watchdog's.
OWN_SIGNALS = {"ABRT", "BUS", "FPE", "ILL", "SEGV", "SYS", "TRAP", "XCPU", "XFSZ"}
KILL = "KILL"
MAX_BYTES = 64 * 1024  # of the stacks that are told: some hundred frames of all threads

_stacks: IO[str] | None = None  # open as long as the process lives: faulthandler writes to it


class LastEnd(Struct, frozen=True):
    """own: the process was at fault. how: in words. stacks: of its threads, where they are known."""

    own: bool
    how: str
    stacks: str = ""


class _Note(Struct):
    """A process, and how many OOM kills its cgroup had seen when it began; None: that is not known."""

    pid: int
    began_ticks: int
    oom_kills: int | None


def take(folder: Path) -> LastEnd | None:
    """How the last process that called this for the folder ended; None: it was this one, which has not ended. Begins
    to watch this process. Blocks for the time of some small files.

    Args:
        folder: the runtime folder by the configuration; the unit knows the one that systemd made.
    """
    me = _Note(os.getpid(), process.began_ticks(), memory.oom_kills())
    before = _read_note(folder / NOTE)
    if before is not None and (before.pid, before.began_ticks) == (me.pid, me.began_ticks):
        return None
    told_in = Path(os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or folder)
    record, stacks = _take_text(told_in / RECORD), _take_text(folder / STACKS)
    _watch(folder, me)
    then = 0 if before is None or before.oom_kills is None else before.oom_kills
    if record:
        return by_record(record, oom_kills_before=then)
    if stacks:
        return LastEnd(True, "it died of a fault of its own", stacks)
    if before is not None and before.oom_kills is not None and (me.oom_kills or 0) > before.oom_kills:
        return LastEnd(True, "the kernel ended it for its memory")
    return LastEnd(False, "it was killed" if before is not None else "nothing is known of it")


def admit(how: str) -> None:
    """This process is about to end at once through a fault of its own, without a signal."""
    if _stacks is not None:
        _stacks.write(f"{how}\n")
        _stacks.flush()


def by_record(record: str, *, oom_kills_before: int) -> LastEnd:
    """What ExecStopPost has written: `SERVICE_RESULT EXIT_CODE EXIT_STATUS [OOM_KILLS]`."""
    result, code, status, kills, *_ = *record.split(), "", "", "", ""
    how = f"{result}: {code} {status}"
    if result in ("watchdog", "oom-kill"):
        return LastEnd(True, how)
    if code in ("killed", "dumped"):
        oom = status == KILL and kills.isdecimal() and int(kills) > oom_kills_before
        return LastEnd(oom or status in OWN_SIGNALS, f"{how}, by the OOM killer" if oom else how)
    return LastEnd(code == "exited" and status != "0", how)


def _watch(folder: Path, me: _Note) -> None:
    """From now on the folder tells of this process. A folder that cannot be written costs the next start this."""
    global _stacks
    with contextlib.suppress(OSError):
        (folder / NOTE).write_bytes(msgspec.json.encode(me))
        if not faulthandler.is_enabled():  # else the stacks go to stderr, where somebody wants them
            _stacks = (folder / STACKS).open("w")
            faulthandler.enable(_stacks)


def _read_note(path: Path) -> _Note | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Note)
    except (OSError, msgspec.MsgspecError):
        return None


def _take_text(path: Path) -> str:
    """Read it once; empty where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_BYTES).strip()
        path.unlink()
    except OSError:
        return ""
    return text
