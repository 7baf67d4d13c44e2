"""Requests over a real broker: what the pipeline is handed, what the client gets back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edged.errors import Busy, ToolFailed
from edged.types import Address, Format
from tests.support.broker import Mosquitto, Node, Peer, marks, until

pytestmark = pytest.mark.broker

ASK = "edged/n1/agents/house/request"
REPLY = "edged/n1/agents/house/reply"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker that asks for nothing."""
    async with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto


@pytest.fixture
async def node(broker: Mosquitto) -> AsyncIterator[Node]:
    """A transport that is connected."""
    async with Node(broker.port) as node:
        yield await node.online()


@pytest.fixture
async def peer(broker: Mosquitto, node: Node) -> AsyncIterator[Peer]:
    """A client that listens to its own reply topic, the default one and the node's streams."""
    async with Peer(broker.port) as peer:
        await peer.subscribe("app/#")
        await peer.subscribe(f"{REPLY}/#")
        yield peer


async def test_v5_request_gets_its_reply_with_correlation_type_properties_and_expiry(node: Node, peer: Peer) -> None:
    """The whole of a well-made MQTT 5 request and its reply."""
    properties: dict[str, Any] = {
        "ResponseTopic": "app/r",
        "CorrelationData": b"\x00\xff7",
        "ContentType": "application/json",
    }
    body = json.dumps({"input": "hello", "id": "q1"})
    await peer.publish(ASK, body, MessageExpiryInterval=500, **properties)
    ask = await node.asked()
    assert ask.request.id == "q1"
    assert ask.request.agent == "house"
    assert ask.caller.client == "mqtt:app/r"
    assert ask.caller.agents == {"house"}
    assert ask.key is None, "the id of the client is its name"
    assert ask.expiry_s == 500
    assert ask.address == Address("app/r", b"\x00\xff7", Format.JSON)
    assert ask.packet is not None
    assert not ask.packet.duplicate
    await node.answer(ask, "hi", left_s=300)
    reply = await peer.next()
    assert reply.topic == "app/r"
    assert reply.qos == 1
    assert json.loads(reply.payload)["output"] == "hi"
    assert marks(reply).CorrelationData == b"\x00\xff7"
    assert marks(reply).ContentType == "application/json"
    assert dict(marks(reply).UserProperty) == {"status": "done", "id": "q1", "rid": "r1"}
    assert 295 <= marks(reply).MessageExpiryInterval <= 300


async def test_request_without_id_is_named_by_its_correlation_data(node: Node, peer: Peer) -> None:
    """And bounded by the default expiry; a reply never expires before a minute is over."""
    await peer.publish(ASK, "hello", ResponseTopic="app/r", CorrelationData=b"\x01\x02")
    ask = await node.asked()
    assert ask.key == "corr:0102"
    assert ask.expiry_s == 120
    await node.answer(ask, "late", left_s=-5)
    reply = await peer.next()
    assert marks(reply).MessageExpiryInterval == 60


async def test_msgpack_request_is_answered_in_msgpack(node: Node, peer: Peer) -> None:
    """The format of the reply is that of the request, and its content type says so."""
    body = msgspec.msgpack.encode({"input": "hello"})
    await peer.publish(ASK, body, ResponseTopic="app/r", ContentType="application/msgpack")
    await node.answer(await node.asked(), "hi")
    reply = await peer.next()
    assert msgspec.msgpack.decode(reply.payload)["output"] == "hi"
    assert marks(reply).ContentType == "application/msgpack"


async def test_bare_text_of_mosquitto_pub_is_answered_on_the_default_topic(
    broker: Mosquitto, node: Node, peer: Peer
) -> None:
    """The shortest way to ask: a text, MQTT 3.1.1, no properties."""
    await broker.run("mosquitto_pub", "-V", "311", "-q", "1", "-t", ASK, "-m", "how full is it?")
    ask = await node.asked()
    assert ask.request.messages[-1].content == "how full is it?"
    assert ask.caller.client == f"mqtt:{ASK}"
    assert ask.key is None
    await node.answer(ask, "half")
    reply = await peer.next()
    assert reply.topic == REPLY
    assert json.loads(reply.payload)["output"] == "half"
    assert marks(reply).ContentType == "application/json"


async def test_reply_to_of_a_311_client_is_honoured(broker: Mosquitto, node: Node, peer: Peer) -> None:
    """Our own link speaks 5; the publisher's need not."""
    body = json.dumps({"input": "hello", "reply_to": "app/mine"})
    await broker.run("mosquitto_pub", "-V", "311", "-q", "1", "-t", ASK, "-m", body)
    await node.answer(await node.asked(), "hi")
    assert (await peer.next()).topic == "app/mine"


