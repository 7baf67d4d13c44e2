"""Child processes that do one thing: what they are given, what they say, and that none stays."""

from __future__ import annotations

import asyncio
import sys

import pytest

from edged.host import child, process

ECHO = "import sys; print(sys.stdin.read().upper()); print('why', file=sys.stderr); sys.exit(3)"
ENDLESS = "import time; print(1, flush=True); time.sleep(600)"


async def test_child_reads_and_says_and_ends() -> None:
    assert await child.run(sys.executable, "-c", ECHO, given=b"abc") == (3, b"ABC\n", b"why\n")


async def test_child_that_is_given_nothing_reads_nothing() -> None:
    assert (await child.run(sys.executable, "-c", ECHO)).out == b"\n"


async def test_child_that_a_signal_ended_says_which() -> None:
    assert (await child.run(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")).status == -9


async def test_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        await child.run("/nowhere/edged")


async def test_child_that_takes_too_long_is_gone() -> None:
    before = set(process.children())
    with pytest.raises(TimeoutError):
        await child.run(sys.executable, "-c", ENDLESS, within_s=0.2)
    assert set(process.children()) <= before


async def test_child_of_who_is_cancelled_is_gone() -> None:
    before = set(process.children())
    running = asyncio.create_task(child.run(sys.executable, "-c", ENDLESS))
    async with asyncio.timeout(20):
        while not (begun := set(process.children()) - before):
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert begun.isdisjoint(process.children())
