"""What happens to a board, done to the real daemon while it works, and the books of what came of it.

The daemon is a child process on a real mosquitto; a load asks over MQTT, the Unix socket and HTTP and keeps its own
account by number. `judge` compares that with the replies, the tool's database, what the lamp was told and the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import apsw

from tests.brokers import Mosquitto, Wire, marks
from tests.daemons import NOTES, REPLY, START_S, Customer, Daemon, Wired

FINAL = {"done", "failed", "expired", "cancelled", "quarantined"}
OUTSTANDING = 8  # requests on their way: some run, some wait, some are on the wire when it strikes
WITHIN_S = 120.0  # for everything to be answered when nothing strikes any more: the daemon may wait 30 s for the broker
NOTE, READ, LAMP = "note", "tank_level", "lamp"
PUBLISH, PUBACK = 3, 4  # types of MQTT packets
SMALL_DISK = "8m"
RECONNECT_S = "0.5"  # else half a minute, after the third time: many happenings in a short time are no board's life
AGAIN_S = 0.2  # a client that is told to come again in a minute does not wait so long in a test


@dataclass
class Books:
    """What a load knows by itself. asked: texts by number, of what was handed over for good (the broker confirmed it,
    or the client asks until it is answered). replies: every copy's bytes, by number. refused: how often it was told to
    come again, and did."""

    asked: dict[int, str] = field(default_factory=dict)
    replies: dict[int, list[bytes]] = field(default_factory=dict)
    refused: int = 0

    def keep(self, number: int, reply: bytes) -> None:
        """One copy of a reply."""
        self.replies.setdefault(number, []).append(reply)


@dataclass(frozen=True)
class World:
    """What there is at the end. notes: texts in the tool's table; lamps: messages the lamp got; states: of the requests
    in the store; undelivered: rows of its outbox; disordered: acknowledgements that overtook another."""

    notes: Counter[str]
    lamps: int
    states: list[str]
    undelivered: int = 0
    disordered: int = 0


@dataclass(frozen=True)
class Verdict:
    """Of all requests: zero of everything behind `copies` is the promise."""

    requests: int
    effects: int
    copies: int
    lamp_repeats: int
    refused: int
    lost: int
    differing: int
    duplicated: int
    missing: int
    failed: int
    disordered: int
    stuck: int

    @property
    def kept(self) -> bool:
        """Whether the promise was kept. A lamp may be told twice (`on_uncertain = "retry"`), a reply come twice."""
        return not any(
            (self.lost, self.differing, self.duplicated, self.missing, self.failed, self.disordered, self.stuck)
        )


def judge(books: Books, world: World) -> Verdict:
    """Compare the load's account with the world."""
    told = {number: json.loads(copies[0]) for number, copies in books.replies.items()}
    calls = [call for reply in told.values() for call in reply["tool_calls"] if call["ok"]]
    wanted = Counter(call["arguments"]["text"] for call in calls if call["name"] == NOTE)
    lamps = sum(call["name"] == LAMP for call in calls)
    return Verdict(
        requests=len(books.asked),
        effects=sum(wanted.values()) + lamps,
        copies=sum(len(copies) - 1 for copies in books.replies.values()),
        lamp_repeats=max(0, world.lamps - lamps),
        refused=books.refused,
        lost=len(books.asked.keys() - books.replies.keys()),
        differing=sum(len(set(copies)) > 1 for copies in books.replies.values()),
        duplicated=(world.notes - wanted).total(),
        missing=(wanted - world.notes).total() + max(0, lamps - world.lamps),
        failed=sum(reply["status"] != "done" for reply in told.values()),
        disordered=world.disordered,
        stuck=sum(state not in FINAL for state in world.states) + world.undelivered,
    )


class AckOrder:
    """Looks at what passes between daemon and broker: on each connection requests are acknowledged in the order in
    which they came. `hear` is for a Wire."""

    def __init__(self) -> None:
        self.disordered = 0
        self._data: dict[tuple[int, bool], bytearray] = {}
        self._open: dict[int, list[int]] = {}

    def hear(self, connection: int, up: bool, data: bytes) -> None:
        """Bytes that passed."""
        buffer = self._data.setdefault((connection, up), bytearray())
        buffer += data
        while (packet := _packet(buffer)) is not None:
            self._look(connection, up, *packet)

    def _look(self, connection: int, up: bool, first: int, body: bytes) -> None:
        waiting = self._open.setdefault(connection, [])
        if not up and first >> 4 == PUBLISH and first & 0x06:
            at = 2 + int.from_bytes(body[:2], "big")
            waiting.append(int.from_bytes(body[at : at + 2], "big"))
        elif up and first >> 4 == PUBACK and (mid := int.from_bytes(body[:2], "big")) in waiting:
            self.disordered += waiting[0] != mid
            waiting.remove(mid)


