"""Bytes of strangers on live sockets: whatever comes, and whoever stays in the middle of it, others are served, and
what was held is free again."""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edged.access.gate import Gate
from edged.access.policy import Policy
from edged.transport.base import Backend
from edged.transport.http.core.limits import Limits
from edged.transport.mqtt import topics
from edged.transport.mqtt.client import Client, Will
from edged.transport.mqtt.messages import Incoming
from edged.transport.mqtt.pacing import V5, V311
from edged.transport.mqtt.packets import End, Hello
from edged.transport.mqtt.settings import Settings
from edged.transport.unix import server as unix
from edged.transport.unix.server import Session, UnixTransport
from edged.types import JSON
from tests.support.broker import Mosquitto, until
from tests.support.daemon import ASK, BASE, REPLY, Customer, Daemon, Wired
from tests.support.fuzz import anything, damaged, json_values, maps, texts, written
from tests.support.http_api import Desk, Line, reply, serving, unix_session

pytest_plugins = ("tests.support.http_fixtures",)
pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon that several tests share

MANY = 60  # examples in the suite: each is a connection or a message


def examples(strategy: st.SearchStrategy[Any]) -> list[Any]:
    """As many as the profile says, at most so many that a live socket takes seconds."""
    made: list[Any] = []

    @settings(
        max_examples=min(10 * MANY, max(MANY, settings().max_examples // 10)),
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(example: Any) -> None:
        made.append(example)

    draw()
    return made


# -- a daemon, with a broker -------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mosquitto]:
    """A real one."""
    async with Mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory, broker: Mosquitto) -> AsyncIterator[Daemon]:
    """Whose log shows no bug of its own, however it ends."""
    async with Daemon(tmp_path_factory.mktemp("daemon"), broker=broker.port) as running:
        yield running
        assert await running.stop() == 0
        assert "Traceback" not in running.text()
        assert "through a bug" not in running.text()


def descriptors(daemon: Daemon) -> int:
    """That the daemon has open."""
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))  # noqa: PTH208  # as many as there are now, nothing of them


async def served(daemon: Daemon) -> None:
    """A proper request is answered."""
    async with Wired(daemon.socket) as client:
        error, answer = await client.call(1, "agent.ask", {"input": "how full is the south tank"})
        assert error is None
        assert answer["output"] == "It is 41 percent full."


async def unharmed(daemon: Daemon, harm: Callable[[], Any]) -> None:
    """The daemon works as before, and holds what it held."""
    await served(daemon)
    before, process = descriptors(daemon), psutil.Process(daemon.pid)
    threads = process.num_threads()
    await harm()
    await served(daemon)
    await until(lambda: descriptors(daemon) <= before + 2)  # SQLite opens a reader when it needs one more
    assert process.num_threads() <= threads + 2


CALL = msgpack.packb([0, 1, "status", [{}]])
known = st.sampled_from(["input", "agent", "id", "name", "limit", "state", "rid"])
params = st.dictionaries(known | texts, json_values, max_size=3)
METHODS = ("agent.ask", "agent.submit", "request.get", "request.cancel", "requests.list", "status", "tools.call")
methods = st.sampled_from(METHODS)


def packed(value: Any) -> bytes:
    try:
        return bytes(msgpack.packb(value))
    except OverflowError:  # more than 64 bits
        return bytes(CALL)


calls = st.builds(lambda method, given: packed([0, 7, method, [given]]), methods | texts, params)


async def test_unix_socket_takes_any_bytes(daemon: Daemon) -> None:
    """Broken frames, and calls whose parameters are anything."""

    async def harm() -> None:
        for data in examples(anything(CALL) | damaged(CALL * 3) | calls | damaged(calls)):
            async with Wired(daemon.socket) as stranger:
                await stranger.raw(data)

    await unharmed(daemon, harm)


