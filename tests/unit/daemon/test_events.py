"""The bus: events reach all who subscribed, and nobody pays for what another one does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from edged.daemon import events
from edged.daemon.events import QUEUED, EventBus
from edged.types import Event


async def test_all_who_subscribed_hear_in_order_until_they_end_it() -> None:
    """A plain function at once, a coroutine function soon."""
    bus, at_once, soon = EventBus(), [], []

    async def slowly(event: Event) -> None:
        await asyncio.sleep(0)
        soon.append((event.name, event.data["n"]))

    end = bus.subscribe("plain", lambda event: at_once.append(event.name))
    bus.subscribe("slow", slowly)
    for n in range(3):
        bus.publish("changed", {"n": n})
    assert at_once == ["changed"] * 3
    end()
    end()
    bus.publish("last", {"n": 3})
    assert len(at_once) == 3
    await bus.stop()
    assert soon == [("changed", 0), ("changed", 1), ("changed", 2), ("last", 3)]


async def test_one_that_raises_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the others nor who published; the log names it."""
    bus, heard = EventBus(), []

    def broken(_: Event) -> None:
        raise ValueError("broken")

    async def broken_soon(_: Event) -> None:
        raise ValueError("broken, too")

    bus.subscribe("plain", broken)
    bus.subscribe("slow", broken_soon)
    bus.subscribe("good", lambda event: heard.append(event.name))
    bus.publish("a", {})
    bus.publish("b", {})
    await bus.stop()
    assert heard == ["a", "b"]
    named = [(record.event, record.subscriber) for record in caplog.records]  # type: ignore[attr-defined]
    assert sorted(named) == [("subscriber_failed", "plain")] * 2 + [("subscriber_failed", "slow")] * 2


async def test_one_that_is_slow_loses_the_oldest_and_the_log_says_how_many(caplog: pytest.LogCaptureFixture) -> None:
    """Its queue is bounded, and nobody waits for it."""
    bus, heard, goes_on = EventBus(), [], asyncio.Event()

    async def slowly(event: Event) -> None:
        await goes_on.wait()
        heard.append(event.data["n"])

    bus.subscribe("slow", slowly)
    bus.publish("changed", {"n": -1})
    await asyncio.sleep(0)  # it is at the first one
    for n in range(QUEUED + 3):
        bus.publish("changed", {"n": n})
    goes_on.set()
    await bus.stop()
    assert heard == [-1, *range(3, QUEUED + 3)]
    assert "has not heard of 3 events" in caplog.text


async def test_one_that_never_comes_back_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the next event after HANDLED_S, and a stop does not wait for it."""
    monkeypatch.setattr(events, "HANDLED_S", 0.05)
    bus, heard = EventBus(), []

    async def hangs_once(event: Event) -> None:
        heard.append(event.name)
        if len(heard) == 1:
            await asyncio.Event().wait()

    bus.subscribe("slow", hangs_once)
    bus.publish("first", {})
    bus.publish("second", {})
    async with asyncio.timeout(5):
        while len(heard) < 2:
            await asyncio.sleep(0.01)
    monkeypatch.setattr(events, "HANDLED_S", 60.0)
    monkeypatch.setattr(events, "DRAIN_S", 0.05)
    heard.clear()
    bus.publish("third", {})
    await asyncio.sleep(0)
    await asyncio.wait_for(bus.stop(), 5)
    bus.publish("nobody hears of it", {})
    assert heard == ["third"]


async def test_plain_function_that_blocks_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """It holds up everything, and should have been a coroutine function."""
    bus = EventBus()
    bus.subscribe("plain", lambda event: time.sleep(1.5 * events.SLOW_S))
    bus.publish("changed", {})
    [record] = caplog.records
    assert (record.event, record.subscriber) == ("subscriber_slow", "plain")  # type: ignore[attr-defined]


async def test_subscriber_may_end_itself_or_another_while_an_event_is_told() -> None:
    """As a client does whose connection breaks."""
    bus, heard = EventBus(), []
    ends: list[Callable[[], None]] = []

    def once(event: Event) -> None:
        heard.append(event.name)
        ends[0]()

    ends.append(bus.subscribe("once", once))
    bus.subscribe("after", lambda event: heard.append("after"))
    bus.publish("a", {})
    bus.publish("b", {})
    assert heard == ["a", "after", "after"]
