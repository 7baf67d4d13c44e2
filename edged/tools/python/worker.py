"""Runs one Python tool. Each tool has a process of its own, so that one that hangs, crashes or leaks hurts no other.

The first call starts the process. It serves one call at a time, and ends after a minute without one. A call that takes
longer than `timeout_s`, needs more than `memory` or crashes ends the process; the next call gets a new one.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from edged.config import PythonTool
from edged.errors import ToolFailed
from edged.tools.python.child import Answer, Invocation
from edged.tools.python.landlock import NONE, OwnFiles
from edged.tools.python.process import END_S, Died, Process, module_of
from edged.types import JSON

logger = logging.getLogger("edged.tools")

# As long as a pause in a conversation. A process holds about 10 MiB; a new one takes a quarter of a second on a board.
IDLE_S = 60.0
DENIED = ("PermissionError", "OperationalError: unable to open", "OperationalError: attempt to write a readonly")
HINT = "edged's own files are closed to it, and a folder that holds one or leads to one takes no new files from it"
# A ruleset is made of what is on the disk at the start of a process. A file that takes another's place beside edged's
# own (/etc/resolv.conf beside /etc/edged) is closed to that process and open to the next one.
RENEW_S = 600.0


class ToolWorker:
    """One Python tool and its process.

    Args:
        folder: where its module lies.
        own: what its process may not touch.
        idle_s: seconds without a call after which its process ends.
    """

    def __init__(
        self, name: str, tool: PythonTool, folder: Path, own: OwnFiles = NONE, *, idle_s: float = IDLE_S
    ) -> None:
        self._name, self._tool, self._idle_s = name, tool, idle_s
        self._function = tool.python.partition(":")[2]
        self._module = module_of(tool, folder, own)
        self._half = ": a part of it may have happened" if tool.effect == "write" else ""
        self._free = asyncio.Lock()
        self._process: Process | None = None
        self._processes: set[Process] = set()  # with those that are still ending
        self._task: asyncio.Task[JSON] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._stopped = False

    async def call(self, arguments: dict[str, JSON], rid: str, step: int) -> JSON:
        """What the function returns. A second call waits for the first. A request that is cancelled does not tear a
        call in two: what was begun is finished, or killed at its time limit.

        Raises:
            ToolFailed: what the function raised, or how its process ended.
        """
        await self._free.acquire()
        self._task = asyncio.create_task(self._call(arguments, rid, step), name=f"edged.tool.{self._name}")
        self._task.add_done_callback(self._called)
        return await asyncio.shield(self._task)

    async def stop(self) -> None:
        """End the process. A call that still runs is killed; its step is one of unknown outcome."""
        self._stopped = True
        if self._idle:
            self._idle.cancel()
        if self._task:
            for process in self._processes:
                process.kill()
            await asyncio.wait({self._task})
        self._retire()
        for process in list(self._processes):
            await process.end(END_S)

    def _called(self, task: asyncio.Task[JSON]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # where the request was cancelled nobody else asks, and asyncio would complain
        self._free.release()

    async def _call(self, arguments: dict[str, JSON], rid: str, step: int) -> JSON:
        packed = _packed(Invocation(self._function, arguments, f"{rid}:{step}"))
        process = await self._ready()
        process.output.rid = rid
        limit = self._tool.timeout_s
        try:
            async with asyncio.timeout(limit):
                answer, value = await process.call(packed)
        except TimeoutError:
            await self._drop(process)
            raise ToolFailed(f"it took longer than {limit:g} s (timeout_s) and was killed{self._half}") from None
        except Died as died:
            self._process = None
            raise ToolFailed(f"its process ended ({died}){self._half}") from None
        if answer.spent:
            await self._drop(process, END_S)
        else:
            self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._retire)
        self._raise(answer)
        return value

    def _raise(self, answer: Answer) -> None:
        if answer.error:
            logger.warning("%s: %s", self._name, answer.traceback.rstrip() or answer.error)
            if answer.error.startswith(DENIED):
                logger.warning("%s: %s", self._name, HINT)
        if answer.spent:
            raise ToolFailed(f"it needed more than {self._tool.memory} (memory){self._half}")
        if answer.error:
            raise ToolFailed(answer.error)

    async def _ready(self) -> Process:
        """The process, with its module imported."""
        if self._idle:
            self._idle.cancel()
        if self._process and not self._process.ended.done() and self._process.age_s < RENEW_S:
            return self._process
        self._retire()
        process = await Process.start(self._name, self._module, [self._function])
        self._processes.add(process)
        process.ended.add_done_callback(lambda _: self._processes.discard(process))
        if self._stopped:
            await self._drop(process)
            raise ToolFailed("the daemon stops")
        self._process = process
        hello = await process.hello()
        if problem := hello.problem or hello.functions[self._function].problem:
            await self._drop(process)
            logger.warning("%s: %s", self._name, hello.traceback.rstrip() or problem)
            raise ToolFailed(f"{self._tool.python}: {problem}")
        return process

    async def _drop(self, process: Process, patience_s: float = 0.0) -> None:
        """End a process that must not be used again."""
        self._process = None
        await process.end(patience_s)

    def _retire(self) -> None:
        """Let the process go that waits for a call, if there is one."""
        process, self._process = self._process, None
        if process:
            process.dismiss()


def _packed(call: Invocation) -> bytes:
    for name, value in call.arguments.items():
        try:
            msgspec.msgpack.encode(value)
        except OverflowError:
            why = "a number outside -2^63 to 2^64-1"
            raise ToolFailed(f"its arguments cannot be passed on: {name!r} holds {why}") from None
        except ValueError:  # of Unicode
            why = "half a surrogate pair, which is no character"
            raise ToolFailed(f"its arguments cannot be passed on: {name!r} holds {why}") from None
    return msgspec.msgpack.encode(call)
