"""The real daemon as a child process, with a scripted model, a small plant and, where there is a broker, a lamp."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import apsw
import msgpack
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.store.database import Database
from edged.store.schema import MIGRATIONS
from tests.support.broker import Peer

ROOT = Path(__file__).parents[2]
START_S = 20.0  # a daemon needs a third of a second; two busy cores some patience
STOP_S = 20.0  # more than a stop with work and without a broker takes

BASE = "edged/n1"
ASK = f"{BASE}/agents/house/request"
REPLY = "app/reply"

PLANT = """
    PRAGMA journal_mode = WAL;
    CREATE TABLE tank_levels(tank TEXT NOT NULL, level REAL NOT NULL);
    CREATE TABLE valve_commands(id INTEGER PRIMARY KEY, valve TEXT NOT NULL, position TEXT NOT NULL);
    CREATE TABLE diary(id INTEGER PRIMARY KEY, text TEXT NOT NULL);
    INSERT INTO tank_levels VALUES ('north', 63), ('south', 41);
"""

TOOLS = """
[tools.tank_level]
description = "Latest level of one tank, in percent."
database = "plant"
sql = "SELECT level FROM tank_levels WHERE tank = :tank"
parameters.tank = { enum = ["north", "south"] }

[tools.set_valve]
description = "Open or close one valve."
database = "plant"
sql = "INSERT INTO valve_commands(valve, position) VALUES (:valve, :position)"
effect = "write"
say = "Valve {valve} is now {position}."
parameters.valve = { enum = ["north", "south"] }
parameters.position = { enum = ["open", "closed"] }

[tools.note]
description = "Write something into the diary."
database = "plant"
sql = "INSERT INTO diary(text) VALUES (:text)"
effect = "write"
parameters.text = { type = "string" }
"""

LAMP = """
[tools.lamp]
description = "Switch a lamp."
publish = { topic = "lamps/{lamp}/set", payload = '{"state":"{state}"}', qos = 1 }
on_uncertain = "ON_UNCERTAIN"
parameters.lamp = { enum = ["desk"] }
parameters.state = { enum = ["ON", "OFF"] }
"""


def entry(
    match: str,
    *calls: dict[str, Any],
    text: str = "done",
    token_s: float = 0.0,
    confidence: float = 1.0,
    sees: str = "",
) -> str:
    """An entry of the script (see edged.testing). JSON text is TOML text."""
    made = ", ".join(_inline(call) for call in calls)
    said = f"text = {json.dumps(text)}\ntoken_s = {token_s}\nconfidence = {confidence}"
    said += f"\nsees = {json.dumps(sees)}" if sees else ""
    return f"[[replies]]\nmatch = {json.dumps(match)}\ncalls = [{made}]\n{said}\n"


def _inline(call: dict[str, Any]) -> str:
    arguments = ", ".join(f"{name} = {json.dumps(value)}" for name, value in call["arguments"].items())
    return f'{{ name = "{call["name"]}", arguments = {{ {arguments} }} }}'


def note(text: str) -> dict[str, Any]:
    """A call that leaves a row in the diary."""
    return {"name": "note", "arguments": {"text": text}}


NOTES = 40  # "note 0;" to "note 39;" each write a row of their own

SCRIPT = "".join(
    (
        entry("open the north valve", {"name": "set_valve", "arguments": {"valve": "north", "position": "open"}}),
        entry("how full", {"name": "tank_level", "arguments": {"tank": "south"}}, text="It is 41 percent full."),
        entry("lamp on", {"name": "lamp", "arguments": {"lamp": "desk", "state": "ON"}}, text="The lamp is on."),
        entry("tell a story", text="one two three", token_s=0.02),
        entry("never ends", text="word " * 10_000, token_s=0.05),
        entry("much text", text="abcdefghi " * 200_000),
        *(entry(f"note {n};", note(f"n{n}"), text=f"noted {n}") for n in range(NOTES)),
    )
)


# What systemd does between fork and exec: the descriptors named before the program become 3, 4, ...
ACTIVATION = """
import os, sys
numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
copies = [os.dup(number) for number in numbers]
for number in numbers:
    os.close(number)
for place, copy in enumerate(copies, start=3):
    os.dup2(copy, place)
    os.set_inheritable(place, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(copies)), LISTEN_FDNAMES="edged.socket")
