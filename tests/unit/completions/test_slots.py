"""Slots of completions: how many at once, how many wait, and what is left to the board's own models."""

from __future__ import annotations

import asyncio

import pytest

from edged.completions.slots import AT_ONCE, REMOTE, Slots
from edged.errors import Busy, NoMemory


class Work:
    """Completions that take a slot each until they are let go."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._tasks: list[asyncio.Task[None]] = []
        self._end = asyncio.Event()
        self.running = {False: 0, True: 0}

    async def begin(self, count: int, *, remote: bool = False) -> None:
        """So many more, each as far as it gets."""
        self._tasks += [asyncio.create_task(self._one(remote)) for _ in range(count)]
        for _ in range(5):  # steps of the loop that a task takes to its slot
            await asyncio.sleep(0)

    async def end(self) -> None:
        """All get their slots and are done."""
        self._end.set()
        await asyncio.gather(*self._tasks)

    async def _one(self, remote: bool) -> None:
        async with self._slots.one(remote=remote):
            self.running[remote] += 1
            await self._end.wait()


async def test_work_in_servers_leaves_half_of_the_slots_to_the_board() -> None:
    """However much of it hangs there; the board's own may have all."""
    work = Work(Slots("completions", max_waiting=100))
    await work.begin(AT_ONCE + 4, remote=True)
    assert work.running == {True: REMOTE, False: 0}
    await work.begin(AT_ONCE - REMOTE)
    assert work.running == {True: REMOTE, False: AT_ONCE - REMOTE}
    await work.end()
    assert work.running[True] == AT_ONCE + 4
    alone = Work(Slots("completions", max_waiting=100))
    await alone.begin(AT_ONCE + 1)
    assert alone.running[False] == AT_ONCE
    await alone.end()


async def test_work_in_servers_takes_half_of_the_places_to_wait_and_the_board_the_rest() -> None:
    """One more is told when to come again."""
    slots = Slots("completions", max_waiting=4)
    work = Work(slots)
    await work.begin(REMOTE + 2, remote=True)
    with pytest.raises(Busy, match="2 completions wait already for the servers") as caught:
        async with slots.one(remote=True):
            pytest.fail("there was no slot")
    assert caught.value.retry_after_s
    await work.begin(AT_ONCE - REMOTE + 2)
    assert work.running == {True: REMOTE, False: AT_ONCE - REMOTE}
    with pytest.raises(Busy, match="4 completions wait already"):
        async with slots.one():
            pytest.fail("there was no slot")
    await work.end()


async def test_work_that_is_given_up_while_it_waits_leaves_nothing_behind() -> None:
    """Neither a slot nor a place to wait."""
    slots = Slots("completions", max_waiting=2)
    work = Work(slots)
    await work.begin(REMOTE, remote=True)

    async def take() -> None:
        async with slots.one(remote=True):
            pass

    for _ in range(3):
        waiting = asyncio.create_task(take())
        for _ in range(5):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
    await work.end()
    await work.begin(REMOTE, remote=True)
    assert work.running[True] == 2 * REMOTE


async def test_board_short_of_memory_refuses_what_takes_memory_and_goes_on_with_the_servers() -> None:
    """They have memory of their own."""
    slots = Slots("completions", max_waiting=2)
    slots.refusing = NoMemory("the board is full", retry_after_s=15)
    with pytest.raises(NoMemory, match="the board is full"):
        async with slots.one():
            pytest.fail("it was let in")
    async with slots.one(remote=True):
        pass
