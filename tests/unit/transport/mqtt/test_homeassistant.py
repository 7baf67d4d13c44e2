"""When the device is described, without a broker."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from edged.transport.mqtt.discovery import Subject
from edged.transport.mqtt.homeassistant import FILE, HomeAssistant, retained
from edged.transport.mqtt.messages import Incoming, Outgoing

TOPIC = "ha/device/edged_n1/config"


class Broker:
    """Takes everything."""

    def __init__(self, folder: Path, delay_s: float = 0.0, agents: tuple[str, ...] = ("house",)) -> None:
        self.sent: asyncio.Queue[Outgoing] = asyncio.Queue()
        subject = Subject("n1", agents, (), agents, control=False)
        self.home = HomeAssistant(subject, "ha", folder, self._send, delay_s=lambda: delay_s)

    async def _send(self, message: Outgoing) -> None:
        self.sent.put_nowait(message)

    async def next(self) -> tuple[str, Any]:
        """The next publish: topic and JSON."""
        async with asyncio.timeout(10):
            message = await self.sent.get()
        assert message.retain
        return message.topic, json.loads(message.payload) if message.payload else None

    def say(self, topic: str, payload: bytes) -> bool:
        """Somebody publishes."""
        incoming = Incoming(topic=topic, payload=payload, qos=0, mid=0, duplicate=False, retained=False)
        return self.home.take(incoming)


async def test_birth_of_home_assistant_is_answered_once_and_later(tmp_path: Path) -> None:
    """However often it says that it is there; nothing else is a birth."""
    broker = Broker(tmp_path)
    broker.home.begin()
    topic, first = await broker.next()
    assert topic == TOPIC
    for payload in (b"offline", b"online", b"online"):
        assert broker.say("ha/status", payload)
    assert await broker.next() == (TOPIC, first)
    assert not broker.say("ha/elsewhere", b"online")
    assert not broker.say("edged/n1/control/reload", b"PRESS")  # there are no buttons
    await asyncio.sleep(0)
    assert broker.sent.empty()
    broker.home.end()


async def test_birth_means_nothing_when_the_link_is_gone(tmp_path: Path) -> None:
    """When it is back everything is described anyway."""
    broker = Broker(tmp_path, delay_s=60.0)
    broker.say("ha/status", b"online")
    broker.home.end()
    broker.home.begin()
    assert (await broker.next())[0] == TOPIC
    broker.home.end()


async def test_what_was_described_is_known_in_the_next_life(tmp_path: Path) -> None:
    """A file that nobody can read is as none."""
    (tmp_path / FILE).write_text("{")
    gone: set[str] = set()
    for agents in (("house",), ("home",), ("house",)):
        broker = Broker(tmp_path, agents=agents)
        broker.home.begin()
        while (got := await broker.next())[0] != TOPIC:
            assert got[1] is None  # the answer of an agent that is gone
        gone = {key for key, each in got[1]["components"].items() if set(each) == {"platform"}}
        if agents == ("home",):
            assert gone == {"ask_house", "answer_house", "event_house"}
    assert gone == {"ask_home", "answer_home", "event_home"}
    assert set(retained(tmp_path, "n1", "homeassistant", ["house"])) == {
        "homeassistant/device/edged_n1/config",
        TOPIC,
        "edged/n1/homeassistant/house/answer",
    }