os.execv(sys.argv[1 + len(numbers)], sys.argv[1 + len(numbers):])
"""


class Daemon:
    """edged as a child process; everything of it lies in `folder`.

    Args:
        broker: port of the broker; None: no MQTT and no lamp.
        config: more tables, TOML.
        script: of the model.
        on_uncertain: of the lamp.
        environment: added to the daemon's.
        passed: listening sockets that it is started with, as by systemd.
    """

    def __init__(
        self,
        folder: Path,
        *,
        broker: int | None = None,
        config: str = "",
        script: str = SCRIPT,
        on_uncertain: str = "retry",
        environment: dict[str, str] | None = None,
        passed: Sequence[socket.socket] = (),
    ) -> None:
        self.folder = folder
        self.passed = passed
        self.config = folder / "edged.toml"
        self.socket = folder / "run" / "edged.sock"
        self.plant = folder / "plant.db"
        self.log = folder / "edged.log"
        self.notices: list[str] = []
        self.environment = environment or {}
        self._news = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._manager: socket.socket | None = None
        tools = ["tank_level", "set_valve", "note", *(["lamp"] if broker else [])]
        mqtt = f'[mqtt]\nurl = "mqtt://127.0.0.1:{broker}"\n{LAMP.replace("ON_UNCERTAIN", on_uncertain)}'
        (folder / "script.toml").write_text(script)
        self.config.write_text(
            f'[node]\nid = "n1"\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
            f'[databases.plant]\npath = "{self.plant}"\nmode = "rw"\n'
            f'[models.small]\nsource = "scripted:{folder}/script.toml"\n'
            f'[agents.house]\nmodel = "small"\nsystem = "You run a greenhouse."\ntools = {json.dumps(tools)}\n'
            f"{TOOLS}{mqtt if broker else ''}{config}"
        )
        with contextlib.closing(apsw.Connection(str(self.plant))) as plant:
            plant.execute(PLANT).fetchall()  # runs what follows the pragma

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._forget()

    @property
    def pid(self) -> int:
        """Of the running child."""
        assert self._process is not None
        return self._process.pid

    async def start(self, fault: str | None = None, *, ready: bool = True) -> None:
        """Start it and wait until it says that it is ready.

        Args:
            fault: where it dies, once (see faulty_daemon).
            ready: False where it may die before it is.
        """
        self._forget()
        self._listen()
        environment = {
            **os.environ,
            **self.environment,
            "NOTIFY_SOCKET": str(self.folder / "notify"),
            "EDGED_TEST_MARKER": str(self.folder / "died"),
            **({"EDGED_TEST_FAULT": fault} if fault else {}),
        }
        plain = fault is None and not any(name.startswith("EDGED_TEST_") for name in self.environment)
        program = (
            ["-m", "edged", "run", "--config"] if plain else [str(ROOT / "tests" / "support" / "faulty_daemon.py")]
        )
        numbers = tuple(end.fileno() for end in self.passed)
        activation = ["-c", ACTIVATION, *map(str, numbers)] if numbers else []
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, *activation, *([sys.executable] if activation else []), *program, str(self.config)),
                stderr=log,
                env=environment,
                cwd=ROOT,
                pass_fds=numbers,
            )
        if ready:
            await self.noticed("READY=1")

    async def noticed(self, line: str, times: int = 1) -> None:
        """Wait until it told the service manager so many lines that begin so."""
        async with asyncio.timeout(START_S):
            while sum(notice.startswith(line) for notice in self.notices) < times:
                assert self._process is not None
                assert self._process.returncode is None, f"it ended:\n{self.text()}"
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), 0.5)  # looks at the exit status in between

    def drop_in(self, text: str, name: str = "50.toml") -> Path:
        """More configuration; counts from the next start or reload on."""
        path = self.config.parent / "conf.d" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def hang_up(self) -> None:
        """SIGHUP: it is to reload."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    async def reload(self) -> None:
        """SIGHUP, and wait until it is through with it, however it went."""
        ready = self.notices.count("READY=1")
        self.hang_up()
        await self.noticed("READY=1", ready + 1)

    async def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return await self.ended()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self._process is not None
        self._process.kill()
        assert await self.ended() == -signal.SIGKILL

    async def ended(self) -> int:
        """Wait until it ends; its exit status."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), STOP_S)

    def text(self) -> str:
        """Its log so far, of all its lives."""
        return self.log.read_text()

    def states(self) -> list[str]:
        """States of all requests in its store, in order of arrival."""
        with contextlib.closing(apsw.Connection(str(self.folder / "state" / "edged.db"))) as store:
            store.set_busy_timeout(5000)
            return [str(state) for (state,) in store.execute("SELECT state FROM requests ORDER BY seq")]

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        """Rows of a table of the plant, without their numbers."""
        with contextlib.closing(apsw.Connection(str(self.plant))) as plant:
            plant.set_busy_timeout(5000)  # the daemon's tool may be committing
            return [row[1:] for row in plant.execute(f"SELECT * FROM {table} ORDER BY id")]

    def execute(self, statement: str) -> None:
        """Change the plant's database, as another program of the board."""
        with contextlib.closing(apsw.Connection(str(self.plant))) as plant:
            plant.set_busy_timeout(5000)
            plant.execute(statement).fetchall()

    def _listen(self) -> None:
        self.notices = []
        path = self.folder / "notify"
        path.unlink(missing_ok=True)
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(path))
        self._manager.setblocking(False)
        asyncio.get_running_loop().add_reader(self._manager, self._notice)

    def _notice(self) -> None:
        assert self._manager is not None
        self.notices += self._manager.recv(65_536).decode().splitlines()
        self._news.set()

    def _forget(self) -> None:
        if self._manager is not None:
            asyncio.get_running_loop().remove_reader(self._manager)
            self._manager.close()
            self._manager = None


