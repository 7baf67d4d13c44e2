"""What the governor gives up while memory is short."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from edged.residency.governor import Governor
from edged.types import ModelSpec
from tests.support.memory import Even, plenty

SOON_S = 10.0  # a test that waits longer has failed


class Loader:
    """Knows what is resident."""

    def __init__(self) -> None:
        self.resident: set[str] = set()

    async def load(self, spec: ModelSpec) -> None:
        self.resident.add(spec.name)

    async def unload(self, name: str) -> None:
        self.resident.remove(name)


class Board:
    """A governor at work over models a, b and one that is pinned; all fit."""

    def __init__(self) -> None:
        self.loader = Loader()
        self.events: list[tuple[str, Any]] = []
        specs = {n: ModelSpec(name=n, path="/m", context=512, pin=n == "pinned") for n in ("a", "b", "pinned")}
        self.governor = Governor(
            specs,
            self.loader,
            sizer=Even(1),
            budget_bytes=100,
            reserve_bytes=0,
            idle_unload_s=1e6,
            tell=lambda *event: self.events.append(event),
        )


@pytest.fixture
async def board(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Board]:
    plenty(monkeypatch)
    made = Board()
    task = asyncio.create_task(made.governor.run())
    async with asyncio.timeout(SOON_S):
        for name in ("a", "b", "pinned"):
            await made.governor.load(name)
        yield made
    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_relieve_takes_out_what_nobody_uses_and_says_why(board: Board) -> None:
    """Who is at work and what is pinned stays; models come back when they are asked for."""
    async with board.governor.hold("a"):
        assert await board.governor.relieve("memory is short") == ["b"]
        assert board.loader.resident == {"a", "pinned"}
        assert await board.governor.relieve("memory is short") == []
    assert await board.governor.relieve("memory is short") == ["a"]
    assert [data["reason"] for name, data in board.events if name == "model_unloaded"] == ["pressure"] * 2
    await board.governor.load("b")
    assert board.loader.resident == {"b", "pinned"}


async def test_paused_loads_wait_and_go_on(board: Board) -> None:
    """What is there can be used meanwhile."""
    await board.governor.relieve("memory is short")
    board.governor.pause_loads("memory is short")
    waiting = asyncio.create_task(board.governor.load("a"))
    async with board.governor.hold("pinned"):
        pass
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    assert board.loader.resident == {"pinned"}
    board.governor.resume_loads()
    await waiting
    assert board.loader.resident == {"a", "pinned"}