async def test_reply_to_with_properties_of_v5_is_refused_and_names_the_response_topic(node: Node, peer: Peer) -> None:
    """Who can set properties has a better place for it."""
    await peer.publish(ASK, json.dumps({"input": "x", "reply_to": "app/mine"}), ContentType="application/json")
    reply = json.loads((await peer.next()).payload)
    assert reply["status"] == "refused"
    assert "Response Topic" in reply["error"]["message"]
    assert node.asks == []


async def test_mosquitto_rr_gets_its_answer(broker: Mosquitto, node: Node) -> None:
    """mosquitto's own request/response client."""
    answering = asyncio.create_task(
        broker.run("mosquitto_rr", "-V", "5", "-q", "1", "-e", "rr/1", "-t", ASK, "-m", "hello")
    )
    await node.answer(await node.asked(), "hi")
    assert json.loads(await answering)["output"] == "hi"


async def test_qos_0_request_is_accepted(node: Node, peer: Peer) -> None:
    """Nothing to acknowledge, and no packet identity."""
    await peer.publish(ASK, "hello", qos=0)
    ask = await node.asked()
    assert ask.packet is None


async def test_refusal_is_published_before_the_request_is_acknowledged(node: Node, peer: Peer) -> None:
    """A typed refusal of the pipeline reaches the client with everything it needs to try again."""
    node.error = Busy("the queue is full", retry_after_s=7)
    await peer.publish(ASK, json.dumps({"input": "x", "id": "q2"}), ResponseTopic="app/r", CorrelationData=b"c")
    message = await peer.next()
    reply = json.loads(message.payload)
    assert (reply["id"], reply["status"]) == ("q2", "refused")
    assert reply["error"] == {"code": "busy", "message": "the queue is full", "retryable": True, "retry_after_s": 7.0}
    assert marks(message).CorrelationData == b"c"
    assert dict(marks(message).UserProperty) == {"status": "refused", "id": "q2"}
    assert node.transport.status()["refused"] == 1


@pytest.mark.parametrize(
    ("topic", "payload", "properties", "code"),
    [
        (ASK, b'{"input": ', {}, "bad_request"),
        (ASK, b'{"inputs": "x"}', {}, "bad_request"),
        (ASK, b"x", {"ContentType": "image/png"}, "bad_request"),
        (ASK, b"x" * (256 * 1024 + 1), {}, "too_large"),
        ("edged/n1/agents/nobody/request", b"hello", {}, "unknown_agent"),
    ],
    ids=["broken JSON", "unknown field", "content type", "256 KiB and a byte", "unknown agent"],
)
async def test_wrong_request_is_refused_with_its_code(
    node: Node, peer: Peer, topic: str, payload: bytes, properties: dict[str, Any], code: str
) -> None:
    """Nothing of it reaches the pipeline; the Correlation Data comes back."""
    await peer.publish(topic, payload, ResponseTopic="app/r", CorrelationData=b"c", **properties)
    message = await peer.next()
    assert message.topic == "app/r"
    assert json.loads(message.payload)["error"]["code"] == code
    assert marks(message).CorrelationData == b"c"
    assert node.asks == []


async def test_fault_of_our_own_is_refused_as_internal(node: Node, peer: Peer) -> None:
    """A bug in accept neither loses the request silently nor stops the others."""
    node.error = ZeroDivisionError()
    await peer.publish(ASK, "hello", ResponseTopic="app/r")
    assert json.loads((await peer.next()).payload)["error"]["code"] == "internal"
    node.error = None
    await peer.publish(ASK, "again", ResponseTopic="app/r")
    assert (await node.asked(2)).request.messages[-1].content == "again"