PATHS = (
    *("/v1/agents/house/requests", "/v1/chat/completions", "/v1/embeddings", "/v1/requests/%FF%00", "/metrics", "*"),
    *("/v1/requests/%ed%b3%bf", "/v1/models/%ff", "//", "/v1/agents/%2e%2e/requests", "http://[", "/?%"),
)
NAMES = ("Origin", "Content-Type", "Accept", "Idempotency-Key", "Prefer", "Transfer-Encoding", "Expect", "X-Api-Key")
VALUES = ("chunked", "100-continue", "respond-async", "text/event-stream", "application/msgpack")
heads = st.builds(
    "{} {} HTTP/1.1\r\nHost: x\r\n{}: {}\r\nContent-Length: {}\r\n\r\n".format,
    st.sampled_from(["GET", "POST", "DELETE", "OPTIONS", "PUT", "\0"]),
    st.sampled_from(PATHS),
    st.sampled_from(NAMES),
    texts | st.sampled_from(VALUES),
    st.sampled_from(["0", "2", "5", "-1", "9" * 30, "x"]),
)
bodies = json_values.map(written) | maps(("input", "model", "messages", "id", "stream")).map(written)
requests = st.builds(lambda head, body: head.encode("utf-8", "surrogateescape") + body, heads, bodies)
proper = st.builds(
    lambda path, body: f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body,
    st.sampled_from(["/v1/agents/house/requests", "/v1/chat/completions", "/v1/embeddings"]),
    bodies,
)
HTTP = b"POST /v1/agents/house/requests HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n" + b'{"input":"hi"}'
SURROGATES = (
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: \xff\xfe\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \xff\r\nContent-Length: 67\r\n\r\n"
    b'{"model":"house","messages":[{"role":"user","content":"how full is"}]}'[:67],
    b"GET /v1/requests/%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/requests/%ed%b2%80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"DELETE /v1/requests/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
)


async def test_http_takes_any_bytes(daemon: Daemon) -> None:
    """Each is told in HTTP what is wrong with it, or waits for more; none of it is a bug."""

    async def harm() -> None:
        for data in (*SURROGATES, *examples(anything(HTTP) | requests | proper | damaged(proper))):
            async with Line(daemon.folder / "run" / "http.sock") as stranger:
                stranger.send(data)
                stranger.writer.write_eof()
                answer = await stranger.end()
                assert not answer or re.match(rb"HTTP/1\.[01] (?!500)", answer), (data, answer)

    await unharmed(daemon, harm)


payloads = anything(b'{"input":"how full"}') | maps(("input", "messages", "reply_to", "id")).map(written)
plain = texts.filter(topics.is_text)
marks = st.fixed_dictionaries(
    {},
    optional={
        "ResponseTopic": st.sampled_from(["app/x", "edged/x", "$SYS/x"]),
        "CorrelationData": st.binary(max_size=20),
        "ContentType": plain | st.sampled_from(["application/msgpack", "application/json"]),
        "MessageExpiryInterval": st.integers(1, 2**32 - 1),
        "UserProperty": st.tuples(plain, plain).map(lambda pair: [pair]),
    },
)
kinds = st.sampled_from([("agents", "request"), ("requests", "cancel"), ("agents", "reply")])
below = st.builds(lambda kind, name: f"{BASE}/{kind[0]}/{name}/{kind[1]}", kinds, plain)
places = st.just(ASK) | below.filter(lambda topic: topics.publish_problem(topic) is None)


async def test_mqtt_takes_any_payload(daemon: Daemon, broker: Mosquitto) -> None:
    """Through a real broker, which keeps what is no MQTT from us."""

    async def harm() -> None:
        async with Customer(broker.port, client_id="stranger") as stranger:
            for topic, payload, said, qos in examples(st.tuples(places, payloads, marks, st.integers(0, 2))):
                await stranger.publish(topic, payload, qos=qos, **said)

    await unharmed(daemon, harm)
    async with Customer(broker.port, client_id="friend") as friend:
        await friend.subscribe(REPLY)
        await friend.ask("how full is the south tank", b"c1")
        [answer] = (await friend.answers([b"c1"]))[b"c1"]
        assert json.loads(answer)["output"] == "It is 41 percent full."


# -- a broker that sends anything --------------------------------------------------------------------------------------


