"""For tests of the MQTT transport: a real broker, a client, a wire between them that can be cut, and the transport
with a scripted pipeline behind it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import getpass
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Self, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged.access.gate import Gate
from edged.access.policy import Policy
from edged.api import Api
from edged.host import clock
from edged.transport.base import Backend
from edged.transport.mqtt import Backoff, MqttTransport, Settings
from edged.types import Ask, Caller, Delivery, Reply, Status
from edged.wire import reply_bytes

WAIT_S = 30.0  # for anything that should happen at once: two busy cores and a disk that takes a model meanwhile
ANONYMOUS = ("allow_anonymous true",)


def free_port() -> int:
    """A loopback port nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mosquitto:
    """A mosquitto child on a loopback port; its log is in `log`.

    Args:
        folder: for configuration, log and persistence.
        lines: of the configuration, the listener excluded.
        listener: of the configuration, about the listener.
        persistence: keep sessions over a restart.
    """

    def __init__(
        self, folder: Path, *, lines: Iterable[str] = ANONYMOUS, listener: Iterable[str] = (), persistence: bool = False
    ) -> None:
        self.port = free_port()
        self.log = folder / "mosquitto.log"
        self._config = folder / "mosquitto.conf"
        self._listener = tuple(listener)
        store = (
            "persistence true",
            f"persistence_location {folder}/",
            "autosave_on_changes true",
            "autosave_interval 1",
        )
        # mosquitto started by root becomes another user, who may not read the test's folder.
        self.lines = (*lines, *(store if persistence else ()), f"user {getpass.getuser()}", "log_dest stderr")
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        """Of the running child."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start and wait until it takes connections."""
        text = "\n".join((f"listener {self.port} 127.0.0.1", *self._listener, *self.lines, ""))
        self._config.write_text(text)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec("mosquitto", "-c", str(self._config), stderr=log)
        async with asyncio.timeout(WAIT_S):
            while not await self._listens():
                assert self._process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        """End it without a word, as a power cut does; what it had not saved is lost."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()

    async def stop(self) -> None:
        """End it; it says goodbye to its clients and saves its sessions."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            await process.wait()

    async def run(self, program: str, *arguments: str) -> str:
        """Run one of mosquitto's own clients against it; gives what it prints."""
        child = await asyncio.create_subprocess_exec(
            program, "-h", "127.0.0.1", "-p", str(self.port), *arguments, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(WAIT_S):
            out, _ = await child.communicate()
        assert child.returncode == 0, f"{program} ended with {child.returncode}"
        return out.decode()

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True


class Peer:
    """A client that keeps what it receives, in order. paho's own thread runs it: it shares nothing with what is
    tested."""

    def __init__(self, port: int, *, version: int = 5, client_id: str = "") -> None:
        self._loop = asyncio.get_running_loop()
        self._messages: list[paho.MQTTMessage] = []
        self._news = asyncio.Event()
        self._connected = asyncio.Event()
        self._subscribed = asyncio.Event()
        self._topics: list[str] = []
        self._confirmed: set[int] = set()
        self._port = port
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion(version)
        )
        self._client.on_connect = lambda *_: self._tell(self._begin)
        self._client.on_publish = lambda _c, _d, mid, *_: self._tell(self._confirmed.add, mid)
        self._client.on_subscribe = lambda *_: self._tell(self._subscribed.set)
        self._client.on_message = lambda _c, _d, message: self._tell(self._keep, message)

    async def __aenter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        await asyncio.wait_for(self._connected.wait(), WAIT_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    async def subscribe(self, topic: str) -> None:
        """Subscribe and wait until the broker agreed."""
        self._topics.append(topic)
        self._subscribed.clear()
        self._ask_for(topic)
        await asyncio.wait_for(self._subscribed.wait(), WAIT_S)

    async def publish(
        self, topic: str, payload: bytes | str, *, qos: int = 1, retain: bool = False, **marks: Any
    ) -> None:
        """Publish and wait for the broker's confirmation; `marks` are MQTT 5 properties by paho's names."""
        properties = None
        if marks:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho left it untyped
            for name, value in marks.items():
                setattr(properties, name, value)
        mid = self._client.publish(topic, payload, qos, retain, properties).mid
        await until(lambda: mid in self._confirmed)

    async def next(self, matches: Callable[[paho.MQTTMessage], bool] = lambda _: True) -> paho.MQTTMessage:
        """The oldest message that matches and was not taken yet; waits for it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for message in self._messages:
                    if matches(message):
                        self._messages.remove(message)
                        return message
                self._news.clear()
                await self._news.wait()

    def kept(self) -> list[paho.MQTTMessage]:
        """What came and was not taken."""
        return list(self._messages)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """From paho's thread to the loop of the test."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def _begin(self) -> None:
        """Also after a reconnect: the session of a test's client ends with its connection."""
        for topic in self._topics:
            self._ask_for(topic)
        self._connected.set()

    def _ask_for(self, topic: str) -> None:
        if self._client.protocol == MQTTProtocolVersion.MQTTv5:
            self._client.subscribe(topic, options=SubscribeOptions(qos=1, retainAsPublished=True))
        else:
            self._client.subscribe(topic, 1)

    def _keep(self, message: paho.MQTTMessage) -> None:
        self._messages.append(message)
        self._news.set()


class Wire:
    """A TCP proxy in front of a broker.

    Args:
        port: of the broker.
        greet: sees the first bytes of each connection (CONNECT); returns bytes to answer with before it is closed, or
            None to let it through.
        hear: gets (connection, whether it goes to the broker, bytes) of all that passes.
    """

    def __init__(
        self,
        port: int,
        *,
        greet: Callable[[bytes], bytes | None] = lambda _: None,
        hear: Callable[[int, bool, bytes], None] = lambda connection, up, data: None,
    ) -> None:
        self.port = 0
        self.connections = 0
        self._target = port
        self._greet = greet
        self._hear = hear
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._up_flows = asyncio.Event()
        self._up_flows.set()
        self._down_flows = asyncio.Event()
        self._down_flows.set()
        self.sent_up = bytearray()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.release()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Break all connections, as when the power of a switch goes."""
        for writer in self._writers:
            writer.transport.abort()

    def hold_up(self) -> None:
        """Keep back what goes to the broker."""
        self._up_flows.clear()

    def hold_down(self) -> None:
        """Keep back what comes from the broker."""
        self._down_flows.clear()

    def release(self) -> None:
        """Let everything through again."""
        self._up_flows.set()
        self._down_flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        async with self._open(writer):
            first = await reader.read(65_536)
            answer = self._greet(first)
            if answer is not None:
                writer.write(answer)
                with contextlib.suppress(OSError):
                    await writer.drain()
                return
            with contextlib.suppress(OSError):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
                async with self._open(up_writer):
                    self.sent_up += first
                    self._hear(number, True, first)
                    up_writer.write(first)

                    def rise(data: bytes) -> None:
                        self.sent_up.extend(data)
                        self._hear(number, True, data)

                    up = asyncio.create_task(self._pump(reader, up_writer, self._up_flows, rise))
                    sink = functools.partial(self._hear, number, False)
                    await self._pump(up_reader, writer, self._down_flows, sink)
                    writer.close()
                    up.cancel()
                    await asyncio.wait([up])

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        flows: asyncio.Event,
        seen: Callable[[bytes], None],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await flows.wait()
                seen(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    @contextlib.asynccontextmanager
    async def _open(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.close()


def marks(message: paho.MQTTMessage) -> Any:
    """The MQTT 5 properties of a message, as attributes by paho's names; paho left them untyped."""
    return message.properties


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


class Node:
    """The MQTT transport of node "n1" with agent "house", and a scripted pipeline behind it.

    `asks` and `calls` hold what was handed over, in order. While `gate` is clear, accept does not return; `error` is
    what it raises.
    """

    FAST = Backoff(base_s=0.02, cap_s=0.1, stable_s=30.0, taken_over_s=0.5)

    def __init__(self, port: int, *, backoff: Backoff = FAST, **settings: Any) -> None:
        scheme = settings.pop("scheme", "mqtt")
        host = settings.pop("host", "127.0.0.1")
        self.asks: list[Ask] = []
        self.calls: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.session_error: Exception | None = None
        self.document: dict[str, Any] = {"queue": 0}
        self._ids = itertools.count(1)
        self.transport = MqttTransport(
            Settings(**{"url": f"{scheme}://{host}:{port}", "node_id": "n1", "agents": ("house",), **settings}),
            backoff=backoff,
        )

    async def __aenter__(self) -> Self:
        nobody: Any = None
        others: Any = dict.fromkeys(set(Api.__struct_fields__) - {"requests"})
        api = Api(requests=cast(Any, self), **others)
        gate = Gate(Policy(["house"]))
        await self.transport.start(Backend(nobody, api, gate, lambda: self.document, nobody, nobody))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gate.set()
        await self.transport.stop()

    async def crash(self) -> None:
        """End without a word, as a killed process would."""
        owner = self.transport._owner
        assert owner is not None
        for task in [*self.transport._working, owner]:
            task.cancel()
        await asyncio.wait([owner])
        self.transport._client.abort("crash")
        self.transport._inflight.close()

    async def online(self) -> Self:
        """Wait until it can be asked."""
        await until(lambda: self.transport.status()["subscribed"])
        return self

    async def asked(self, number: int = 1) -> Ask:
        """Wait until so many requests were handed over; gives the last one."""
        await until(lambda: len(self.asks) >= number)
        return self.asks[number - 1]

    async def answer(self, ask: Ask, output: str, *, left_s: float = 300.0) -> None:
        """Deliver a reply to a request."""
        assert ask.address is not None
        reply = Reply(id=ask.request.id, rid="r1", status=Status.DONE, output=output)
        await self.transport.deliver(
            Delivery(
                id=next(self._ids),
                rid=reply.rid,
                transport="mqtt",
                request_id=reply.id,
                status=reply.status,
                address=ask.address,
                body=reply_bytes(reply),
                expires_boot=clock.boot() + left_s,
            )
        )

    async def submit(self, ask: Ask, on_delta: Callable[[int, str], None] | None = None) -> None:
        """See api.requests."""
        self.asks.append(ask)
        self.calls.append(ask.request.messages[-1].content)
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    async def cancel_unnamed(self, caller: Caller, name: str) -> None:
        """See api.requests."""
        self.calls.append(f"cancel {name} {caller.client.removeprefix('mqtt:')}")

    async def forget_packets(self) -> None:
        """See api.requests."""
        self.calls.append("session lost")
        if self.session_error is not None:
            raise self.session_error
