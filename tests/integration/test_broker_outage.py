"""The real daemon at a real broker that goes away and comes back, with and without its memory."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker import Mosquitto, marks, until
from tests.support.daemon import ASK, BASE, REPLY, Customer, Daemon, Wired, entry, note

pytestmark = pytest.mark.broker

COUNT = 64
NAMES = [b"n%d" % number for number in range(COUNT)]
# each takes a second, sixteen at a time: at the first answer three more seconds of work are left to be interrupted
WORK = "".join(entry(f"note {n};", note(f"n{n}"), text=f"noted {n}", token_s=0.5) for n in range(COUNT))
LOG_LINES = 40 + 2 * COUNT  # of a life with an outage: start, stop and link some dozen, a request one or two


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker that keeps its sessions over a restart."""
    async with Mosquitto(tmp_path, persistence=True) as mosquitto:
        yield mosquitto


@pytest.fixture
async def customer(broker: Mosquitto) -> AsyncIterator[Customer]:
    """A client whose session outlives the broker's restart."""
    async with Customer(broker.port, client_id="customer") as customer:
        await customer.subscribe(REPLY)
        yield customer


def answered_once(daemon: Daemon, copies: dict[bytes, list[bytes]]) -> None:
    """Every request has one reply, of which all copies are equal, and one row in the diary."""
    for number, name in enumerate(NAMES):
        assert len(set(copies[name])) == 1
        reply = json.loads(copies[name][0])
        assert (reply["status"], reply["output"]) == ("done", f"noted {number}")
    assert sorted(daemon.rows("diary")) == sorted((f"n{n}",) for n in range(COUNT))


async def hand_in(customer: Customer) -> None:
    """All of NAMES' requests."""
    for number, name in enumerate(NAMES):
        await customer.ask(f"note {number};", name)


async def test_broker_that_stops_amid_requests_loses_nothing(
    tmp_path: Path, broker: Mosquitto, customer: Customer
) -> None:
    """What was acknowledged is worked on meanwhile, the replies wait, the log does not fill up."""
    async with Daemon(tmp_path, broker=broker.port, script=WORK) as daemon:
        await customer.online()
        await hand_in(customer)
        await customer.answers(NAMES[:1])
        await broker.stop()
        await until(lambda: "no MQTT link" in daemon.text())
        await broker.start()
        copies = await customer.answers(name for name in NAMES if name not in customer.copies)
        answered_once(daemon, copies)
        assert "connected to" in daemon.text().split("no MQTT link")[1]
        assert await daemon.stop() == 0
        assert daemon.states() == ["done"] * COUNT
        assert "Traceback" not in daemon.text()
        assert len(daemon.text().splitlines()) < LOG_LINES


async def test_daemon_that_is_stopped_amid_requests_finishes_them_after_its_next_start(
    tmp_path: Path, broker: Mosquitto, customer: Customer
) -> None:
    """SIGTERM: some are done, some go back into the queue, some stay with the broker; each is done once."""
    async with Daemon(tmp_path, broker=broker.port, script=WORK) as daemon:
        await customer.online()
        await hand_in(customer)
        await customer.answers(NAMES[:1])
        assert await daemon.stop() == 0
        done = len(daemon.rows("diary"))
        assert done < COUNT, "all was over before the stop"
        await daemon.start()
        copies = await customer.answers(name for name in NAMES if name not in customer.copies)
        answered_once(daemon, copies)
        assert await daemon.stop() == 0
        assert daemon.states() == ["done"] * COUNT


async def test_broker_that_lost_its_sessions_gets_the_replies_and_new_requests(tmp_path: Path) -> None:
    """It comes back empty, as one that keeps nothing: packet ids begin anew and must not be taken for old ones."""
    async with (
        Mosquitto(tmp_path) as broker,
        Customer(broker.port, client_id="customer") as customer,
        Daemon(tmp_path, broker=broker.port) as daemon,
    ):
        await customer.subscribe(REPLY)
        await customer.online()
        for round in (b"a", b"b"):
            for number in range(5):
                await customer.ask("note 1;", round + b"%d" % number)
            copies = await customer.answers([round + b"%d" % number for number in range(5)])
            assert all(json.loads(copies[round + b"%d" % number][0])["status"] == "done" for number in range(5))
            if round == b"a":
                await broker.stop()
                await broker.start()
                await customer.next(lambda m: m.topic == f"{BASE}/status" and b"online" in m.payload)
        assert daemon.rows("diary") == [("n1",)] * 10


