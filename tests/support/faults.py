"""What happens to a board, done to the real daemon while it works.

The daemon is a child process on a real mosquitto; a load (`crash_load`) asks over MQTT, the Unix socket and HTTP and
keeps its own account by number. `crash_books.judge` compares that with the replies, what the tools have done, and the
store.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import apsw

from edged.host.fault_points import POINTS
from tests.support.broker import Mosquitto, Wire
from tests.support.daemon import REPLY, Customer, Daemon
from tests.support.fault_load import KEEP_TOOL, PLAIN_REPLY, SCRIPT, WITHIN_S, Load, set_up_keeper
from tests.support.fault_verdict import AckOrder, Books, Verdict, World, judge
from tests.support.faulty_daemon import AFTER_PUBLISH, ARM, LOSE_A_TASK, LOSE_A_THREAD

SMALL_DISK = "8m"
RECONNECT_S = "0.5"  # else half a minute, after the third time: many happenings in a short time are no board's life
GRACE_S = "0.3"  # some of the load never ends: a stop puts it back, and need not wait five seconds to do so
PASSES = 12  # a point kills at one of so many passes: at the first ones the daemon is still recovering
PATIENCE_S = 1.0  # where the broker forgets what it confirmed
TOOLS = ("tank_level", "set_valve", "note", "lamp", "keep")


class Rig:
    """A daemon, its broker, the wire between them, and the load.

    Args:
        folder: of everything; empty.
        seed: of all that is random.
        model: a GGUF file; None: a script.
        small_disk: the state folder is a small file system of its own (root).
        longest_s: of the random moments between two happenings.
        config: more of the daemon's configuration, TOML.
        options: of the load.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        model: Path | None = None,
        small_disk: bool = False,
        longest_s: float = 0.4,
        config: str = "",
        **options: Any,
    ) -> None:
        self.chance = random.Random(seed)  # reproducible, no secret
        self.acks = AckOrder()
        self.folder = folder
        self.broker = Mosquitto(folder, lines=("allow_anonymous true", "set_tcp_nodelay true"), persistence=True)
        self.wire = Wire(self.broker.port, hear=self.acks.hear)
        self.clock = folder / "clock"
        self.clock.write_text("0")
        self._plan = folder / "plan"
        self._model = model
        self._small_disk = small_disk
        self._seed = seed
        self._longest_s = longest_s
        self._config = config
        self._options = options
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        await enter(self.broker)
        await enter(self.wire)
        environment = {
            "EDGED_TEST_CLOCK": str(self.clock),
            "EDGED_TEST_PLAN": str(self._plan),
            "EDGED_TEST_SEED": str(self._seed),
            "EDGED_TEST_RECONNECT": RECONNECT_S,
            "EDGED_TEST_GRACE": GRACE_S,
        }
        self.daemon = Daemon(
            self.folder,
            broker=self.wire.port,
            config=f"[queue]\nmax_attempts = 100\n{self._config}",
            script=SCRIPT,
            environment=environment,
        )
        self.daemon.drop_in("[mqtt]\ndefault_expiry_s = 3600\n", "40.toml")  # no deadline passes amid all of this
        self._keeper = set_up_keeper(self.folder)
        if self._model:
            self.daemon.drop_in(f'[models.small]\nsource = "file:{self._model}"\ncontext = 1024\n')
        else:
            self.daemon.drop_in(f"{KEEP_TOOL}[agents.house]\ntools = {json.dumps(TOOLS)}\n")
        if self._small_disk:
            self.state.mkdir()
            _mount("-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(self.state))
            self._stack.callback(_unmount, self.state)
        self.customer = Customer(self.broker.port, client_id="customer")
        await enter(self.customer)
        for topic in (REPLY, PLAIN_REPLY, "lamps/#"):
            await self.customer.subscribe(topic)
        self._stack.push_async_callback(self.daemon.__aexit__)
        await self.daemon.start()
        await self.customer.online()  # from now on the broker keeps what the daemon is asked
        self._load = Load(self.daemon, self.customer, self.chance, model=self._model is not None, **self._options)
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._load.stop()
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        await self._stack.aclose()

    async def _listen(self) -> None:
        while True:
            self._load.hear(await self.customer.next(within_s=3600))

    @property
    def state(self) -> Path:
        """The daemon's state folder."""
        return self.folder / "state"

    @property
    def books(self) -> Books:
        """What the load knows."""
        return self._load.books

    def load(self, requests: int | None = None) -> asyncio.Task[None]:
        """Ask, as fast as answers come; without a number until the task is cancelled."""
        return self._load.ask(requests)

    async def flowing(self) -> None:
        """Wait until something is answered that was not before: over the link that is back."""
        await self._load.flowing()

    # -- what happens ----------------------------------------------------------------------------------------------

    async def moment(self, longest_s: float | None = None) -> None:
        """Some time in the midst of the work, which begins 0.2 s after the start: that is what is random here."""
        await asyncio.sleep(self.chance.uniform(0, longest_s or self._longest_s))

    async def kill(self) -> None:
        """SIGKILL, and a start."""
        await self.moment()
        await self.daemon.kill()
        await self.daemon.start()

    async def terminate(self) -> None:
        """SIGTERM while it works, and a start."""
        await self.moment()
        assert await self.daemon.stop() == 0
        await self.daemon.start()

    async def reload(self) -> None:
        """SIGHUP while it works."""
        await self.moment()
        await self.daemon.reload()

    async def die_at(self, point: str) -> None:
        """SIGKILL where something just became true, at one of the next passes, and a start."""
        self._plan.write_text(f"{point} {self.chance.randint(1, PASSES)}")
        os.kill(self.daemon.pid, ARM)
        assert await self.daemon.ended() == -signal.SIGKILL
        await self.daemon.start()

    async def lose(self, what: signal.Signals | int) -> None:
        """A task or a thread dies of a bug: the daemon ends, and the service manager starts it."""
        await self.moment()
        os.kill(self.daemon.pid, what)
        assert await self.daemon.ended() not in (0, -signal.SIGKILL)
        await self.daemon.start()

    async def kill_a_tool(self) -> None:
        """SIGKILL of a Python tool's process. Needs `fragile`: what it was doing failed."""
        await self.moment()
        for child in _children(self.daemon.pid, "keeper"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    async def restart_broker(self) -> None:
        """The broker says goodbye, keeps its sessions, and comes back."""
        await self.moment()
        await self.broker.stop()
        await self.broker.start()
        await self.flowing()

    async def kill_broker(self) -> None:
        """The broker loses its power, and what it had not saved. Needs `patience_s`, and that all have an identity."""
        await self.moment()
        await self.broker.kill()
        await self.broker.start()
        await self.flowing()

    async def cut_link(self) -> None:
        """The connection breaks."""
        await self.moment()
        self.wire.cut()
        await self.flowing()

    async def black_hole(self) -> None:
        """Nothing arrives any more, in one direction or both, and then the connection breaks."""
        await self.moment()
        self.chance.choice((self.wire.hold_up, self.wire.hold_down))()
        await self.moment(0.5)
        self.wire.cut()
        self.wire.release()
        await self.flowing()

    async def jump_clock(self) -> None:
        """The wall clock is wrong from now on: by years, or some seconds, in either direction."""
        await self.moment()
        new = self.clock.with_suffix(".new")
        new.write_text(str(self.chance.choice((-1, 1)) * self.chance.choice((5.0, 3600.0, 5e8))))
        new.rename(self.clock)

    async def fill_disk(self) -> None:
        """No byte is left for a moment. Needs `small_disk`."""
        await self.moment()
        ballast = self.state / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        await self.moment(1.0)
        ballast.unlink()

    async def write_protect(self) -> None:
        """The file system turns read-only, as after an error, and is put right. Needs `small_disk`."""
        await self.moment()
        if _mount("-o", "remount,ro", str(self.state), check=False):  # it refuses while a write is under way
            await self.moment(0.5)
            _mount("-o", "remount,rw", str(self.state))

    # -- the end ---------------------------------------------------------------------------------------------------

    async def quiet(self, load: asyncio.Task[None]) -> None:
        """Stop asking, and wait for what is on its way."""
        load.cancel()
        await asyncio.wait([load])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHIN_S):
                await self._load.answered()
                while await asyncio.to_thread(self._undelivered):
                    await asyncio.sleep(0.05)

    async def settle(self, load: asyncio.Task[None]) -> Verdict:
        """Stop asking, wait for what is on its way, stop the daemon, and judge."""
        await self.quiet(load)
        await self.daemon.stop()
        for message in self.customer.kept():
            self._load.hear(message)
        kept, tries = await asyncio.to_thread(_kept, self._keeper)
        world = World(
            notes=Counter(str(text) for (text,) in self.daemon.rows("diary")),
            lamps=max(self._load.lamps, sum(self.acks.confirmed[topic] for topic in LAMPS)),
            states=self.daemon.states(),
            undelivered=self._undelivered(),
            disordered=self.acks.disordered,
            kept=kept,
            tries=tries,
        )
        return judge(self.books, world)

    def failures(self) -> list[str]:
        """Why requests failed: each reason once."""
        told = [json.loads(copies[0]) for copies in self.books.replies.values()]
        return sorted({f"{reply['error']['code']}: {reply['error']['message']}" for reply in told if reply["error"]})

    def _undelivered(self) -> int:
        with contextlib.closing(apsw.Connection(str(self.state / "edged.db"))) as store:
            store.set_busy_timeout(5000)
            return int(store.execute("SELECT count(*) FROM deliveries WHERE state <> 'delivered'").get)


LAMPS = ("lamps/desk/set",)
FAULTS: dict[str, Callable[[Rig], Awaitable[None]]] = {
    "SIGKILL": Rig.kill,
    "SIGTERM while busy": Rig.terminate,
    "reload while busy": Rig.reload,
    "a task of the daemon dies": lambda rig: rig.lose(LOSE_A_TASK),
    "a thread of the daemon dies": lambda rig: rig.lose(LOSE_A_THREAD),
    "a Python tool is killed": Rig.kill_a_tool,
    "the broker restarts": Rig.restart_broker,
    "the broker is killed": Rig.kill_broker,
    "the link is cut": Rig.cut_link,
    "the link is a black hole": Rig.black_hole,
    "the wall clock jumps": Rig.jump_clock,
    "the disk is full": Rig.fill_disk,
    "the disk is read-only": Rig.write_protect,
}
# What needs an upstream or a new model to be passed is killed at by tests of its own.
AT_POINTS: dict[str, Callable[[Rig], Awaitable[None]]] = {
    f"SIGKILL at {point}": functools.partial(Rig.die_at, point=point)
    for point in (*POINTS, AFTER_PUBLISH)
    if point != "link.parked" and not point.startswith("update.")
}
ON_A_SMALL_DISK = {"the disk is full", "the disk is read-only"}
# Without an identity a request is known again by its packet only: not where a client has to send it a second time.
NEEDS: dict[str, dict[str, Any]] = {
    "a Python tool is killed": {"fragile": True},
    "the broker restarts": {"plain": False},
    "the broker is killed": {"plain": False, "patience_s": PATIENCE_S},
    **{fault: {"plain": False, "small_disk": True} for fault in ON_A_SMALL_DISK},
}


def may_mount() -> bool:
    """Whether a file system can be mounted here."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _children(pid: int, module: str) -> list[int]:
    """Of a process, those that serve a module of Python tools."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and module in (folder / "cmdline").read_text().split("\0"):
                found.append(int(folder.name))
    return found


def _kept(path: Path) -> tuple[Counter[str], int]:
    """What a Python tool has, and how often it was called."""
    with contextlib.closing(sqlite3.connect(path)) as kept:
        texts = Counter(str(text) for (text,) in kept.execute("SELECT text FROM kept"))
        return texts, int(kept.execute("SELECT count(*) FROM tries").fetchone()[0])


def _mount(*arguments: str, check: bool = True) -> bool:
    return subprocess.run(["mount", *arguments], check=check, capture_output=True).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
