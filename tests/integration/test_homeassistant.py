"""MQTT discovery with a real broker, and Home Assistant played by a client that hears and says what it does."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edged.transport.mqtt import discovery
from edged.transport.mqtt.homeassistant import BIRTH_SPREAD_S
from tests.support.broker import Mosquitto, Peer, until
from tests.support.daemon import ASK, BASE, REPLY, SCRIPT, Daemon, Wired, entry

pytestmark = pytest.mark.broker

CONFIG = "homeassistant/device/edged_n1/config"
ANSWER, EVENT = discovery.answer_topic(BASE, "house"), discovery.event_topic(BASE, "house")
HOME = '[homeassistant]\ndiscovery = true\nanswers = ["house"]\n'
CONTROL = f"""{HOME}control = true
[roles.operator]
agents = ["*"]
tools = ["*"]
manage = true
[roles.guest]
agents = ["house"]
[access]
default = "guest"
mqtt = {{ "{BASE}/control/+" = "operator" }}
unix_uid = {{ "UID" = "operator" }}
"""
LONG = entry("long answer", text="abcdefghi " * 200)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker."""
    async with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto


def home(folder: Path, broker: Mosquitto, config: str = HOME) -> Daemon:
    """A daemon that tells Home Assistant of itself."""
    return Daemon(folder, broker=broker.port, config=config, script=SCRIPT + LONG)


async def heard(peer: Peer, topic: str) -> Any:
    """The next message there: (JSON, retained)."""
    message = await peer.next(lambda m: m.topic == topic)
    return (json.loads(message.payload) if message.payload else None), message.retain


async def test_device_is_described_and_answers_are_told(tmp_path: Path, broker: Mosquitto) -> None:
    """Retained, so that a Home Assistant that starts later finds it; the answer is short and whole, and told once."""
    async with home(tmp_path, broker), Peer(broker.port) as peer:
        await peer.subscribe("homeassistant/#")
        payload, retained = await heard(peer, CONFIG)
        assert retained
        assert payload["origin"]["name"] == "edged"
        assert payload["components"]["ask_house"]["command_topic"] == ASK
        await peer.subscribe(f"{BASE}/homeassistant/#")
        asked = payload["components"]["ask_house"]["command_template"].replace(
            "{{ value | tojson }}", '"a long answer"'
        )
        await peer.publish(ASK, asked)
        answer, retained = await heard(peer, ANSWER)
        assert (len(answer["state"]), len(answer["output"]), retained) == (255, 1999, True)
        event, retained = await heard(peer, EVENT)
        assert (event["event_type"], event["output"], retained) == ("answer", answer["output"], False)
        await peer.publish(ASK, "open the north valve", ResponseTopic=REPLY)  # whoever else asks over MQTT is heard too
        assert (await heard(peer, ANSWER))[0]["state"] == "Valve north is now open."
        assert (await heard(peer, EVENT))[0]["outcome"] == "acted"
        async with Wired(tmp_path / "run" / "edged.sock") as client:  # ... and nobody else
            assert (await client.call(1, "agent.ask", {"input": "tell a story"}))[1]["status"] == "done"
        await peer.publish(ASK, "how full is it?")
        assert (await heard(peer, EVENT))[0]["output"] == "It is 41 percent full."
        assert not [message for message in peer.kept() if message.topic == EVENT]
    async with Peer(broker.port) as late:
        await late.subscribe(f"{BASE}/homeassistant/#")
        await late.subscribe("homeassistant/#")
        assert (await heard(late, ANSWER))[0]["state"] == "It is 41 percent full."
        await heard(late, CONFIG)
        assert not late.kept()  # no event comes again


async def test_agent_that_is_not_named_answers_its_client_only(tmp_path: Path, broker: Mosquitto) -> None:
    """Nothing of it is published elsewhere, and it has no entities of answers."""
    plain = HOME.replace('answers = ["house"]\n', "")
    async with home(tmp_path, broker, plain), Peer(broker.port) as peer:
        await peer.subscribe("#")
        payload, _ = await heard(peer, CONFIG)
        assert not [key for key in payload["components"] if key.startswith(("answer_", "event_"))]
        await peer.publish(ASK, "how full is it?", ResponseTopic=REPLY)
        await peer.next(lambda m: m.topic == REPLY)
        await peer.publish(ASK, "tell a story", ResponseTopic=REPLY)
        await peer.next(lambda m: m.topic == REPLY)  # what the first had caused has come before this
        assert not [message for message in peer.kept() if "/homeassistant/" in message.topic]