async def test_mosquittos_own_clients_get_their_answers(tmp_path: Path, broker: Mosquitto, customer: Customer) -> None:
    """The shortest ways to ask, as a manual would show them."""
    async with Daemon(tmp_path, broker=broker.port) as daemon:
        await customer.online()
        await customer.subscribe(f"{ASK.removesuffix('request')}reply")
        await broker.run("mosquitto_pub", "-q", "1", "-t", ASK, "-m", "open the north valve")
        reply = await customer.next(lambda m: m.topic.endswith("house/reply"))
        assert json.loads(reply.payload)["output"] == "Valve north is now open."
        out = await broker.run(
            *("mosquitto_rr", "-V", "5", "-q", "1", "-t", ASK, "-e", "rr/answer", "-m", "how full is it?", "-W", "10")
        )
        assert json.loads(out)["output"] == "It is 41 percent full."
        publish = ("-D", "publish")
        await broker.run(
            *("mosquitto_pub", "-V", "5", "-q", "1", "-t", ASK, "-m", '{"input": "lamp on", "id": "l"}'),
            *(*publish, "response-topic", REPLY, *publish, "correlation-data", "c7"),
            *(*publish, "content-type", "application/json"),
        )
        copies = await customer.answers([b"c7"])
        assert json.loads(copies[b"c7"][0])["tool_calls"][0]["result"] == {"topic": "lamps/desk/set", "published": True}
        assert daemon.rows("valve_commands") == [("north", "open")]


async def test_status_state_and_event_documents(tmp_path: Path, broker: Mosquitto, customer: Customer) -> None:
    """The birth, the will of a killed daemon, what is loaded, and the events of a load and of a quarantine."""
    poison = {"EDGED_TEST_POISON": "poison"}
    config = "[queue]\nmax_attempts = 1\n"
    async with Daemon(tmp_path, broker=broker.port, environment=poison, config=config) as daemon:
        for topic in ("status", "state", "event"):
            await customer.subscribe(f"{BASE}/{topic}")

        async def told(topic: str, **wanted: Any) -> Any:
            def fits(message: Any) -> bool:
                if message.topic != f"{BASE}/{topic}":
                    return False
                document = json.loads(message.payload)
                return all(document.get(key) == value for key, value in wanted.items())

            return json.loads((await customer.next(fits)).payload)

        await told("status", state="online")
        state = await told("state")
        assert {"version", "uptime_s", "memory", "models", "queue", "link"} <= set(state)
        assert state["models"]["small"]["state"] == "unloaded"
        await customer.ask("how full is it?", b"q")
        event = await told("event", name="model_loaded")
        assert event["data"]["model"] == "small"
        while (await told("state"))["models"]["small"]["state"] != "ready":
            pass
        await customer.ask("poison", b"p")
        assert await daemon.ended() == -signal.SIGSEGV
        await told("status", state="offline")
        await daemon.start()
        await told("status", state="online")
        reply = json.loads((await customer.answers([b"p"]))[b"p"][0])
        assert (reply["status"], reply["error"]["code"]) == ("failed", "quarantined")
        assert await daemon.stop() == 0
        await told("status", state="offline")


async def test_cancel_topic_ends_a_request_by_id_and_by_rid(
    tmp_path: Path, broker: Mosquitto, customer: Customer
) -> None:
    """The reply says `cancelled`."""
    async with Daemon(tmp_path, broker=broker.port) as daemon:
        await customer.online()
        request = json.dumps({"input": "never ends", "id": "mine", "stream": True})
        await customer.subscribe(f"{REPLY}/delta")
        await customer.publish(ASK, request, ResponseTopic=REPLY, CorrelationData=b"c")
        await customer.next(lambda m: m.topic == f"{REPLY}/delta")
        await customer.publish(f"{BASE}/requests/mine/cancel", "")
        reply = json.loads((await customer.answers([b"c"]))[b"c"][0])
        assert (reply["id"], reply["status"], reply["error"]["code"]) == ("mine", "cancelled", "cancelled")
        assert await daemon.stop() == 0
        assert daemon.states() == ["cancelled"]


async def test_streamed_answer_comes_in_pieces_below_the_reply_topic(
    tmp_path: Path, broker: Mosquitto, customer: Customer
) -> None:
    """QoS 0, with the offset as a property; together they are the reply's output."""
    async with Daemon(tmp_path, broker=broker.port):
        await customer.online()
        await customer.subscribe(f"{REPLY}/delta")
        request = json.dumps({"input": "tell a story", "stream": True})
        await customer.publish(ASK, request, ResponseTopic=REPLY, CorrelationData=b"s")
        reply = json.loads((await customer.answers([b"s"]))[b"s"][0])
        pieces = [await customer.next(lambda m: m.topic == f"{REPLY}/delta") for _ in range(3)]
        assert [int(dict(marks(piece).UserProperty)["offset"]) for piece in pieces] == [0, 4, 8]
        assert "".join(piece.payload.decode() for piece in pieces) == reply["output"]
        assert all((piece.qos, marks(piece).CorrelationData) == (0, b"s") for piece in pieces)


async def test_daemon_starts_without_its_broker_and_finds_it_later(tmp_path: Path, broker: Mosquitto) -> None:
    """The socket answers meanwhile, and the log has one line about it."""
    await broker.stop()
    async with Daemon(tmp_path, broker=broker.port) as daemon, Wired(daemon.socket) as client:
        await until(lambda: "no MQTT link" in daemon.text())
        error, reply = await client.call(1, "agent.ask", {"input": "how full is it?"})
        assert error is None
        assert reply["status"] == "done"
        await broker.start()
        async with Customer(broker.port, client_id="customer") as customer:
            await customer.online()
        assert daemon.text().count("no MQTT link") == 1
        assert (await client.call(2, "status"))[1]["mqtt"]["connected"] is True
