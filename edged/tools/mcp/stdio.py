"""An MCP server that is a child process: JSON-RPC in lines on its standard input and output.

It runs in the sandbox of Python tools (`launch`). What it writes on stderr is in the log, bounded. One that writes
lines without end, or a line that is too long, is ended: it can hurt nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.host import systemd
from edged.tools.child import Child
from edged.tools.mcp.channel import MAX_MESSAGE, Channel, Gone, answer_to, parsed, result_of
from edged.tools.python import orphans
from edged.tools.python.landlock import OwnFiles, ruleset
from edged.types import JSON
from edged.wire import mcp

INHERITED = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "USER")  # of the environment; no secret is among them
END_S = 2.0  # after its input is closed; then SIGTERM, and so long again; then it is killed
DYING_S = 1.0  # between the end of its output and that of the process
WRITE_S = 10.0  # a server that does not read its input for so long hangs
UNASKED, WINDOW_S = 1000, 10.0  # messages and lines that answer nothing: of more in so many seconds it is ended


class Program(Struct, frozen=True):
    """What is started. memory: bytes of private memory; file_bytes: of the largest file that it may write."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    network: bool
    memory: int
    file_bytes: int
    own: OwnFiles


class StdioChannel(Channel):
    """One process, made by `start`."""

    def __init__(self, child: Child, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._child, self._reader, self._writer = child, reader, writer
        self._waiting: dict[int, asyncio.Future[JSON]] = {}
        self._last = 0
        self._lost: str | None = None
        self._unasked, self._window_ends = 0, 0.0
        self._sending: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._listen(), name="edged.mcp.listen")

    @classmethod
    async def start(cls, title: str, program: Program) -> StdioChannel:
        """Start one.

        Raises:
            Gone: the system starts no process.
        """
        orphans.adopt(Child.living)
        rules = None
        try:
            rules = await asyncio.to_thread(ruleset, program.own, network=program.network)  # it looks at folders
            started = _spawn(rules, program)
            assert started.stdin
            assert started.stdout
            assert started.stderr
            child = Child(title, started, started.stderr)
        except OSError as error:
            raise Gone(f"it could not be started: {error.strerror}") from None
        finally:
            if rules is not None:
                os.close(rules)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_MESSAGE)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), started.stdout)
        out, protocol = await loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(loop=loop), started.stdin
        )
        return cls(child, reader, asyncio.StreamWriter(out, protocol, None, loop))

    @property
    def lost(self) -> str | None:
        """See Channel."""
        return self._lost

    async def request(self, method: str, params: dict[str, JSON], headers: Mapping[str, str]) -> JSON:
        """See Channel."""
        if self._lost is not None:
            raise Gone(self._lost)
        self._last += 1
        number = self._last
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(mcp.request(number, method, params))
            return await self._waiting[number]
        except asyncio.CancelledError:
            if method != mcp.INITIALIZE and self._lost is None:  # the one that may not be cancelled
                why = {"requestId": number, "reason": "nobody waits for it any more"}
                self._send_later(mcp.notification(mcp.CANCELLED, why))
            raise
        finally:
            waits = self._waiting.pop(number)
            if waits.done() and not waits.cancelled():
                waits.exception()  # else asyncio complains where nobody got so far as to await it

    async def notify(self, method: str, params: dict[str, JSON] | None, headers: Mapping[str, str]) -> None:
        """See Channel."""
        await self._send(mcp.notification(method, params))

    async def close(self) -> None:
        """See Channel. Its input is closed, then it is asked to end, then it is killed."""
        self._end("it was stopped")
        self._writer.close()
        await asyncio.wait({self._child.ended}, timeout=END_S)
        self._child.kill(signal.SIGTERM)
        await self._child.end(END_S)
        self._task.cancel()
        await asyncio.wait({self._task, *self._sending})

    async def _send(self, message: dict[str, JSON]) -> None:
        if self._lost is not None:
            raise Gone(self._lost)
        try:
            async with asyncio.timeout(WRITE_S):
                self._writer.write(msgspec.json.encode(message) + b"\n")
                await self._writer.drain()
        except TimeoutError:
            self._kill(f"killed, because it has not read its input for {WRITE_S:g} s")
            raise Gone(str(self._lost)) from None
        except OSError:
            raise Gone(await self._how()) from None

    def _send_later(self, message: dict[str, JSON]) -> None:
        async def send() -> None:
            with contextlib.suppress(Gone):
                await self._send(message)

        task = asyncio.create_task(send(), name="edged.mcp.send")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _listen(self) -> None:
        while True:
            try:
                line = await self._reader.readline()
            except ValueError:
                self._kill(f"killed, because it wrote a line of more than {MAX_MESSAGE} bytes")
                return
            except OSError:
                line = b""
            if not line:
                await self._how()
                return
            self._heard(line)
            if self._lost is not None:
                return

    def _heard(self, line: bytes) -> None:
        message = parsed(line)
        if message is not None and message.method is None and message.id in self._waiting:
            waits = self._waiting[int(message.id)]
            if not waits.done():
                try:
                    waits.set_result(result_of(message))
                except Exception as error:
                    waits.set_exception(error)
            return
        if not line.strip():
            return
        if message is None:
            self._child.output.feed(b"not JSON-RPC: " + line[:200].rstrip(b"\n") + b"\n")
        if (now := time.monotonic()) >= self._window_ends:
            self._unasked, self._window_ends = 0, now + WINDOW_S
        self._unasked += 1
        if self._unasked > UNASKED:
            self._kill(f"killed, because it wrote more than {UNASKED} lines that nobody had asked for")
        elif message is not None and (answer := answer_to(message)) is not None:
            self._send_later(answer)

    async def _how(self) -> str:
        """How the process ended, whose pipe has ended."""
        how = await self._child.end(DYING_S)
        said = f"; it said last: {self._child.output.last}" if self._child.output.last else ""
        self._end(f"it ended ({how}){said}")
        return str(self._lost)

    def _kill(self, why: str) -> None:
        self._end(why)
        self._child.kill()

    def _end(self, why: str) -> None:
        if self._lost is not None:
            return
        self._lost = why
        for waits in self._waiting.values():
            if not waits.done():
                waits.set_exception(Gone(why))


def _spawn(rules: int | None, program: Program) -> subprocess.Popen[bytes]:
    """The process. Raises OSError: the system refuses; nothing was started."""
    mine = systemd.child_environment()
    environment = {name: mine[name] for name in INHERITED if name in mine} | dict(program.environment)
    launch = (sys.executable, "-P", "-m", "edged.tools.mcp.launch")
    return subprocess.Popen(
        [*launch, *_confinement(rules, program), *program.command],
        cwd=program.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[] if rules is None else [rules],
        env=environment,
        start_new_session=True,
    )


def _confinement(rules: int | None, program: Program) -> Sequence[str]:
    own = ("" if rules is None else rules, os.getpid(), program.memory, program.file_bytes)
    return tuple(str(each) for each in own)
