"""The daemon's end of a child process that runs Python tools: its start, its calls, every way it may end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from edged.config import PythonTool, parse_bytes
from edged.errors import ToolFailed
from edged.host import systemd
from edged.tools.child import Child
from edged.tools.python import child, orphans
from edged.tools.python.child import HEAD, Answer, Hello
from edged.tools.python.landlock import OwnFiles, ruleset
from edged.types import JSON
from edged.wire import MAX_DEPTH, depth

START_S = 30.0  # to import a module: a large one takes ten seconds from the card of a small board
END_S = 2.0  # a child that is not needed any more may close what it holds; what is not over then is killed
DYING_S = 1.0  # between the end of the channel and that of the process: else its exit status would be our SIGKILL
MAX_FRAME = 1 << 20  # bytes; an answer has a tenth of it at most, so more is a tool that wrote into its channel


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


class Process(Child):
    """One child, made by `start`.

    Args:
        title: its name in the log.
        rules: a ruleset of Landlock's, or None.

    Raises:
        OSError: the system starts no process.
    """

    def __init__(self, title: str, module: Module, functions: Sequence[str], rules: int | None) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        try:
            with theirs:
                started = _spawn(theirs.fileno(), rules, module, functions)
            assert started.stdout is not None
            super().__init__(title, started, started.stdout)
        except OSError:
            self._channel.close()
            raise

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
        """See Child."""
        how = await super().end(patience_s)
        self._channel.close()
        return how

    def dismiss(self) -> None:
        """Let it end by itself; whoever does not within END_S is killed. Only while nobody talks to it."""
        self._channel.close()
        killing = self._loop.call_later(END_S, self.kill)
        self.ended.add_done_callback(lambda _: killing.cancel())

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


def _spawn(channel: int, rules: int | None, module: Module, functions: Sequence[str]) -> subprocess.Popen[bytes]:
    """The child.

    Raises:
        OSError: the system refuses; nothing was started.
    """
    limits = [str(module.memory), str(module.file_bytes)]
    own = [str(channel), "" if rules is None else str(rules), str(os.getpid()), *limits, module.name]
    return subprocess.Popen(
        [sys.executable, "-P", child.__file__, *own, *functions],  # -P: only the tools' folder, not that of this file
        cwd=module.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[channel] if rules is None else [channel, rules],
        env=systemd.child_environment(),
        start_new_session=True,
    )
