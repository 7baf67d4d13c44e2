"""A child process of the daemon's that does a tool's work, as the daemon sees it: its output, its group, its end.

The child has a session and a process group of its own: a signal to the group reaches the programs that it started. The
kernel ends the child when the daemon dies, however it dies; what the child started is then left to the service manager.
(While the daemon lives, such a program becomes its child, see `python.orphans`.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from typing import IO, ClassVar

logger = logging.getLogger("edged.tools")

KILL_S = 5.0  # a killed process that is not gone by then hangs in the kernel (a dead disk), and nothing can be done
CHUNK = 1 << 16  # bytes of its output read at once: what a pipe holds
LINES, WINDOW_S = 20, 10.0  # of its output: so many lines in so many seconds are logged, the others counted
MAX_LINE = 1000  # bytes of one line of it


class Child:
    """One child, just started. `ended` gets how it ended ("exit status 1") once it and all of its group are gone or
    going. To be made in the main thread: PR_SET_PDEATHSIG is about the thread that made a process.

    Args:
        title: its name in the log.
        started: with a session of its own.
        printed: what it prints for people, which goes to the log.

    Raises:
        OSError: there are no descriptors; it was killed.
    """

    living: ClassVar[set[int]] = set()  # numbers of those that are not reaped yet, which are also their groups'

    def __init__(self, title: str, started: subprocess.Popen[bytes], printed: IO[bytes]) -> None:
        self._loop = asyncio.get_running_loop()
        self._since = time.monotonic()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.output = Output(title)
        self._child, self._printed = started, printed
        os.set_blocking(printed.fileno(), False)
        try:
            self._handle = os.pidfd_open(started.pid)
        except OSError:
            with started:
                started.kill()
            raise
        self.living.add(started.pid)
        self._loop.add_reader(self._printed.fileno(), self._pump)
        self._loop.add_reader(self._handle, self._gone)

    @property
    def pid(self) -> int:
        """Of the child, and of its group."""
        return self._child.pid

    @property
    def age_s(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._since

    async def end(self, patience_s: float) -> str:
        """Wait so long for its end, then kill it. Returns how it ended."""
        await asyncio.wait({self.ended}, timeout=patience_s)
        if not self.ended.done():
            self.kill()
            await asyncio.wait({self.ended}, timeout=KILL_S)
        return self.ended.result() if self.ended.done() else "it hangs in the kernel and cannot be killed"

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to it and all of its group. Until `ended` the group's number belongs to nobody else."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, how)

    def _pump(self) -> None:
        try:
            data = os.read(self._printed.fileno(), CHUNK)
        except BlockingIOError:
            return
        self.output.feed(data)
        if not data:
            self._loop.remove_reader(self._printed.fileno())

    def _gone(self) -> None:
        """The child is dead but not reaped: nobody else can have its number yet, which is also its group's."""
        self.kill()
        status = self._child.wait()
        self.living.discard(self._child.pid)
        self._loop.remove_reader(self._handle)
        os.close(self._handle)
        self._pump()
        self._loop.remove_reader(self._printed.fileno())
        self._printed.close()
        self.output.end()
        self.ended.set_result(_how(status))


class Output:
    """What a child prints, as lines of the log. `rid` is that of the call that runs or ran last."""

    def __init__(self, title: str) -> None:
        self.rid: str | None = None
        self.last = ""
        self._title = title
        self._rest = b""
        self._window_ends = 0.0
        self._left, self._left_out = LINES, 0

    def feed(self, data: bytes) -> None:
        """Bytes as they come."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            if line.strip():
                self._line(line)

    def end(self) -> None:
        """There comes no more."""
        if self._rest:
            self._line(self._rest)
        self._count()

    def _line(self, line: bytes) -> None:
        if (now := time.monotonic()) >= self._window_ends:
            self._count()
            self._window_ends, self._left = now + WINDOW_S, LINES
        if not self._left:
            self._left_out += 1
            return
        self._left -= 1
        text = line[:MAX_LINE].decode(errors="replace").rstrip().expandtabs()
        self.last = "".join(c if c.isprintable() else "?" for c in text)  # nothing of it steers a terminal
        self._log(self.last)

    def _count(self) -> None:
        if self._left_out:
            self._log(f"({self._left_out} more lines were printed)")
        self._left_out = 0

    def _log(self, text: str) -> None:
        logger.info("%s: %s", self._title, text, extra={"rid": self.rid} if self.rid else {})


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-status}"