def length(size: int) -> bytes:
    made = b""
    while size > 0x7F:
        made, size = made + bytes([size & 0x7F | 0x80]), size >> 7
    return made + bytes([size])


def packet(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + length(len(body)) + body


def publish(properties: bytes, payload: bytes = b"hi") -> bytes:
    topic = ASK.encode()
    return packet(
        0x32, struct.pack(">H", len(topic)) + topic + b"\0\1" + length(len(properties)) + properties + payload
    )


CONNACK = {V5: packet(0x20, b"\0\0\0"), V311: packet(0x20, b"\0\0")}
CORRECT = publish(b"\x08\0\5app/x" + b"\x09\0\1c")
scraps = st.builds(packet, st.integers(0, 255), st.binary(max_size=12)) | st.builds(publish, st.binary(max_size=12))
streams = st.tuples(st.sampled_from([V5, V311]), st.booleans(), anything(CORRECT) | damaged(CORRECT * 2) | scraps)


async def test_broker_that_sends_anything_ends_its_connection_only() -> None:
    """No error gets out of the client, which is over with it and can connect again."""
    failures: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    say = b""

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(say)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(broker, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    came: list[Incoming] = []
    try:
        for version, greeted, data in [(V5, True, CORRECT), *examples(streams)]:
            say = (CONNACK[version] if greeted else b"") + data
            ended: asyncio.Future[End] = loop.create_future()
            client = Client(
                Settings(url=f"mqtt://127.0.0.1:{port}", node_id="n1", agents=("house",)),
                version=version,
                will=Will("edged/n1/status", b""),
                on_message=came.append,
                on_confirmed=lambda mid, code: None,
                on_session=lambda hello: True,
                on_subscribed=lambda: None,
                on_end=ended.set_result,
            )
            async with asyncio.timeout(10):
                if isinstance(await client.connect(), Hello):
                    await ended
    finally:
        server.close()
        loop.set_exception_handler(None)
    assert failures == []
    assert came[0].topic == ASK
    assert came[0].response_topic == "app/x"


# -- peers that stay in the middle of something ------------------------------------------------------------------------


def tasks(name: str) -> int:
    return sum(name in task.get_name() for task in asyncio.all_tasks())


@pytest_asyncio.fixture(loop_scope="module")
async def rpc(tmp_path: Path) -> AsyncIterator[tuple[UnixTransport, Path]]:
    """The Unix socket alone, with two methods."""

    async def echo(_: Session, __: int, given: dict[str, JSON]) -> JSON:
        return given

    async def large(_: Session, __: int, ___: dict[str, JSON]) -> JSON:
        return "x" * 2**18

    path = tmp_path / "rpc.sock"
    methods = {"echo": echo, "large": large}
    transport = UnixTransport(path, mode=0o660, group=None, methods=lambda api: methods)
    nobody: Any = None
    await transport.start(Backend(nobody, nobody, Gate(Policy(["house"])), dict, nobody, nobody))
    yield transport, path
    await transport.stop()


async def test_half_a_frame_is_waited_for_so_long_and_no_longer(
    rpc: tuple[UnixTransport, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are answered meanwhile; who drips is no better off, who is silent between two frames may stay."""
    monkeypatch.setattr(unix, "FRAME_S", 0.5)
    transport, path = rpc
    frame = msgpack.packb([0, 1, "echo", [{"text": "x" * 1000}]])

    async def drip(stranger: Wired) -> None:
        for at in range(500, 900):
            await stranger.raw(frame[at : at + 1])
            await asyncio.sleep(0.02)

    async with Wired(path) as quiet, Wired(path) as dripping:
        await quiet.call(1, "echo")
        strangers = [Wired(path) for _ in range(30)]
        for stranger in strangers:
            await stranger.__aenter__()
            await stranger.raw(frame[:500])
        await dripping.raw(frame[:500])
        dropping = asyncio.create_task(drip(dripping))
        assert (await quiet.call(2, "echo", {"a": 1}))[1] == {"a": 1}
        for stranger in (*strangers, dripping):
            await stranger.end()
            assert stranger.notifications[0][1] == "error"
            assert "did not come within" in stranger.notifications[0][2][0]["message"]
        dropping.cancel()
        for stranger in strangers:
            await stranger.__aexit__()
        await until(lambda: len(transport._connections) == 1)
        assert (await quiet.call(3, "echo", {"a": 2}))[1] == {"a": 2}
    await until(lambda: not transport._connections)
    assert tasks("edged.unix") == 0


async def unreading(path: Path) -> Wired:
    """A peer that is there and does not read."""
    peer = Wired(path)
    await peer.__aenter__()
    peer._writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio reads ahead
    return peer


async def test_peer_that_never_reads_holds_so_many_answers_and_frees_them(rpc: tuple[UnixTransport, Path]) -> None:
    """It has asked for more than it may have in flight; nobody else waits for it."""
    transport, path = rpc
    async with Wired(path) as other:
        stranger = await unreading(path)
        for n in range(1000):
            stranger.send([0, n, "large", [{}]])
        await until(lambda: tasks("edged.unix.large") == unix.MAX_IN_FLIGHT)
        assert (await other.call(1, "echo", {"a": 1}))[1] == {"a": 1}
        assert tasks("edged.unix.large") == unix.MAX_IN_FLIGHT
        stranger._writer.transport.abort()  # not read, and gone
        await until(lambda: tasks("edged.unix.large") == 0)
        await until(lambda: len(transport._connections) == 1)


async def test_peer_that_does_not_read_for_long_loses_its_connection(
    rpc: tuple[UnixTransport, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is there; who reads keeps it."""
    monkeypatch.setattr(unix, "UNREAD_S", 0.5)
    transport, path = rpc
    async with Wired(path) as other:
        stranger = await unreading(path)
        for n in range(8):
            stranger.send([0, n, "large", [{}]])
        for n in range(8):
            assert (await other.call(n, "large"))[0] is None
        await until(lambda: len(transport._connections) == 1)
        assert tasks("edged.unix.large") == 0
        assert (await other.call(9, "echo", {"a": 1}))[1] == {"a": 1}
        await stranger.__aexit__()


async def test_many_short_calls_in_one_read_are_begun_in_turns(rpc: tuple[UnixTransport, Path]) -> None:
    """All are answered, and never more than so many are under way."""
    _, path = rpc
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, tasks("edged.unix.echo"))
            await asyncio.sleep(0)

    async with Wired(path) as client:
        watching = asyncio.create_task(watch())
        await client.raw(b"".join(msgpack.packb([0, n, "echo", []]) for n in range(3000)))
        assert (await client.answer(2999))[1] == {}
        watching.cancel()
    assert 1 <= most <= unix.MAX_IN_FLIGHT


async def test_half_open_http_is_cut_and_nothing_of_it_stays(desk: Desk, path: Path) -> None:
    """Heads that come byte by byte and stop anywhere, bodies that never come: each is over at its limit."""
    desk.says(reply())
    whole = b"POST /v1/agents/house/requests HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n" + b'{"input":"hi"'
    limits = Limits(head_s=0.4, body_s=0.4, linger_s=0.1)
    async with serving(desk, path, limits=limits) as running, unix_session(path) as other:
        before = len(asyncio.all_tasks())
        strangers = [Line(path) for _ in range(40)]
        for n, stranger in enumerate(strangers):
            await stranger.__aenter__()
            for byte in whole[: 1 + n * len(whole) // 40]:
                stranger.send(bytes([byte]))
        async with other.post("/v1/agents/house/requests", json={"input": "hi"}) as response:
            assert response.status == 200
        ends = [await stranger.end() for stranger in strangers]
        assert sum(end.startswith(b"HTTP/1.1 408") for end in ends) > 3  # those whose head was whole
        assert all(not end or end.startswith(b"HTTP/1.1 408") for end in ends)
        for stranger in strangers:
            await stranger.__aexit__()
        connections = running._services[0].connections
        await until(lambda: len(connections) <= 1 and not connections.answering)  # the other's is kept alive
        assert len(asyncio.all_tasks()) <= before + 1
