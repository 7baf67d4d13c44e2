"""The daemon is killed at every point at which something just became true; what it promised stays true."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edged.host.fault_points import POINTS
from tests.support.broker import Mosquitto
from tests.support.daemon import REPLY, SCRIPT, Customer, Daemon, Wired, entry, note
from tests.support.faulty_daemon import AFTER_PUBLISH
from tests.support.timing import assert_adds_up

pytestmark = pytest.mark.broker

VALVE = "open the north valve"
NOT_ON_A_SOCKET = ("deliver.confirmed", "deliver.marked")  # nothing is published to whoever waits on the socket

ON_THE_LINK = ("link.parked",)  # passed only by what needs the cloud: test_cloud_pipeline.py kills there
IN_UPDATES = tuple(point for point in POINTS if point.startswith("update."))  # test_model_updates.py kills there
ELSEWHERE = (*ON_THE_LINK, *IN_UPDATES)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker that keeps sessions while it lives."""
    async with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto


@pytest.fixture
async def customer(broker: Mosquitto) -> AsyncIterator[Customer]:
    """A client with a persistent session that listens to its reply topic and to the lamp."""
    async with Customer(broker.port, client_id="customer") as customer:
        await customer.subscribe(REPLY)
        await customer.subscribe("lamps/#")
        yield customer


@pytest.mark.parametrize("point", [point for point in POINTS if point not in ELSEWHERE])
async def test_mqtt_request_has_one_outcome_wherever_the_daemon_is_killed(
    point: str, tmp_path: Path, broker: Mosquitto, customer: Customer
) -> None:
    """One write, one reply in any number of equal copies, nothing left open, whatever was true at the kill."""
    async with _killed(tmp_path, broker, customer, point) as daemon:
        await customer.ask(VALVE, b"q1")
        assert await daemon.ended() == -9
        await daemon.start()
        await customer.answers([b"q1"])
        await customer.ask(VALVE, b"q1")  # the same identity: the stored reply
        reply = _only((await customer.answers([b"q1"]))[b"q1"])
        assert reply["status"] == "done", reply["error"]
        assert reply["output"] == "Valve north is now open."
        assert [call["ok"] for call in reply["tool_calls"]] == [True]
        assert daemon.rows("valve_commands") == [("north", "open")]
        assert await daemon.stop() == 0
        assert daemon.states() == ["done"]


@pytest.mark.parametrize("point", [point for point in POINTS if point not in (*NOT_ON_A_SOCKET, *ELSEWHERE)])
async def test_socket_request_with_an_id_has_one_outcome_wherever_the_daemon_is_killed(
    point: str, tmp_path: Path
) -> None:
    """The client loses its connection, asks again under the same id, and gets what was done for it once."""
    request = {"input": "note 7;", "id": "q1"}
    daemon = Daemon(tmp_path)
    try:
        await daemon.start(point)
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [request]])
            await client.end()
        assert await daemon.ended() == -9
        await daemon.start()
        async with Wired(daemon.socket) as client:
            error, reply = await client.call(1, "agent.ask", request)
            assert error is None
            assert (reply["status"], reply["output"], reply["id"]) == ("done", "noted 7", "q1")
            assert_adds_up(reply["timing"])
            assert await client.call(2, "agent.ask", request) == (None, reply)
            assert await client.call(3, "request.get", {"name": "q1"}) == (None, reply)
        assert daemon.rows("diary") == [("n7",)]
        assert await daemon.stop() == 0
        assert daemon.states() == ["done"]
    finally:
        await daemon.__aexit__()


async def test_publish_killed_before_its_confirmation_was_noted_publishes_again(
    tmp_path: Path, broker: Mosquitto, customer: Customer
) -> None:
    """`retry`, the default of publish tools: the lamp may be told twice, never not at all."""
    async with _killed(tmp_path, broker, customer, AFTER_PUBLISH) as daemon:
        await customer.ask("lamp on", b"q1")
        assert await daemon.ended() == -9
        await daemon.start()
        reply = _only((await customer.answers([b"q1"]))[b"q1"])
        assert reply["status"] == "done", reply["error"]
        lamp = [message.payload for message in customer.kept() if message.topic == "lamps/desk/set"]
        assert lamp == [b'{"state":"ON"}'] * 2


