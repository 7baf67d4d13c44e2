"""Connections that break, brokers that restart, sessions that are lost: nothing acknowledged is lost, and nothing is
acknowledged that is not safe."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from edged.errors import Busy, NoLink
from edged.transport.mqtt import client, connection
from edged.transport.mqtt.transport import PAUSE_READING_AT
from edged.types import Address, Ask, Caller, Message, Packet, Request
from tests.support.broker import Mosquitto, Node, Peer, Wire, marks, until

pytestmark = pytest.mark.broker

ASK = "edged/n1/agents/house/request"
CONNACK_OLD_BROKER = b"\x20\x02\x00\x01"  # 3.1.1: unacceptable protocol version
CONNACK_V5_REFUSED = b"\x20\x03\x00\x84\x00"  # 5: unsupported protocol version


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker that keeps its sessions over a restart."""
    async with Mosquitto(tmp_path, persistence=True) as mosquitto:
        yield mosquitto


def text(ask: Ask) -> str:
    """What was asked."""
    return ask.request.messages[-1].content


def packet(ask: Ask) -> Packet:
    """The packet's identity, which QoS 1 always has."""
    assert ask.packet is not None
    return ask.packet


def sent_pubacks(wire: Wire) -> list[int]:
    """Packet ids of the PUBACKs that went to the broker, by their bytes: 40 02 hi lo."""
    seen = bytes(wire.sent_up)
    return [seen[i + 3] for i in range(len(seen) - 3) if seen[i : i + 3] == b"\x40\x02\x00"]


async def test_request_not_committed_is_delivered_again_to_the_next_daemon(broker: Mosquitto) -> None:
    """Killed before the commit: the broker has it still, marked as a duplicate, under the same packet id."""
    async with Peer(broker.port) as peer:
        first = Node(broker.port)
        await first.__aenter__()
        await first.online()
        first.gate.clear()
        await peer.publish(ASK, "hello", MessageExpiryInterval=100)
        before = packet(await first.asked())
        await first.crash()
        async with Node(broker.port) as second:
            after = packet(await second.asked())
            assert second.calls == ["hello"], "the session was kept"
    assert not before.duplicate
    assert after == Packet(before.mid, before.digest, duplicate=True)


async def test_acknowledged_request_is_not_delivered_again(broker: Mosquitto) -> None:
    """The PUBACK follows the commit, and a clean stop leaves nothing unacknowledged."""
    async with Peer(broker.port) as peer:
        async with Node(broker.port) as first:
            await first.online()
            await peer.publish(ASK, "one")
            await first.asked()
        async with Node(broker.port) as second:
            await second.online()
            await peer.publish(ASK, "two")
            assert text(await second.asked()) == "two"
            assert second.calls == ["two"]


async def test_requests_are_acknowledged_in_receive_order(broker: Mosquitto) -> None:
    """However their commits end: here the first one waits for the confirmation of its refusal."""
    async with Wire(broker.port) as wire, Node(wire.port) as node, Peer(broker.port) as peer:
        await node.online()
        await until(lambda: node.transport.status()["in_flight"] == 0)
        node.gate.clear()
        for n in range(3):
            await peer.publish(ASK, str(n))
        await node.asked(3)
        assert sent_pubacks(wire) == []
        node.gate.set()
        await until(lambda: len(sent_pubacks(wire)) == 3)
        assert sent_pubacks(wire) == [packet(ask).mid for ask in node.asks]


async def test_refused_request_is_acknowledged_after_its_refusal_is_confirmed(broker: Mosquitto) -> None:
    """Else a refusal that gets lost would leave a client without any answer."""
    async with Wire(broker.port) as wire, Node(wire.port) as node, Peer(broker.port) as peer:
        await peer.subscribe("app/#")
        await node.online()
        await until(lambda: node.transport.status()["in_flight"] == 0)
        node.gate.clear()
        node.error = Busy("full")
        await peer.publish(ASK, "hello", ResponseTopic="app/r")
        await node.asked()
        wire.hold_down()
        node.gate.set()
        await peer.next()
        assert sent_pubacks(wire) == []
        wire.cut()
        wire.release()
        # The next connection brings the request again and confirms the refusal; only then it is over.
        node.error = None
        assert packet(await node.asked(2)).duplicate
        await until(lambda: sent_pubacks(wire) == [packet(node.asks[0]).mid])


