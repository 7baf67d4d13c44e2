"""`edged run` that dies where a test wants it to, told by the environment:

    python tests/support/faulty_daemon.py CONFIG

EDGED_TEST_FAULT names a point of `edged.host.fault_points`, or "publish.done" (behind a tool's publish); the process
kills itself there once, which EDGED_TEST_MARKER (a file) remembers over a restart. EDGED_TEST_POISON is a word;
whoever asks it kills the process, at every attempt, by SIGSEGV or EDGED_TEST_POISON_SIGNAL (a number).
EDGED_TEST_STALL is one that stops the engine as a hung thread would; that is noticed after STALL_S seconds.
EDGED_TEST_SLOW_LOAD is how many seconds a model takes to load. EDGED_TEST_MEMINFO is a file that is taken for
/proc/meminfo where memory is looked at for being short; the board's PSI is not heard then, and things are given up and
taken back fast. EDGED_TEST_CLOCK is a file with seconds that the wall clock is off by. At SIGUSR2 one of its tasks
dies, as of a bug, at the signal LOSE_A_THREAD one of its threads; EDGED_TEST_SEED chooses which. EDGED_TEST_PLAN is a
file with a point and a number: from the signal ARM on the process dies at that pass of it. EDGED_TEST_RECONNECT is how
many seconds it waits at most before it connects to the broker again, EDGED_TEST_GRACE how many a stop waits for what
runs. EDGED_TEST_MEMBERS is a file of Python that is run first: it adds members of seams that lie outside the package
(an engine kind, a kind of tool, a surface).
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import importlib.util
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged.daemon import assembly, lifecycle, supervisor
from edged.engines import scripted
from edged.engines.scripted import ScriptedEngine
from edged.host import clock, fault_points, memory
from edged.interfaces import OnPiece
from edged.requests import worker
from edged.residency.pressure.ladder import Calm
from edged.residency.pressure.low_memory import LowMemory
from edged.residency.pressure.pressure import Pressure, PressureTiming
from edged.tools import toolbox
from edged.tools.publish import PublishKind
from edged.transport import mqtt
from edged.transport.mqtt import Backoff, MqttTransport
from edged.types import Completion, Job, ModelSpec

AFTER_PUBLISH = "publish.done"
STALL_S = 0.3
PACE = PressureTiming(look_s=0.05, idle_s=0.05, work_s=0.7, memory=Calm(first_s=0.3, next_s=0.05))
MORTAL = ("edged.requests.pipeline", "edged.residency", "edged.mqtt", "edged.state", "edged.upstreams")
THREADS = ("edged.store.writer", "edged.store.reader", "edged.database.plant")
LOSE_A_TASK, LOSE_A_THREAD, ARM = signal.SIGUSR2, signal.SIGRTMIN + 1, signal.SIGRTMIN + 2
NOWHERE = Path("/none")


def die() -> None:
    """As the kernel ends a process that took too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_once() -> None:
    """Unless an earlier process did."""
    marker = Path(os.environ["EDGED_TEST_MARKER"])
    if not marker.exists():
        marker.touch()
        die()


class Poisoned(ScriptedEngine):
    """Dies of a word: as native code does that reads where it must not, or by another signal."""

    async def generate(
        self, job: Job, on_text: Callable[[str], None] | None = None, *, on_piece: OnPiece | None = None
    ) -> Completion:
        """See interfaces.Engine."""
        if any(os.environ["EDGED_TEST_POISON"] in segment.text for segment in job.turn):
            os.kill(os.getpid(), int(os.environ.get("EDGED_TEST_POISON_SIGNAL", signal.SIGSEGV)))
        return await super().generate(job, on_text, on_piece=on_piece)


class Stalling(ScriptedEngine):
    """Stops at a word, busy for ever."""

    since: float | None = None

    async def generate(
        self, job: Job, on_text: Callable[[str], None] | None = None, *, on_piece: OnPiece | None = None
    ) -> Completion:
        """See interfaces.Engine."""
        if any(os.environ["EDGED_TEST_STALL"] in segment.text for segment in job.turn):
            self.since = time.monotonic()
        return await super().generate(job, on_text, on_piece=on_piece)

    def progress(self) -> tuple[bool, float]:
        """As the engine thread tells it."""
        return self.since is not None, self.since or 0.0


class LateDeath(PublishKind):
    """Does something when the broker has confirmed a tool's message, before the journal knows."""

    published: Callable[[], None] = staticmethod(lambda: None)

    async def call(self, *arguments: Any) -> Any:
        """See ToolKind."""
        result = await super().call(*arguments)
        self.published()
        return result


