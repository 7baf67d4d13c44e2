"""Publishes: bounded by the broker, started anew when its session is gone, never left waiting."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from edged.errors import NoLink
from edged.transport.mqtt.inflight import Inflight
from edged.transport.mqtt.messages import Outgoing, Unsendable

MESSAGE = Outgoing(topic="a", payload=b"x", qos=1)


class Broker:
    """Inflight whose client only counts."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self._mids = itertools.count(1)
        self.inflight = Inflight(self._send)

    def _send(self, message: Outgoing) -> int:
        if message.payload == b"too large":
            raise Unsendable("too large")
        self.sent.append(next(self._mids))
        return self.sent[-1]

    async def start(self, number: int) -> list[asyncio.Task[int]]:
        """So many publishes."""
        tasks = [asyncio.create_task(self.inflight.publish(MESSAGE)) for _ in range(number)]
        await settle()
        return tasks


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_nothing_starts_without_a_link() -> None:
    """And all that waited starts with it."""
    broker = Broker()
    tasks = await broker.start(2)
    assert broker.sent == []
    broker.inflight.open(10)
    await settle()
    broker.inflight.confirmed(1, 0)
    broker.inflight.confirmed(2, 0x87)
    assert await asyncio.gather(*tasks) == [0, 0x87]


async def test_limit_is_kept_and_each_landing_makes_room_for_one() -> None:
    """In the order they came."""
    broker = Broker()
    broker.inflight.open(2)
    tasks = await broker.start(4)
    assert broker.sent == [1, 2]
    broker.inflight.confirmed(2, 0)
    await settle()
    assert broker.sent == [1, 2, 3]
    assert [task.done() for task in tasks] == [False, True, False, False]
    for mid in (1, 3, 4):
        broker.inflight.confirmed(mid, 0)
        await settle()
    assert all(task.done() for task in tasks)


async def test_what_is_in_the_air_when_the_link_breaks_stays_there() -> None:
    """paho sends it again; a second publish of ours would be a third copy."""
    broker = Broker()
    broker.inflight.open(2)
    tasks = await broker.start(1)
    broker.inflight.pause()
    broker.inflight.open(2)
    await settle()
    assert broker.sent == [1]
    broker.inflight.confirmed(1, 0)
    assert await tasks[0] == 0


async def test_lost_session_starts_everything_again_within_the_new_limit() -> None:
    """With new packet ids."""
    broker = Broker()
    broker.inflight.open(3)
    tasks = await broker.start(3)
    broker.inflight.pause()
    broker.inflight.start_again()
    await settle()
    assert broker.sent == [1, 2, 3]
    broker.inflight.open(1)
    await settle()
    assert broker.sent == [1, 2, 3, 4]
    for mid in (4, 5, 6):
        broker.inflight.confirmed(mid, 0)
        await settle()
    assert [task.done() for task in tasks] == [True] * 3


async def test_given_up_publish_keeps_its_place_until_it_is_confirmed() -> None:
    """The broker counts it still."""
    broker = Broker()
    broker.inflight.open(1)
    first, second = await broker.start(2)
    first.cancel()
    await settle()
    assert broker.sent == [1]
    broker.inflight.confirmed(1, 0)
    await settle()
    assert broker.sent == [1, 2]
    broker.inflight.confirmed(2, 0)
    assert await second == 0


async def test_room_given_to_one_who_gave_up_goes_to_the_next() -> None:
    """Else the last in the queue would wait for ever."""
    broker = Broker()
    broker.inflight.open(1)
    first, second, third = await broker.start(3)
    broker.inflight.confirmed(1, 0)
    second.cancel()
    await settle()
    assert broker.sent == [1, 2]
    broker.inflight.confirmed(2, 0)
    assert await first == await third == 0


async def test_message_the_broker_cannot_take_holds_no_place() -> None:
    """The next one goes."""
    broker = Broker()
    broker.inflight.open(1)
    with pytest.raises(Unsendable):
        await broker.inflight.publish(Outgoing(topic="a", payload=b"too large", qos=1))
    await broker.start(1)
    assert broker.sent == [1]
    broker.inflight.close()


@pytest.mark.parametrize("too_large", [True, False])
async def test_room_of_one_that_takes_none_goes_to_the_next(too_large: bool) -> None:
    """A message the broker cannot take, and one of QoS 0: whoever waits behind it would wait for ever."""
    broker = Broker()
    broker.inflight.open(1)
    [first] = await broker.start(1)
    if too_large:
        passing = asyncio.create_task(broker.inflight.publish(Outgoing(topic="a", payload=b"too large", qos=1)))
    else:
        passing = asyncio.create_task(broker.inflight.publish_unconfirmed(Outgoing(topic="a", payload=b"x", qos=0)))  # type: ignore[arg-type]
    await settle()
    [last] = await broker.start(1)
    assert broker.sent == [1]
    broker.inflight.confirmed(1, 0)
    await settle()
    assert (await first, isinstance(passing.exception(), Unsendable)) == (0, too_large)
    assert len(broker.inflight) == 1
    broker.inflight.confirmed(broker.sent[-1], 0)
    async with asyncio.timeout(5):
        assert await last == 0


async def test_close_ends_all_who_wait_and_all_who_come() -> None:
    """In the air or not."""
    broker = Broker()
    broker.inflight.open(1)
    tasks = await broker.start(3)
    broker.inflight.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NoLink] * 3
    with pytest.raises(NoLink):
        await broker.inflight.publish(MESSAGE)


async def test_late_or_foreign_confirmation_is_nothing() -> None:
    """Of a publish that started again, for example."""
    broker = Broker()
    broker.inflight.open(1)
    broker.inflight.confirmed(77, 0)
    assert len(broker.inflight) == 0
