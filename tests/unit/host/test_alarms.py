"""Timers that count through suspend. A board that sleeps is one whose monotonic clock stands still."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edged.host import clock
from edged.host.alarms import Alarms

SOON_S = 0.05


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio's own timers never come."""
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: 1000.0)


@pytest.mark.usefixtures("asleep")
async def test_timeout_comes_while_the_loops_clock_stands_still() -> None:
    """And says so as asyncio's does."""
    began = clock.boot()
    with Alarms() as alarms, pytest.raises(TimeoutError):
        async with alarms.timeout_at(began + SOON_S) as limit:
            await asyncio.Event().wait()
    assert limit.expired()
    assert clock.boot() - began >= SOON_S


async def test_timeout_that_has_passed_comes_at_once_and_none_never() -> None:
    """A deadline of long ago; no deadline."""
    with Alarms() as alarms:
        for when in (0.0, -1.0, clock.boot() - 60):
            with pytest.raises(TimeoutError):
                async with alarms.timeout_at(when):
                    await asyncio.Event().wait()
        async with alarms.timeout_at(None) as limit:
            await asyncio.sleep(0)
        assert not limit.expired()


async def test_alarms_come_in_order_whatever_the_order_in_which_they_are_set() -> None:
    """An earlier one takes the timer over; one that is called off does not come."""
    came: list[int] = []
    now, last = clock.boot(), asyncio.Event()
    with Alarms() as alarms:
        for number in (3, 1, 2):
            alarms.call_at(now + number * SOON_S, lambda number=number: came.append(number))  # type: ignore[misc]
        alarms.call_at(now + 4 * SOON_S, last.set)
        alarms.call_at(now + SOON_S / 2, lambda: came.append(0))()
        await last.wait()
    assert came == [1, 2, 3]


async def test_work_that_ends_in_time_leaves_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the end of all of them leave a descriptor."""
    before = set(Path("/proc/self/fd").iterdir())
    with Alarms() as alarms:
        async with alarms.timeout_at(clock.boot() + 60):
            pass
        assert not alarms._alarms
    assert set(Path("/proc/self/fd").iterdir()) == before


async def test_alarm_that_was_set_before_anybody_could_wait_comes_later() -> None:
    """Requests may come before the pipeline runs."""
    alarms, came = Alarms(), asyncio.Event()
    alarms.call_at(clock.boot(), came.set)
    with alarms:
        await came.wait()