def _packet(buffer: bytearray) -> tuple[int, bytes] | None:
    """Take the first whole packet out: its first byte and its body."""
    size = shift = 0
    for at in range(1, min(len(buffer), 5)):
        size |= (buffer[at] & 0x7F) << shift
        shift += 7
        if not buffer[at] & 0x80:
            if len(buffer) < at + 1 + size:
                return None
            first, body = buffer[0], bytes(buffer[at + 1 : at + 1 + size])
            del buffer[: at + 1 + size]
            return first, body
    return None


class Rig:
    """A daemon, its broker, the wire between them, and the load.

    Args:
        folder: of everything; empty.
        seed: of all that is random.
        model: a GGUF file; None: a script.
        small_disk: the state folder is a small file system of its own (root).
        longest_s: of the random moments between two happenings.
        config: more of the daemon's configuration, TOML.
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
    ) -> None:
        self.chance = random.Random(seed)  # reproducible, no secret
        self.books = Books()
        self.acks = AckOrder()
        self.folder = folder
        self.broker = Mosquitto(folder, lines=("allow_anonymous true", "set_tcp_nodelay true"), persistence=True)
        self.wire = Wire(self.broker.port, hear=self.acks.hear)
        self.clock = folder / "clock"
        self.clock.write_text("0")
        self._model = model
        self._small_disk = small_disk
        self._seed = seed
        self._longest_s = longest_s
        self._config = config
        self._next = 0
        self._slots = asyncio.Semaphore(OUTSTANDING)
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lamps = 0
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        await enter(self.broker)
        await enter(self.wire)
        environment = {
            "EDGED_TEST_CLOCK": str(self.clock),
            "EDGED_TEST_SEED": str(self._seed),
            "EDGED_TEST_RECONNECT": RECONNECT_S,
        }
        self.daemon = Daemon(
            self.folder,
            broker=self.wire.port,
            config=f"[queue]\nmax_attempts = 100\n{self._config}",
            environment=environment,
        )
        self.daemon.drop_in("[mqtt]\ndefault_expiry_s = 3600\n", "40.toml")  # no deadline passes amid all of this
        if self._model:
            self.daemon.drop_in(f'[models.small]\nsource = "file:{self._model}"\ncontext = 1024\n')
        if self._small_disk:
            self.state.mkdir()
            _mount("-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(self.state))
            self._stack.callback(_unmount, self.state)
        self.customer = Customer(self.broker.port, client_id="customer")
        await enter(self.customer)
        await self.customer.subscribe(REPLY)
        await self.customer.subscribe("lamps/#")
        self._stack.push_async_callback(self.daemon.__aexit__)
        await self.daemon.start()
        await self.customer.online()  # from now on the broker keeps what the daemon is asked
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._listening, *self._tasks):
            task.cancel()
        await asyncio.gather(self._listening, *self._tasks, return_exceptions=True)
        await self._stack.aclose()

    @property
    def state(self) -> Path:
        """The daemon's state folder."""
        return self.folder / "state"

    # -- the load --------------------------------------------------------------------------------------------------

    def load(self, requests: int | None = None) -> asyncio.Task[None]:
        """Ask, as fast as answers come; without a number until the task is cancelled."""
        return asyncio.create_task(self._ask_on(requests))

    async def _ask_on(self, requests: int | None) -> None:
        while requests is None or self._next < requests:
            await self._slots.acquire()
            number, self._next = self._next, self._next + 1
            self._spawn(self._ask(number))

    async def _ask(self, number: int) -> None:
        """Each kind in its turn; a place is free again when the answer is there."""
        kinds = (self._over_mqtt, self._over_mqtt, self._over_socket, self._over_mqtt, self._over_http)
        text = ("lamp on", "how full is the south one?")[number // 7 % 2] if number % 7 == 0 else _note(number)
        self.books.asked[number] = text
        try:
            await kinds[number % len(kinds)](number, text)
        finally:
            self._slots.release()
            self._news.set()

    async def _over_mqtt(self, number: int, text: str) -> None:
        await self._hand_over(number, text)
        await self._answered(lambda: number in self.books.replies)

    async def _hand_over(self, number: int, text: str) -> None:
        """Until the broker has it. One that dies before it confirmed may have it, or not: asked again it is the same
        request by its Correlation Data."""
        while True:
            with contextlib.suppress(TimeoutError):
                await self.customer.ask(text, str(number).encode())
                return

    async def _over_socket(self, number: int, text: str) -> None:
        await self._until_answered(number, lambda: self._call(number, text))
        [first] = self.books.replies[number]
        await self._until_answered(number, lambda: self._call(number, text))  # the stored reply
        if self.books.replies[number] == [first, first]:  # no copy that nobody wanted
            self.books.replies[number] = [first]

    async def _call(self, number: int, text: str) -> Any:
        async with Wired(self.daemon.socket) as client:
            error, reply = await client.call(1, "agent.ask", {"input": text, "id": f"u{number}"})
        return None if error else reply

    async def _over_http(self, number: int, text: str) -> None:
        await self._until_answered(number, lambda: self._post(number, text))

    async def _post(self, number: int, text: str) -> Any:
        reader, writer = await asyncio.open_unix_connection(str(self.daemon.socket.with_name("http.sock")))
        with contextlib.closing(writer):
            body = json.dumps({"input": text, "id": f"h{number}"}).encode()
            head = f"POST /v1/agents/house/requests HTTP/1.1\r\nHost: edged\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + body)
            answer = await asyncio.wait_for(reader.read(), START_S)
        status, _, content = answer.partition(b"\r\n\r\n")
        return json.loads(content) if status.startswith(b"HTTP/1.1 200") else None

    async def _until_answered(self, number: int, ask: Callable[[], Awaitable[Any]]) -> None:
        """Asked again under the same id whenever the connection is lost, or the daemon is busy."""
        while True:
            with contextlib.suppress(OSError, AssertionError, TimeoutError, ValueError):
                if (reply := await ask()) is not None:
                    self.books.keep(number, json.dumps(reply).encode())
                    return
            await asyncio.sleep(0.02)  # between two attempts to connect

    async def _listen(self) -> None:
        while True:
            message = await self.customer.next(within_s=3600)
            if message.topic == REPLY:
                self._hear(int(marks(message).CorrelationData), bytes(message.payload))
            self._lamps += message.topic.startswith("lamps/")

    def _hear(self, number: int, reply: bytes) -> None:
        """A reply over MQTT. A refusal that may be asked again is, under the same Correlation Data."""
        told = json.loads(reply)
        if told["status"] == "refused" and told["error"]["retryable"]:
            self.books.refused += 1
            self._spawn(self._again(number))
            return
        self.books.keep(number, reply)
        self._news.set()

    async def _again(self, number: int) -> None:
        await asyncio.sleep(AGAIN_S)
        await self._hand_over(number, self.books.asked[number])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answered(self, ready: Callable[[], object]) -> None:
        """Wait until something is so that answers decide."""
        while not ready():
            self._news.clear()
            await self._news.wait()

    async def flowing(self) -> None:
        """Wait until something is answered that was not before: over the link that is back."""
        seen = len(self.books.replies)
        async with asyncio.timeout(WITHIN_S):
            await self._answered(lambda: len(self.books.replies) > seen + OUTSTANDING)

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

    async def lose_a_task(self) -> None:
        """A task dies of a bug: the daemon ends, and the service manager starts it."""
        await self.moment()
        os.kill(self.daemon.pid, signal.SIGUSR2)
        assert await self.daemon.ended() != 0
        await self.daemon.start()

    async def restart_broker(self) -> None:
        """The broker says goodbye, keeps its sessions, and comes back."""
        await self.moment()
        await self.broker.stop()
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
                if self._tasks:
                    await asyncio.wait(self._tasks)
                while await asyncio.to_thread(self._undelivered):
                    await asyncio.sleep(0.05)

    async def settle(self, load: asyncio.Task[None]) -> Verdict:
        """Stop asking, wait for what is on its way, stop the daemon, and judge."""
        await self.quiet(load)
        await self.daemon.stop()
        for message in self.customer.kept():
            self._lamps += message.topic.startswith("lamps/")
        notes = Counter(str(text) for (text,) in self.daemon.rows("diary"))
        world = World(notes, self._lamps, self.daemon.states(), self._undelivered(), self.acks.disordered)
        return judge(self.books, world)

    def failures(self) -> list[str]:
        """Why requests failed: each reason once."""
        told = [json.loads(copies[0]) for copies in self.books.replies.values()]
        return sorted({f"{reply['error']['code']}: {reply['error']['message']}" for reply in told if reply["error"]})

    def _undelivered(self) -> int:
        with contextlib.closing(apsw.Connection(str(self.state / "edged.db"))) as store:
            store.set_busy_timeout(5000)
            return int(store.execute("SELECT count(*) FROM deliveries WHERE state <> 'delivered'").get)


FAULTS: dict[str, Callable[[Rig], Awaitable[None]]] = {
    "SIGKILL": Rig.kill,
    "SIGTERM while busy": Rig.terminate,
    "reload while busy": Rig.reload,
    "a task of the daemon dies": Rig.lose_a_task,
    "the broker restarts": Rig.restart_broker,
    "the link is cut": Rig.cut_link,
    "the link is a black hole": Rig.black_hole,
    "the wall clock jumps": Rig.jump_clock,
    "the disk is full": Rig.fill_disk,
    "the disk is read-only": Rig.write_protect,
}
ON_A_SMALL_DISK = {"the disk is full", "the disk is read-only"}


def may_mount() -> bool:
    """Whether a file system can be mounted here."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _note(number: int) -> str:
    return f"note {number % NOTES};"


def _mount(*arguments: str, check: bool = True) -> bool:
    return subprocess.run(["mount", *arguments], check=check, capture_output=True).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