async def test_puback_of_a_broken_connection_is_not_sent_on_the_next(broker: Mosquitto) -> None:
    """Its packet id may be another packet's there."""
    async with Wire(broker.port) as wire, Node(wire.port) as node, Peer(broker.port) as peer:
        await node.online()
        node.gate.clear()
        await peer.publish(ASK, "hello")
        await node.asked()
        wire.cut()
        await node.asked(2)
        assert packet(node.asks[1]) == Packet(packet(node.asks[0]).mid, packet(node.asks[0]).digest, duplicate=True)
        node.gate.set()
        await until(lambda: sent_pubacks(wire))
        await peer.publish(ASK, "next")
        await node.asked(3)
        await until(lambda: len(sent_pubacks(wire)) == 2)


async def test_reply_that_was_not_confirmed_is_sent_again_with_the_same_bytes(broker: Mosquitto) -> None:
    """The broker had it, the confirmation was lost: the client sees two copies, and cannot tell them apart."""
    async with Wire(broker.port) as wire, Node(wire.port) as node, Peer(broker.port) as peer:
        await peer.subscribe("app/#")
        await node.online()
        await peer.publish(ASK, "hello", ResponseTopic="app/r", CorrelationData=b"c")
        ask = await node.asked()
        wire.hold_down()
        delivery = asyncio.create_task(node.answer(ask, "hi"))
        first = await peer.next()
        assert not delivery.done()
        wire.cut()
        wire.release()
        second = await peer.next()
        await asyncio.wait_for(delivery, 5)
        assert second.payload == first.payload
        assert copied_marks(second) == copied_marks(first)
        assert node.transport.status()["replied"] == 1


async def test_reply_survives_the_loss_of_the_session(tmp_path: Path) -> None:
    """A broker without persistence restarts while a reply is on its way, and another is only asked for."""
    async with Mosquitto(tmp_path) as broker, Wire(broker.port) as wire, Node(wire.port) as node:
        await node.online()
        wire.hold_up()
        address = Address("app/r", b"c")
        ask = an_ask(address)
        flying = asyncio.create_task(node.answer(ask, "flying"))
        await until(lambda: node.transport.status()["in_flight"] >= 1)
        await broker.stop()
        wire.cut()
        await until(lambda: not node.transport.status()["connected"])
        waiting = asyncio.create_task(node.answer(ask, "waiting"))
        await broker.start()
        async with Peer(broker.port) as peer:
            await peer.subscribe("app/#")
            wire.release()
            await asyncio.wait_for(asyncio.gather(flying, waiting), 5)
            outputs = {json.loads((await peer.next()).payload)["output"] for _ in range(2)}
        assert outputs == {"flying", "waiting"}
        assert node.calls == ["session lost", "session lost"]


async def test_loss_of_the_session_is_told_before_its_first_request(tmp_path: Path) -> None:
    """Old packet ids mean nothing any more; a request must not be taken for one of them."""
    async with Mosquitto(tmp_path) as broker, Node(broker.port) as node:
        await node.online()
        await broker.stop()
        await until(lambda: not node.transport.status()["connected"])
        await broker.start()
        async with Peer(broker.port) as peer:
            await node.online()
            await peer.publish(ASK, "hello")
            await node.asked()
        assert node.calls == ["session lost", "session lost", "hello"]