@pytest.mark.parametrize(
    "topic", ["edged/n1/agents/house/reply", "edged/n2/agents/house/request", "edged/", "$SYS/x"], ids=str
)
async def test_reply_topic_that_is_not_the_clients_to_choose_is_dropped(
    node: Node, peer: Peer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Logged, acknowledged, nothing said."""
    await peer.publish(ASK, "first", ResponseTopic=topic)
    await peer.publish(ASK, "second", ResponseTopic="app/r")
    assert (await node.asked()).request.messages[-1].content == "second"
    assert "can have no reply" in caplog.text


@pytest.mark.parametrize("topic", ["", "a/#", "a/+/b", "a\x00b", "a\x07b", "a/" * 150], ids=repr)
async def test_reply_to_that_would_end_the_connection_is_dropped(
    broker: Mosquitto, node: Node, peer: Peer, topic: str
) -> None:
    """A broker ends the connection of who publishes to such a topic, and again at each repetition."""
    async with Peer(broker.port, version=4) as old:
        await old.publish(ASK, json.dumps({"input": "first", "reply_to": topic}))
        await old.publish(ASK, json.dumps({"input": "second", "reply_to": "app/r"}))
    assert (await node.asked()).request.messages[-1].content == "second"
    await node.answer(node.asks[0], "hi")
    assert (await peer.next()).topic == "app/r"


async def test_id_that_mqtt_cannot_carry_stays_in_the_body(node: Node, peer: Peer) -> None:
    """As a user property its control character would end the connection, for ever."""
    await peer.publish(ASK, json.dumps({"input": "x", "id": "a\x01b"}), ResponseTopic="app/r")
    await node.answer(await node.asked(), "hi")
    message = await peer.next()
    assert json.loads(message.payload)["id"] == "a\x01b"
    assert dict(marks(message).UserProperty) == {"status": "done", "rid": "r1"}


async def test_retained_request_is_ignored_live_and_at_the_start(
    broker: Mosquitto, node: Node, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be done again at every start."""
    await peer.publish(ASK, "kept", retain=True)
    await peer.publish(ASK, "fresh")
    assert (await node.asked()).request.messages[-1].content == "fresh"
    assert "retained" in caplog.text
    await node.crash()  # two of one name would take the connection from one another
    async with Node(broker.port, node_id="n1", version=4) as other:
        await other.online()
        await peer.publish(ASK, "fresh too")
        assert (await other.asked()).request.messages[-1].content == "fresh too"


async def test_cancel_is_handed_on_with_its_target(node: Node, peer: Peer) -> None:
    """In receive order with the requests."""
    await peer.publish(ASK, "hello")
    await peer.publish("edged/n1/requests/q1/cancel", "")
    await until(lambda: len(node.calls) == 3)
    assert node.calls == ["session lost", "hello", "cancel q1 edged/n1/requests/q1/cancel"]


async def test_deltas_come_before_the_reply_with_their_offsets(node: Node, peer: Peer) -> None:
    """QoS 0 beside the reply topic."""
    await peer.publish(ASK, "hello", ResponseTopic="app/r", CorrelationData=b"c")
    ask = await node.asked()
    assert ask.address is not None
    node.transport._sender.delta(ask.address, 0, "Gr\u00fc")
    node.transport._sender.delta(ask.address, 3, "\u00dfe")
    await node.answer(ask, "Gr\u00fc\u00dfe")
    messages = [await peer.next() for _ in range(3)]
    assert [m.topic for m in messages] == ["app/r/delta", "app/r/delta", "app/r"]
    assert b"".join(m.payload for m in messages[:2]).decode() == "Gr\u00fc\u00dfe"
    for message, offset in zip(messages, ("0", "3"), strict=False):
        assert marks(message).UserProperty == [("offset", offset)]
        assert marks(message).CorrelationData == b"c"


async def test_tool_publishes_with_every_qos(node: Node, peer: Peer) -> None:
    """And a topic that is none is the tool's failure."""
    for qos in (0, 1, 2):
        await node.transport.publish("app/lamp", b"ON", qos=qos)
        assert (await peer.next()).payload == b"ON"
    with pytest.raises(ToolFailed, match="wildcard"):
        await node.transport.publish("app/#", b"ON", qos=1)


async def test_many_requests_are_accepted_in_receive_order_and_many_replies_arrive(node: Node, peer: Peer) -> None:
    """More of both than the broker or we take at a time."""
    count = 200
    await asyncio.gather(*(peer.publish(ASK, f"{n}", ResponseTopic=f"app/{n}") for n in range(count)))
    await node.asked(count)
    assert [ask.request.messages[-1].content for ask in node.asks] == [str(n) for n in range(count)]
    await asyncio.gather(*(node.answer(ask, "x") for ask in node.asks))
    topics = {(await peer.next()).topic for _ in range(count)}
    assert topics == {f"app/{n}" for n in range(count)}
    assert node.transport.status()["replied"] == count


async def test_refused_publish_and_oversized_reply_end_their_delivery(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker's access list and its packet limit: said once, and not tried for ever."""
    (tmp_path / "acl").write_text("topic readwrite edged/#\ntopic readwrite app/#\ntopic deny secret/#\n")
    lines = ("allow_anonymous true", f"acl_file {tmp_path}/acl", "max_packet_size 5000")
    async with Mosquitto(tmp_path, lines=lines) as broker, Node(broker.port) as node, Peer(broker.port) as peer:
        await node.online()
        with pytest.raises(ToolFailed, match="Not authorized"):
            await node.transport.publish("secret/lamp", b"ON", qos=1)
        await peer.publish(ASK, "hello", ResponseTopic="secret/r")
        await peer.publish(ASK, "hello", ResponseTopic="app/r")
        await node.asked(2)
        with caplog.at_level(logging.ERROR):
            await node.answer(node.asks[0], "never seen")
            await node.answer(node.asks[1], "x" * 6000)
        assert "Not authorized" in caplog.text
        assert "5000 at most" in caplog.text
        assert node.transport.status()["replied"] == 0
        assert node.transport.status()["connected"]