async def test_home_assistant_that_starts_is_told_again(tmp_path: Path, broker: Mosquitto) -> None:
    """After a while that differs from board to board; any other word of it means nothing."""
    async with home(tmp_path, broker), Peer(broker.port) as peer:
        await peer.subscribe("homeassistant/#")
        first, _ = await heard(peer, CONFIG)
        await peer.publish("homeassistant/status", "offline")
        await peer.publish("homeassistant/status", "online")
        assert (await heard(peer, CONFIG))[0] == first
    assert BIRTH_SPREAD_S == 10


async def test_entities_of_what_is_gone_are_taken_back(tmp_path: Path, broker: Mosquitto) -> None:
    """An agent was renamed, and a prefix: the old entities go, also in the next life, and nothing old is retained."""
    daemon = home(tmp_path, broker)
    async with daemon, Peer(broker.port) as peer:
        await peer.subscribe("homeassistant/#")
        await heard(peer, CONFIG)
        await peer.publish(ASK, "how full is it?")
        await peer.subscribe(ANSWER)
        await heard(peer, ANSWER)
        text = daemon.config.read_text().replace("[agents.house]", "[agents.home]")
        daemon.config.write_text(text.replace('answers = ["house"]', 'answers = ["home"]'))
        await daemon.reload()
        components = (await heard(peer, CONFIG))[0]["components"]
        assert components["ask_house"] == {"platform": "notify"}
        assert components["answer_house"] == {"platform": "sensor"}
        assert components["event_house"] == {"platform": "event"}
        assert components["ask_home"]["command_topic"] == f"{BASE}/agents/home/request"
        assert (await heard(peer, ANSWER)) == (None, True)
        daemon.drop_in('[homeassistant]\nprefix = "ha"\n')
        await peer.subscribe("ha/#")
        await daemon.reload()
        assert (await heard(peer, CONFIG)) == (None, True)
        assert (await heard(peer, "ha/device/edged_n1/config"))[0]["components"]["ask_house"] == {"platform": "notify"}


async def test_buttons_are_pressed_by_a_role_that_manages(tmp_path: Path, broker: Mosquitto) -> None:
    """Unload and reload; what is no command is refused, and goes into the log."""
    daemon = home(tmp_path, broker, CONTROL.replace("UID", str(os.getuid())))
    async with daemon, Peer(broker.port) as peer:
        await peer.subscribe("homeassistant/#")
        buttons = (await heard(peer, CONFIG))[0]["components"]
        async with Wired(daemon.socket) as client:
            await client.call(1, "models.load", {"name": "small"})
            unload = buttons["unload_small"]
            await peer.publish(unload["command_topic"], unload["payload_press"])

            async def unloaded() -> bool:
                return bool((await client.call(2, "models.list"))[1]["small"]["state"] != "ready")

            while not await unloaded():
                pass
        await peer.publish(f"{BASE}/control/explode", "now")
        await until(lambda: "event=command_refused" in daemon.text())
        ready = daemon.notices.count("READY=1")
        await peer.publish(buttons["reload"]["command_topic"], "PRESS")
        await daemon.noticed("READY=1", ready + 1)
        assert "no command 'explode'" in daemon.text()


async def test_one_command_takes_the_device_away(tmp_path: Path, broker: Mosquitto) -> None:
    """Nothing of it is retained; the daemon may run or not, and what it had described is known by its file."""
    daemon = home(tmp_path, broker)
    async with daemon, Peer(broker.port) as peer:
        await peer.subscribe("homeassistant/#")
        await heard(peer, CONFIG)
        await peer.subscribe(ANSWER)
        await peer.publish(ASK, "how full is it?")
        await heard(peer, ANSWER)
        assert await daemon.stop() == 0
        daemon.drop_in('[homeassistant]\ndiscovery = false\nanswers = []\nprefix = "ha"\n')
        told = await command(tmp_path, "homeassistant", "remove", "--json", "--config", str(daemon.config))
        assert set(json.loads(told)["removed"]) == {CONFIG, ANSWER, "ha/device/edged_n1/config"}
        assert (await heard(peer, CONFIG)) == (None, True)
        assert (await heard(peer, ANSWER)) == (None, True)
    async with Peer(broker.port) as late:
        await late.subscribe("homeassistant/#")
        await late.subscribe(ANSWER)
        await late.publish("homeassistant/marker", "last")
        await late.next(lambda m: m.topic == "homeassistant/marker")
        assert not late.kept()


async def command(tmp_path: Path, *words: str) -> str:
    """What a command prints."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edged", *words), stdout=asyncio.subprocess.PIPE, cwd=tmp_path
    )
    out, _ = await child.communicate()
    assert child.returncode == 0
    return out.decode()
