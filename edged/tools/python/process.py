"""The daemon's end of a child process that runs Python tools: its start, its calls, its output, every way it may end.

The child has a session and a process group of its own: a signal to the group reaches the programs a tool started. The
kernel ends the child when the daemon dies, however it dies; what a tool started is then left to the service manager.
(While the daemon lives, such a program becomes its child, see `orphans`.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

import msgspec
from msgspec import Struct

from edged.config import PythonTool, parse_bytes
from edged.errors import ToolFailed
from edged.host import systemd
from edged.tools.python import child, orphans
from edged.tools.python.child import HEAD, Answer, Hello
from edged.tools.python.landlock import OwnFiles, ruleset
from edged.types import JSON
from edged.wire import MAX_DEPTH, depth

logger = logging.getLogger("edged.tools")

START_S = 30.0  # to import a module: a large one takes ten seconds from the card of a small board
END_S = 2.0  # a child that is not needed any more may close what it holds; what is not over then is killed
DYING_S = 1.0  # between the end of the channel and that of the process: else its exit status would be our SIGKILL
KILL_S = 5.0  # a killed process that is not gone by then hangs in the kernel (a dead disk), and nothing can be done
MAX_FRAME = 1 << 20  # bytes; an answer has a tenth of it at most, so more is a tool that wrote into its channel
CHUNK = 1 << 16  # bytes of a tool's output read at once: what a pipe holds
LINES, WINDOW_S = 20, 10.0  # of a tool's output: so many lines in so many seconds are logged, the others counted
MAX_LINE = 1000  # bytes of one line of it


T = TypeVar("T")


class Died(Exception):
    """The child ended, or spoke nonsense and was killed; the message says how."""


class Nonsense(Exception):
    """A frame that no child of ours writes."""


class Module(Struct, frozen=True):
    """What a child serves: functions of a module in a folder.

    memory: bytes of private memory. file_bytes: of the largest file it may write. own: what it may not touch.
    """

    folder: Path
    name: str
    memory: int
    file_bytes: int
    own: OwnFiles


def module_of(tool: PythonTool, folder: Path, own: OwnFiles) -> Module:
    """The module of a tool."""
    name = tool.python.partition(":")[0]
    return Module(folder, name, parse_bytes(tool.memory), parse_bytes(tool.file_size), own)


class Process:
    """One child, made by `start`. `ended` gets how it ended ("exit status 1") once it and all of its group are gone or
    going.

    Args:
        title: its name in the log.
        rules: a ruleset of Landlock's, or None.

    Raises:
        OSError: the system starts no process.
    """

    living: ClassVar[set[int]] = set()  # numbers of those that are not reaped yet, which are also their groups'

    def __init__(self, title: str, module: Module, functions: Sequence[str], rules: int | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._since = time.monotonic()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.output = _Output(title)
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        try:
            with theirs:
                self._child, self._printed, self._handle = _spawn(theirs.fileno(), rules, module, functions)
        except OSError:
            self._channel.close()
            raise
        self.living.add(self._child.pid)
        self._loop.add_reader(self._printed.fileno(), self._pump)
        self._loop.add_reader(self._handle, self._gone)

    @classmethod
    async def start(cls, title: str, module: Module, functions: Sequence[str]) -> Process:
        """Start one.

        Raises:
            ToolFailed: the system starts no process.
        """
        orphans.adopt(cls.living)
        rules = None
        try:
            rules = await asyncio.to_thread(ruleset, module.own)  # it looks at folders
            return cls(title, module, functions, rules)
        except OSError as error:
            raise ToolFailed(f"no process could be started for it: {error.strerror}") from None
        finally:
            if rules is not None:
                os.close(rules)

    @property
    def age_s(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._since

    async def hello(self) -> Hello:
        """What it says of itself when it has imported its module. Every failure is a `problem` of the answer."""
        try:
            async with asyncio.timeout(START_S):
                return await self._spoken(self._read(Hello))
        except TimeoutError:
            await self.end(0)
            return Hello(problem=f"cannot be imported: that took longer than {START_S:.0f} s")
        except Died as died:
            said = f"; it printed last: {self.output.last}" if self.output.last else ""
            return Hello(problem=f"cannot be imported: its process ended meanwhile ({died}){said}")

    async def call(self, packed: bytes) -> tuple[Answer, JSON]:
        """The answer to a `Call` (msgpack), and its result. Cancelled, it leaves a process that can only be ended.

        Raises:
            Died: there is no answer and no process any more.
        """
        return await self._spoken(self._exchange(packed))

    async def end(self, patience_s: float) -> str:
        """Wait so long for its end, then kill it. Returns how it ended."""
        await asyncio.wait({self.ended}, timeout=patience_s)
        if not self.ended.done():
            self.kill()
            await asyncio.wait({self.ended}, timeout=KILL_S)
        self._channel.close()
        return self.ended.result() if self.ended.done() else "it hangs in the kernel and cannot be killed"

    def dismiss(self) -> None:
        """Let it end by itself; whoever does not within END_S is killed. Only while nobody talks to it."""
        self._channel.close()
        killing = self._loop.call_later(END_S, self.kill)
        self.ended.add_done_callback(lambda _: killing.cancel())

    def kill(self) -> None:
        """Kill it and all of its group. Until `ended` the group's number belongs to nobody else."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)

    async def _spoken(self, talk: Coroutine[Any, Any, T]) -> T:
        try:
            return await talk
        except (EOFError, OSError):
            raise Died(await self.end(DYING_S)) from None
        except Nonsense:
            await self.end(0)
            raise Died("killed, because it wrote into edged's own channel") from None

    async def _exchange(self, packed: bytes) -> tuple[Answer, JSON]:
        await self._loop.sock_sendall(self._channel, len(packed).to_bytes(HEAD) + packed)
        answer = await self._read(Answer)
        value = value_of(answer)
        if depth(value) > MAX_DEPTH:
            return Answer(error=f"its result is nested deeper than {MAX_DEPTH} levels"), None
        return answer, value

    async def _read(self, kind: type[T]) -> T:
        size = int.from_bytes(await self._exactly(HEAD))
        if size > MAX_FRAME:
            raise Nonsense
        return decoded(await self._exactly(size), kind)

    async def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = await self._loop.sock_recv(self._channel, size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

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


def decoded(frame: bytes, kind: type[T]) -> T:
    """A frame as what it has to be. Raises Nonsense."""
    try:
        return msgspec.msgpack.decode(frame, type=kind)
    except (ValueError, RecursionError):  # also text that is not UTF-8
        raise Nonsense from None


def value_of(answer: Answer) -> JSON:
    """The result of an answer; None where it has none. Raises Nonsense."""
    try:
        return msgspec.json.decode(answer.result) if answer.result else None
    except (ValueError, RecursionError):
        raise Nonsense from None


class _Output:
    """What a tool prints, as lines of the log. `rid` is that of the call that runs or ran last."""

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


def _spawn(
    channel: int, rules: int | None, module: Module, functions: Sequence[str]
) -> tuple[subprocess.Popen[bytes], IO[bytes], int]:
    """The child, what it prints, and its pidfd. In the main thread only: PR_SET_PDEATHSIG is about the thread that made
    it, not about the process.

    Raises:
        OSError: the system refuses; nothing was started.
    """
    limits = [str(module.memory), str(module.file_bytes)]
    own = [str(channel), "" if rules is None else str(rules), str(os.getpid()), *limits, module.name]
    started = subprocess.Popen(
        [sys.executable, "-P", child.__file__, *own, *functions],  # -P: only the tools' folder, not that of this file
        cwd=module.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[channel] if rules is None else [channel, rules],
        env=systemd.child_environment(),
        start_new_session=True,
    )
    assert started.stdout is not None
    os.set_blocking(started.stdout.fileno(), False)
    try:
        return started, started.stdout, os.pidfd_open(started.pid)
    except OSError:
        with started:
            started.kill()
        raise


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-status}"
