"""From a message to the pipeline and to its PUBACK, without a broker."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import pytest

from edged.errors import Busy, EdgedError, NoLink
from edged.transport.mqtt.intake import MAX_BARE_REFUSALS, Acks, Counters, Handlers, Intake
from edged.transport.mqtt.messages import MIN_EXPIRY_S, Incoming, Outgoing
from edged.transport.mqtt.settings import Settings
from edged.types import Ask

ASK = "edged/n1/agents/house/request"


class Desk:
    """An intake with everything around it scripted. `send` takes until `sending` is set."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.acks: list[int] = []
        self.told: list[Outgoing] = []
        self.done = 0
        self.error: EdgedError | None = None
        self.send_error: EdgedError | None = None
        self.sending = asyncio.Event()
        self.working: set[asyncio.Task[None]] = set()
        self.counters = Counters()
        self.intake = Intake(
            Settings(url="mqtt://b", node_id="n1", agents=("house",)),
            Handlers(self._accept, self._cancel, self._send),
            counters=self.counters,
            working=self.working,
            ack=self.acks.append,
            done=self._done,
        )

    def take(self, mid: int = 0, payload: bytes = b"hello", **fields: Any) -> None:
        """A message; QoS 0 without a packet id."""
        values: dict[str, Any] = {"topic": ASK, "duplicate": False, "retained": False, **fields}
        self.intake.take(Incoming(payload=payload, qos=1 if mid else 0, mid=mid, **values))

    def _done(self) -> None:
        self.done += 1

    async def _accept(self, ask: Ask) -> None:
        self.accepted.append(ask.request.messages[-1].content)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error

    async def _cancel(self, target: str, topic: str) -> None:
        raise Busy(f"{target} {topic}")

    async def _send(self, message: Outgoing) -> str | None:
        self.told.append(message)
        await self.sending.wait()
        if self.send_error is not None:
            raise self.send_error
        return None


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_refusal_holds_back_its_own_ack_and_those_after_it() -> None:
    """Until the broker has it."""
    desk = Desk()
    desk.take(1, b'{"broken')
    desk.take(2)
    await settle()
    assert desk.accepted == ["hello"]
    assert desk.acks == []
    assert desk.done == 2, "neither holds memory any more"
    desk.sending.set()
    await settle()
    assert desk.acks == [1, 2]
    assert desk.counters == Counters(received=2, refused=1)


async def test_end_of_the_connection_cuts_refusals_off_and_lets_commits_end() -> None:
    """The redelivery repeats a refusal; a commit that was cut off in the middle would be nobody's."""
    desk = Desk()
    desk.take(1, b'{"broken')
    await settle()
    desk.take(2)
    desk.intake.close()
    await settle()
    assert desk.accepted == ["hello"]
    assert desk.acks == []
    assert desk.working == set()


async def test_refusal_that_a_stop_cuts_off_is_not_acknowledged() -> None:
    """The broker delivers the request to the next daemon."""
    desk = Desk()
    desk.send_error = NoLink("stopped")
    desk.sending.set()
    desk.take(1, b'{"broken')
    await settle()
    assert desk.acks == []


async def test_flood_of_wrong_qos_0_requests_is_answered_in_part() -> None:
    """Nobody waits for a PUBACK, and memory is short."""
    desk = Desk()
    for _ in range(MAX_BARE_REFUSALS + 10):
        desk.take(0, b'{"broken')
    await settle()
    assert len(desk.told) == MAX_BARE_REFUSALS
    desk.sending.set()
    await settle()
    desk.take(0, b'{"broken')
    await settle()
    assert len(desk.told) == MAX_BARE_REFUSALS + 1


async def test_message_with_nothing_to_do_is_acknowledged() -> None:
    """Retained, foreign, a cancel that fails, a reply topic that is not theirs."""
    desk = Desk()
    desk.take(1, retained=True)
    desk.take(2, topic="elsewhere")
    desk.take(3, topic="edged/n1/requests/r/cancel")
    desk.take(4, response_topic="edged/x")
    await settle()
    assert desk.acks == [1, 2, 3, 4]
    assert desk.accepted == []
    assert desk.told == []


async def test_refusal_carries_what_the_client_needs() -> None:
    """Format, correlation, id, status, a minute to fetch it."""
    desk = Desk()
    desk.error = Busy("full", retry_after_s=3)
    payload = msgspec.msgpack.encode({"input": "x", "id": "q"})
    desk.take(1, payload, response_topic="app/r", correlation=b"c")
    await settle()
    (told,) = desk.told
    reply = msgspec.msgpack.decode(told.payload)
    assert (reply["id"], reply["status"], reply["error"]["code"]) == ("q", "refused", "busy")
    assert (told.topic, told.correlation, told.content_type) == ("app/r", b"c", "application/msgpack")
    assert told.user == (("status", "refused"), ("id", "q"))
    assert told.expiry_s() == MIN_EXPIRY_S


async def test_broken_msgpack_is_refused_in_msgpack() -> None:
    """As far as the content type tells."""
    desk = Desk()
    desk.take(1, b"\xc1", content_type="application/msgpack")
    await settle()
    assert msgspec.msgpack.decode(desk.told[0].payload)["error"]["code"] == "bad_request"
    assert desk.told[0].content_type == "application/msgpack"


def test_packet_identity_tells_packets_apart_and_knows_a_redelivery() -> None:
    """Its expiry shrinks on the way; everything else must be the same."""
    first = Incoming(topic="t", payload=b"ab", qos=1, mid=5, duplicate=False, retained=False, expiry_s=60)
    again = msgspec.structs.replace(first, duplicate=True, expiry_s=20).packet()
    packet = first.packet()
    assert packet is not None
    assert again is not None
    assert (again.mid, again.digest, again.duplicate) == (5, packet.digest, True)
    others: list[dict[str, Any]] = [
        {"topic": "ta", "payload": b"b"},
        {"payload": b"abc"},
        {"correlation": b""},
        {"response_topic": "r"},
        {"content_type": "r"},
    ]
    digests = {p.digest for fields in others if (p := msgspec.structs.replace(first, **fields).packet())}
    assert len(digests | {packet.digest}) == len(others) + 1


# -- PUBACKs leave in receive order, on their own connection only ------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_acks_leave_in_receive_order_whatever_order_the_work_ends_in(order: tuple[int, ...]) -> None:
    """And each as early as that allows."""
    sent: list[int] = []
    acks = Acks(sent.append)
    receipts = [acks.expect(mid) for mid in (7, 3, 9, 4)]
    for index in order:
        acks.settle(receipts[index])
        settled = [receipt.settled for receipt in receipts]
        assert sent == [7, 3, 9, 4][: ([*settled, False]).index(False)]
    assert sent == [7, 3, 9, 4]
    assert len(acks) == 0


def test_nothing_is_sent_once_the_connection_is_gone() -> None:
    """The packet id may belong to another packet on the next one."""
    sent: list[int] = []
    acks = Acks(sent.append)
    first, second = acks.expect(1), acks.expect(2)
    acks.settle(second)
    acks.drop()
    acks.settle(first)
    assert sent == []


def test_packet_id_can_be_used_again_after_its_ack() -> None:
    """Brokers do it at once."""
    sent: list[int] = []
    acks = Acks(sent.append)
    acks.settle(acks.expect(1))
    acks.settle(acks.expect(1))
    assert sent == [1, 1]