class Customer(Peer):
    """An MQTT client whose session outlives its connection, as that of a device that must not miss its answers."""

    SESSION_S = 3600

    def __init__(self, port: int, **options: Any) -> None:
        super().__init__(port, **options)
        self.copies: dict[bytes, list[bytes]] = {}

    async def __aenter__(self) -> Self:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho left it untyped
        properties.SessionExpiryInterval = self.SESSION_S
        self._client.reconnect_delay_set(1, 1)
        # Never a clean start: mosquitto 2.0 keeps no session over its own restart that began with one.
        self._client.connect("127.0.0.1", self._port, clean_start=False, properties=properties)
        self._client.loop_start()
        async with asyncio.timeout(START_S):
            await self._connected.wait()
        return self

    async def online(self) -> None:
        """Wait until the daemon says that it is there."""
        await self.subscribe(f"{BASE}/status")
        await self.next(lambda m: m.topic == f"{BASE}/status" and json.loads(m.payload)["state"] == "online")

    async def answers(self, correlations: Iterable[bytes]) -> dict[bytes, list[bytes]]:
        """Wait until each has a reply that was not seen yet; gives all copies that ever came, by Correlation Data."""
        missing = set(correlations)
        while missing:
            message = await self.next(lambda m: m.topic == REPLY)
            missing.discard(self._note(message))
        for message in self.kept():
            if message.topic == REPLY:
                self._note(await self.next(lambda m: m.topic == REPLY))
        return self.copies

    def _note(self, message: paho.MQTTMessage) -> bytes:
        correlation: bytes = getattr(message.properties, "CorrelationData", b"")
        self.copies.setdefault(correlation, []).append(bytes(message.payload))
        return correlation

    async def ask(self, text: str, correlation: bytes) -> None:
        """A request with Response Topic and Correlation Data, QoS 1."""
        await self.publish(ASK, text, ResponseTopic=REPLY, CorrelationData=correlation)

    async def next(self, matches: Any = lambda _: True, within_s: float = START_S) -> paho.MQTTMessage:
        """As Peer.next, with the patience that a daemon's restart needs."""
        async with asyncio.timeout(within_s):
            while True:
                with contextlib.suppress(TimeoutError):
                    return await super().next(matches)


class Wired:
    """A MessagePack-RPC client made of a socket and msgpack: shares no line with what is tested."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=2**28)
        self.notifications: list[Any] = []
        self._answers: dict[int, Any] = {}
        self.ended = False

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_unix_connection(str(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def send(self, frame: Any) -> None:
        """One frame."""
        self._writer.write(msgpack.packb(frame))

    async def raw(self, data: bytes) -> None:
        """Bytes as they are; whether the peer still takes them is seen later."""
        self._writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def call(self, msgid: int, method: str, params: Any = None) -> tuple[Any, Any]:
        """(error, result) of a call."""
        self.send([0, msgid, method, [params or {}]])
        return await self.answer(msgid)

    async def answer(self, msgid: int) -> tuple[Any, Any]:
        """(error, result) of a call that was sent."""
        async with asyncio.timeout(START_S):
            while msgid not in self._answers:
                assert await self.read(), "the connection ended without the answer"
        error, result = self._answers.pop(msgid)
        return error, result

    async def running(self) -> None:
        """Wait until the daemon works on a request."""
        async with asyncio.timeout(START_S):
            while not (await self.call(2**31, "requests.list", {"state": "running"}))[1]:
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Wait until the daemon closes the connection."""
        async with asyncio.timeout(START_S):
            while await self.read():
                pass

    async def read(self) -> bool:
        """Read what is there; False at the end."""
        try:
            data = await self._reader.read(65_536)
        except ConnectionError:
            data = b""
        self._unpacker.feed(data)
        for frame in self._unpacker:
            if frame[0] == 1:
                self._answers[frame[1]] = frame[2:]
            else:
                self.notifications.append(frame)
        return bool(data)


def store(folder: Path) -> Database:
    """A store for a pipeline inside the test."""
    return Database(folder / "edged.db", MIGRATIONS)
