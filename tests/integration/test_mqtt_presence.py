"""What the broker keeps and tells of a node: online or not, its state, its events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edged.types import Event
from tests.support.broker import WAIT_S, Mosquitto, Node, Peer, Wire, until

pytestmark = pytest.mark.broker

STATUS = "edged/n1/status"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker that asks for nothing."""
    async with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto


async def next_state(peer: Peer) -> str:
    """The next word about the node's status."""
    message = await peer.next(lambda m: m.topic == STATUS)
    return str(json.loads(message.payload)["state"])


@pytest.mark.parametrize("version", [5, 4])
async def test_birth_and_farewell_are_retained(broker: Mosquitto, version: int) -> None:
    """A clean stop says offline by itself; a late subscriber sees it."""
    async with Peer(broker.port) as peer:
        await peer.subscribe(STATUS)
        async with Node(broker.port, version=version):
            assert await next_state(peer) == "online"
        message = await peer.next()
        assert json.loads(message.payload) == {"state": "offline"}
        assert message.retain
    async with Peer(broker.port) as late:
        await late.subscribe(STATUS)
        assert await next_state(late) == "offline"


async def test_will_is_published_when_the_node_vanishes_and_the_birth_when_it_is_back(broker: Mosquitto) -> None:
    """After every connect, not only the first."""
    async with Wire(broker.port) as wire, Peer(broker.port) as peer:
        await peer.subscribe(STATUS)
        async with Node(wire.port):
            assert await next_state(peer) == "online"
            wire.cut()
            assert await next_state(peer) == "offline"
            assert await next_state(peer) == "online"


async def test_killed_node_is_offline(broker: Mosquitto) -> None:
    """Nobody was left to say it."""
    async with Peer(broker.port) as peer:
        await peer.subscribe(STATUS)
        node = Node(broker.port)
        await node.__aenter__()
        assert await next_state(peer) == "online"
        await node.crash()
        assert await next_state(peer) == "offline"


async def test_state_is_published_at_the_start_and_soon_after_a_change(broker: Mosquitto) -> None:
    """Several changes in a moment are one document."""
    async with Peer(broker.port) as peer:
        await peer.subscribe("edged/n1/state")
        async with Node(broker.port) as node:
            first = await peer.next()
            assert json.loads(first.payload) == {"queue": 0}
            assert first.retain
            for queue in range(1, 5):
                node.document = {"queue": queue}
                node.transport.state_changed()
            assert json.loads((await peer.next()).payload) == {"queue": 4}
            assert peer.kept() == []


async def test_state_that_cannot_be_made_disturbs_nothing(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a document is in the log, and the link stays."""
    async with Peer(broker.port) as peer:
        await peer.subscribe("edged/n1/#")
        node = Node(broker.port)
        node.document = None  # type: ignore[assignment]
        node.transport._presence._state = lambda: 1 / 0  # type: ignore[assignment,return-value]
        async with node:
            await node.online()
            node.transport.event(Event("model_loaded", 0.0, {"model": "small", "path": Path("/m")}))
            message = await peer.next(lambda m: m.topic == "edged/n1/event")
            event = json.loads(message.payload)
            assert (event["name"], event["data"]) == ("model_loaded", {"model": "small", "path": "/m"})
            assert not message.retain
        assert "state document" in caplog.text


async def test_status_tells_of_the_link(broker: Mosquitto) -> None:
    """Connected or not, since when, and the last error."""
    async with Wire(broker.port) as wire, Node(wire.port) as node:
        await node.online()
        status = node.transport.status()
        assert status["connected"]
        assert status["version"] == "5"
        assert status["error"] is None
        await broker.stop()
        await until(lambda: not node.transport.status()["connected"])
        await until(lambda: node.transport.status()["error"])


async def test_idle_transport_lets_the_cpu_sleep(broker: Mosquitto) -> None:
    """A loop that turns without work would cost a board its battery: count its turns."""
    async with Node(broker.port) as node:
        await node.online()
        await until(lambda: node.transport.status()["in_flight"] == 0)
        loop = asyncio.get_running_loop()
        turns = 0
        original = loop._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None) -> object:
            nonlocal turns
            turns += 1
            return original(timeout)

        loop._selector.select = select  # type: ignore[attr-defined]
        await asyncio.wait_for(asyncio.sleep(0.5), WAIT_S)
        loop._selector.select = original  # type: ignore[attr-defined]
    assert turns < 10