@pytest.mark.parametrize(("point", "told"), [("journal.intent", 0), (AFTER_PUBLISH, 1)])
async def test_publish_that_shall_not_be_repeated_fails_and_says_why(
    point: str, told: int, tmp_path: Path, broker: Mosquitto, customer: Customer
) -> None:
    """`report`: after a crash in between edged cannot know, does nothing more, and tells."""
    async with _killed(tmp_path, broker, customer, point, on_uncertain="report") as daemon:
        await customer.ask("lamp on", b"q1")
        assert await daemon.ended() == -9
        await daemon.start()
        reply = _only((await customer.answers([b"q1"]))[b"q1"])
        assert reply["status"] == "failed"
        assert reply["error"]["code"] == "tool_failed"
        assert "may have happened" in reply["error"]["message"]
        assert [call["ok"] for call in reply["tool_calls"]] == [False]
        assert len([message for message in customer.kept() if message.topic == "lamps/desk/set"]) == told
        await daemon.stop()
        assert daemon.states() == ["failed"]


async def test_request_that_kills_the_daemon_at_every_attempt_is_quarantined_alone(tmp_path: Path) -> None:
    """Those that ran beside it when it first struck are answered, and so is the next one."""
    daemon = Daemon(tmp_path, environment={"EDGED_TEST_POISON": "poison"}, script=SLOW + SCRIPT)
    try:
        await daemon.start()
        async with Wired(daemon.socket) as client:
            for number in range(3):
                client.send([0, number, "agent.ask", [{"input": f"slow {number}", "id": f"s{number}"}]])
            await _running(client, 3)
            client.send([0, 9, "agent.ask", [{"input": "poison", "id": "p"}]])
            await client.end()
        assert await daemon.ended() == -signal.SIGSEGV
        for _ in range(2):  # max_attempts is 3
            await daemon.start(ready=False)
            assert await daemon.ended() == -signal.SIGSEGV
        await daemon.start()
        async with Wired(daemon.socket) as client:
            _, poisoned = await client.call(1, "request.get", {"name": "p"})
            assert (poisoned["status"], poisoned["error"]["code"]) == ("failed", "quarantined")
            assert await client.call(2, "agent.ask", {"input": "poison", "id": "p"}) == (None, poisoned)
            for number in range(3):
                error, reply = await client.call(3, "agent.ask", {"input": f"slow {number}", "id": f"s{number}"})
                assert error is None
                assert reply["status"] == "done", reply["error"]
            _, reply = await client.call(4, "agent.ask", {"input": "how full is it?"})
            assert reply["output"] == "It is 41 percent full."
        assert await daemon.stop() == 0
        assert daemon.states() == ["done"] * 3 + ["quarantined", "done"]
    finally:
        await daemon.__aexit__()


async def test_kill_with_forty_requests_in_flight_loses_and_repeats_none(
    tmp_path: Path, broker: Mosquitto, customer: Customer
) -> None:
    """Some run, some wait, some are done; afterwards each has its row and its answer, once."""
    names = [b"n%d" % number for number in range(40)]
    script = "".join(entry(f"note {n};", note(f"n{n}"), text=f"noted {n} x x", token_s=0.05) for n in range(40))
    async with Daemon(tmp_path, broker=broker.port, script=script) as daemon:
        await customer.online()
        for number, name in enumerate(names):
            await customer.ask(f"note {number};", name)
        await customer.answers(names[:1])
        await daemon.kill()
        assert len(daemon.rows("diary")) < 40, "all was over before the kill"
        await daemon.start()
        copies = await customer.answers(name for name in names if name not in customer.copies)
        for number, name in enumerate(names):
            assert _only(copies[name])["output"] == f"noted {number} x x"
        assert sorted(daemon.rows("diary")) == sorted((f"n{n}",) for n in range(40))
        assert await daemon.stop() == 0
        assert daemon.states() == ["done"] * 40


SLOW = entry("slow", text="a b c d e f g h", token_s=0.05)


@contextlib.asynccontextmanager
async def _killed(
    folder: Path, broker: Mosquitto, customer: Customer, point: str, on_uncertain: str = "retry"
) -> AsyncIterator[Daemon]:
    """A daemon that will die at a point, and whose session with the broker exists."""
    async with Daemon(folder, broker=broker.port, on_uncertain=on_uncertain) as daemon:
        await customer.online()
        assert await daemon.stop() == 0
        await daemon.start(point)
        yield daemon


async def _running(client: Wired, number: int) -> None:
    """Wait until so many requests run."""
    msgid = 1000
    while (await client.call(msgid, "status"))[1]["queue"]["running"] < number:
        msgid += 1


def _only(copies: list[bytes]) -> dict[str, Any]:
    """The one reply of which all are copies."""
    assert len(set(copies)) == 1, copies
    reply: dict[str, Any] = json.loads(copies[0])
    return reply