class Slow(ScriptedEngine):
    """Takes its time to load a model."""

    async def load(self, spec: ModelSpec) -> None:
        """See interfaces.Loader."""
        await asyncio.sleep(float(os.environ["EDGED_TEST_SLOW_LOAD"]))
        await super().load(spec)


def let_a_task_die(chance: random.Random) -> None:
    """One of those that the daemon watches."""
    loop = asyncio.get_running_loop()  # the handler runs between two steps of the loop, in its thread
    tasks = [task for task in asyncio.all_tasks(loop) if task.get_name() in MORTAL and not task.done()]
    chance.choice(sorted(tasks, key=asyncio.Task.get_name)).cancel()


class Fatal(BaseException):
    """What a thread dies of: more than any bug of the work that it does raises."""


def let_a_thread_die(chance: random.Random) -> None:
    """One of those that own a connection, wherever it is just now."""
    threads = sorted((t for t in threading.enumerate() if t.name in THREADS), key=lambda thread: thread.name)
    if threads:  # none before the start and behind the stop
        ident = ctypes.c_ulong(chance.choice(threads).ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Fatal))


def arm_as_planned(plan: Path) -> None:
    """Die at the n-th pass of a point, from now on."""
    point, number = plan.read_text(encoding="utf-8").split()
    passes = itertools.count(1)

    def passed() -> None:
        if next(passes) == int(number):
            die()

    if point == AFTER_PUBLISH:
        LateDeath.published = staticmethod(passed)
    else:
        fault_points.arm(point, passed)


def add_members(path: str) -> None:
    """Run a file, as a module: tables of the configuration look their types up in theirs."""
    spec = importlib.util.spec_from_file_location("edged_test_members", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def main() -> int:
    """Arm, then run as `edged run` does."""
    if members := os.environ.get("EDGED_TEST_MEMBERS"):
        add_members(members)
    fault = os.environ.get("EDGED_TEST_FAULT")
    if fault == AFTER_PUBLISH or "EDGED_TEST_PLAN" in os.environ:
        toolbox.KINDS[toolbox.KINDS.index(PublishKind)] = LateDeath
    if fault == AFTER_PUBLISH:
        LateDeath.published = staticmethod(die_once)
    elif fault:
        fault_points.arm(fault, die_once)
    if "EDGED_TEST_POISON" in os.environ:
        vars(scripted)["ScriptedEngine"] = Poisoned
    if "EDGED_TEST_SLOW_LOAD" in os.environ:
        vars(scripted)["ScriptedEngine"] = Slow
    if "EDGED_TEST_STALL" in os.environ:
        vars(scripted)["ScriptedEngine"] = Stalling
        vars(lifecycle)["STALL_S"] = STALL_S
    if offset := os.environ.get("EDGED_TEST_CLOCK"):
        right = clock.wall
        vars(clock)["wall"] = lambda: right() + float(Path(offset).read_text(encoding="utf-8"))
    if longest := os.environ.get("EDGED_TEST_RECONNECT"):
        vars(mqtt)["MqttTransport"] = functools.partial(
            MqttTransport, backoff=Backoff(base_s=0.1, cap_s=float(longest), taken_over_s=float(longest))
        )
    if grace := os.environ.get("EDGED_TEST_GRACE"):
        vars(worker)["GRACE_S"] = float(grace)
    if seed := os.environ.get("EDGED_TEST_SEED"):
        chance = random.Random(f"{seed}.{os.getpid()}")  # reproducible, no secret
        signal.signal(LOSE_A_TASK, lambda *_: let_a_task_die(chance))
        signal.signal(LOSE_A_THREAD, lambda *_: let_a_thread_die(chance))
    if plan := os.environ.get("EDGED_TEST_PLAN"):
        signal.signal(ARM, lambda *_: arm_as_planned(Path(plan)))
    if meminfo := os.environ.get("EDGED_TEST_MEMINFO"):
        vars(assembly)["PRESSURE_PACE"] = PACE
        vars(assembly)["Pressure"] = functools.partial(Pressure, board=NOWHERE, group=lambda: None)
        left = functools.partial(memory.left, meminfo=Path(meminfo), root=NOWHERE, listing=NOWHERE)
        vars(assembly)["LowMemory"] = functools.partial(LowMemory, left=left)
    return supervisor.run(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