async def test_broker_restarts_amid_requests_and_nothing_is_lost(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """Every request a client got a PUBACK for comes through and gets its reply; the log stays short."""
    caplog.set_level(logging.DEBUG, "edged")
    names = [str(n) for n in range(30)]
    async with Node(broker.port) as node, Peer(broker.port, client_id="peer") as peer:
        await node.online()
        await peer.subscribe("app/#")
        asking = [asyncio.create_task(peer.publish(ASK, n, ResponseTopic=f"app/{n}")) for n in names]
        await node.asked()
        for _ in range(2):
            await broker.stop()
            await broker.start()
            await node.online()
        await asyncio.gather(*asking)
        await until(lambda: {text(ask) for ask in node.asks} == set(names))
        await peer.subscribe("app/again")  # so its other subscription is there again, too
        await asyncio.gather(*(node.answer(ask, "x") for ask in {text(ask): ask for ask in node.asks}.values()))
        assert {(await peer.next()).topic for _ in names} == {f"app/{n}" for n in names}
    assert "session lost" not in node.calls[1:]
    lines = [r for r in caplog.records if r.levelno >= logging.INFO and r.name.startswith("edged")]
    assert len(lines) <= 4, [r.getMessage() for r in lines]


async def test_session_loss_that_cannot_be_recorded_lets_no_request_in(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk: the connection is given up before anything is handed on, and tried again."""
    async with Node(broker.port) as node:
        node.session_error = OSError("disk full")
        await until(lambda: len(node.calls) >= 2)
        assert "could not be recorded" in caplog.text
        node.session_error = None
        async with Peer(broker.port) as peer:
            await until(lambda: len(node.calls) >= 3)
            await node.online()
            await peer.publish(ASK, "hello")
            await node.asked()


async def test_accept_that_hangs_does_not_keep_the_daemon_from_stopping(broker: Mosquitto) -> None:
    """Within its grace; the request is delivered again."""
    node = Node(broker.port)
    await node.__aenter__()
    await node.online()
    node.gate.clear()
    async with Peer(broker.port) as peer:
        await peer.publish(ASK, "hello")
        await node.asked()
        await asyncio.wait_for(node.transport.stop(grace_s=2.2), 4)
        with pytest.raises(NoLink):
            await node.transport.publish("app/x", b"", qos=1)
        async with Node(broker.port) as second:
            assert packet(await second.asked()).duplicate


async def test_stopping_daemon_leaves_new_requests_to_the_next(broker: Mosquitto) -> None:
    """Replies still go out, and what was taken is acknowledged."""
    async with Peer(broker.port) as peer:
        await peer.subscribe("app/#")
        async with Node(broker.port) as node:
            await node.online()
            await peer.publish(ASK, "old", ResponseTopic="app/r")
            ask = await node.asked()
            node.transport.stop_taking()
            await peer.publish(ASK, "new")
            await node.answer(ask, "hi")
            assert (await peer.next()).topic == "app/r"
        assert [text(ask) for ask in node.asks] == ["old"]
        async with Node(broker.port) as second:
            assert text(await second.asked()) == "new"
            assert second.calls == ["new"]


async def test_stop_without_a_broker_is_immediate() -> None:
    """Nobody waits for a connection that is not there."""
    node = Node(1)  # nothing listens on port 1
    await node.__aenter__()
    await until(lambda: node.transport.status()["error"])
    waiting = asyncio.create_task(node.transport.publish("app/x", b"", qos=1))
    await asyncio.sleep(0)
    await asyncio.wait_for(node.transport.stop(), 1)
    with pytest.raises(NoLink):
        await waiting


@pytest.mark.parametrize(
    ("answer", "connections"),
    [(CONNACK_OLD_BROKER, 2), (CONNACK_V5_REFUSED, 2), (b"", 3), (b"HTTP/1.1 400 Bad Request\r\n\r\n", 3)],
    ids=["3.1.1 return code", "v5 reason code", "closes", "garbage"],
)
async def test_broker_that_refuses_v5_gets_311(broker: Mosquitto, answer: bytes, connections: int) -> None:
    """At once when it says so, at the second time when it only closes; requests and replies work as before."""

    def greet(first: bytes) -> bytes | None:
        level = first[first.index(b"\x00\x04MQTT") + 6]
        return answer if level == 5 else None

    async with Wire(broker.port, greet=greet) as wire, Node(wire.port) as node, Peer(broker.port) as peer:
        await peer.subscribe("app/#")
        await node.online()
        assert node.transport.status()["version"] == "3.1.1"
        assert wire.connections == connections
        await peer.publish(ASK, json.dumps({"input": "x", "reply_to": "app/r"}))
        await node.answer(await node.asked(), "hi")
        assert json.loads((await peer.next()).payload)["output"] == "hi"
        await peer.publish(ASK, json.dumps({"input": "y", "reply_to": "edged/x"}))
        node.error = Busy("full")
        await peer.publish(ASK, json.dumps({"input": "z", "reply_to": "app/r"}))
        assert json.loads((await peer.next()).payload)["error"]["code"] == "busy"


async def test_reply_in_the_air_moves_over_to_311(broker: Mosquitto) -> None:
    """The broker was replaced by an old one: another client object, the same reply."""
    old = False

    def greet(first: bytes) -> bytes | None:
        return CONNACK_OLD_BROKER if old and b"MQTT\x05" in first else None

    async with Wire(broker.port, greet=greet) as wire, Node(wire.port) as node, Peer(broker.port) as peer:
        await peer.subscribe("app/#")
        await node.online()
        await until(lambda: node.transport.status()["in_flight"] == 0)
        wire.hold_up()
        ask = an_ask(Address("app/r", b"c"))
        delivery = asyncio.create_task(node.answer(ask, "hi"))
        await until(lambda: node.transport.status()["in_flight"] == 1)
        old = True
        wire.cut()
        wire.release()
        assert json.loads((await peer.next()).payload)["output"] == "hi"
        await asyncio.wait_for(delivery, 5)
        assert node.transport.status()["version"] == "3.1.1"


async def test_two_daemons_with_one_node_id_do_not_fight(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    """mosquitto 2.0 closes without a word; one that is thrown out again and again says what is likely wrong, and
    waits."""
    async with Wire(broker.port) as wire, Node(wire.port) as first, Node(wire.port) as second:
        await until(lambda: "same node.id" in caplog.text)
        assert wire.connections <= 8
        # The wait is half a second at least here; in it the other one works undisturbed.
        async with Peer(broker.port) as peer:
            await peer.publish(ASK, "hello")
            await until(lambda: first.asks or second.asks)


async def test_broker_that_tells_of_a_takeover_is_believed_at_once(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """DISCONNECT with reason 0x8E: the next attempt comes after the long wait."""
    taken_over = b"\x20\x03\x00\x00\x00" + b"\xe0\x01\x8e"
    answers = [taken_over]
    async with Wire(broker.port, greet=lambda _: answers.pop() if answers else None) as wire:
        began = asyncio.get_running_loop().time()
        async with Node(wire.port) as node:
            await until(lambda: "same node.id" in caplog.text)
            await until(lambda: wire.connections == 2)
            assert asyncio.get_running_loop().time() - began >= Node.FAST.taken_over_s
            await node.online()


async def test_slow_broker_loses_deltas_and_never_the_reply(broker: Mosquitto) -> None:
    """Its connection takes nothing for a while: memory stays bounded, the reply arrives."""
    async with Wire(broker.port) as wire, Node(wire.port) as node, Peer(broker.port) as peer:
        await peer.subscribe("app/#")
        await node.online()
        wire.hold_up()
        address = Address("app/r")
        piece = "x" * 50_000
        sent = 0
        while not node.transport._client.congested:
            node.transport._sender.delta(address, sent * len(piece), piece)
            sent += 1
            await asyncio.sleep(0)
            assert sent < 1000, "nothing stops it"
        for _ in range(1000):
            node.transport._sender.delta(address, 0, piece)
        assert node.transport.status()["connected"]
        ask = an_ask(address)
        delivery = asyncio.create_task(node.answer(ask, "hi"))
        wire.release()
        await asyncio.wait_for(delivery, 10)
        await peer.next(lambda message: message.topic == "app/r")
        assert len(peer.kept()) <= sent


async def test_broker_that_takes_few_publishes_at_a_time_gets_few(tmp_path: Path) -> None:
    """More than its Receive Maximum, and MQTT 5 ends the connection."""
    lines = ("allow_anonymous true", "max_inflight_messages 2")
    async with Mosquitto(tmp_path, lines=lines) as broker, Wire(broker.port) as wire, Node(wire.port) as node:
        await node.online()
        ask = an_ask(Address("app/r"))
        await asyncio.wait_for(asyncio.gather(*(node.answer(ask, str(n)) for n in range(50))), 5)
        assert wire.connections == 1


async def test_broker_that_takes_fewer_than_before_gets_the_rest_later(broker: Mosquitto) -> None:
    """What is in flight from the last connection counts as well."""
    async with Wire(broker.port) as wire, Node(wire.port) as node:
        await node.online()
        await until(lambda: node.transport.status()["in_flight"] == 0)
        wire.hold_up()
        ask = an_ask(Address("app/r"))
        answers = [asyncio.create_task(node.answer(ask, str(n))) for n in range(10)]
        await until(lambda: node.transport.status()["in_flight"] == 10)
        await broker.stop()
        await until(lambda: not node.transport.status()["connected"])
        broker.lines += ("max_inflight_messages 2",)
        wire.cut()
        wire.release()
        await broker.start()
        await node.online()
        connections = wire.connections
        async with Peer(broker.port):
            await asyncio.wait_for(asyncio.gather(*answers), 5)
        assert wire.connections == connections
        assert node.calls == ["session lost"], "the session itself was kept"


async def test_half_open_connection_is_noticed_and_replaced(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The router is gone and no packet says so: only the missing answer to a ping tells."""
    monkeypatch.setattr(client, "KEEPALIVE_S", 1)
    monkeypatch.setattr(connection, "TICK_S", 0.1)
    async with Wire(broker.port) as wire, Node(wire.port) as node:
        await node.online()
        wire.hold_up()
        wire.hold_down()
        await until(lambda: "no sign of life" in str(node.transport.status()["error"]))
        wire.release()
        await node.online()
        assert wire.connections == 2


async def test_idle_connection_is_kept_alive(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pings: the broker ends a connection after one and a half times the keep-alive."""
    monkeypatch.setattr(client, "KEEPALIVE_S", 1)
    monkeypatch.setattr(connection, "TICK_S", 0.1)
    async with Wire(broker.port) as wire, Node(wire.port) as node:
        await node.online()
        await until(lambda: wire.sent_up.count(b"\xc0\x00") >= 2)
        assert node.transport.status()["connected"]
        assert wire.connections == 1


async def test_flood_without_acknowledgement_is_held_back(broker: Mosquitto) -> None:
    """QoS 0 has no Receive Maximum: the daemon stops reading, and loses nothing by it."""
    async with Node(broker.port) as node, Peer(broker.port) as peer:
        await node.online()
        node.gate.clear()
        for n in range(300):
            await peer.publish(ASK, str(n), qos=0)
        await node.asked(PAUSE_READING_AT)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(node.asks) == PAUSE_READING_AT
        node.gate.set()
        await node.asked(300)
        assert [text(ask) for ask in node.asks] == [str(n) for n in range(300)]


def an_ask(address: Address) -> Ask:
    """A request of an earlier connection."""
    request = Request(agent="house", messages=(Message("user", "hello"),))
    return Ask(request=request, caller=Caller("mqtt:app/r", "mqtt", frozenset({"house"})), address=address)


def copied_marks(message: paho.MQTTMessage) -> tuple[object, ...]:
    """What must not differ between two copies of a reply."""
    return marks(message).CorrelationData, marks(message).ContentType, marks(message).UserProperty
