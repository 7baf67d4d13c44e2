"""The store keeps its bound: what is finished goes, oldest first, as soon as there is no room for what is new."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from edged.errors import Busy
from edged.store import opening
from edged.store.lifecycle import State
from edged.store.requests import Accepted
from tests.integration.test_pipeline import House
from tests.support.daemon import START_S, Daemon, Wired

BOUND = 2**20
TEXT = "x" * 20_000  # it is stored twice: asked, and said back
REQUESTS = 100  # four times what there is room for


async def ask(client: Wired, number: int) -> Any:
    """Until it is taken: a full store is told as `busy`, and has room again at once."""
    async with asyncio.timeout(START_S):
        while True:
            error, reply = await client.call(number, "agent.ask", {"input": f"{number} {TEXT}", "id": f"q{number}"})
            if error is None:
                return reply
            assert error["code"] == "busy"
            assert "the store is full" in error["message"]
            await asyncio.sleep(0.01)  # between two attempts


async def test_store_that_is_full_of_what_is_finished_goes_on(tmp_path: Path) -> None:
    """Nobody waits for the next minute, and the file stays as small as it is told to."""
    path = tmp_path / "state" / "edged.db"
    async with Daemon(tmp_path, config='[store]\nmax_bytes = "1MiB"\n') as daemon, Wired(daemon.socket) as client:
        for number in range(REQUESTS):
            reply = await ask(client, number)
            assert reply["output"] == f"{number} {TEXT}"
            assert path.stat().st_size <= BOUND + 2 * len(TEXT) + 2**16
            assert path.with_name("edged.db-wal").stat().st_size <= opening.WAL_BYTES + 2**20
        _, known = await client.call(REQUESTS, "requests.list", {"limit": 1000})
        assert 5 < len(known) < REQUESTS // 2
        assert known[0]["id"] == f"q{REQUESTS - 1}"


async def test_nobody_is_refused_while_there_is_something_to_forget(tmp_path: Path) -> None:
    """What is finished goes before the bound is reached, not when somebody had to be turned away."""
    text = "x" * 1000
    async with Daemon(tmp_path, config='[store]\nmax_bytes = "1MiB"\n') as daemon, Wired(daemon.socket) as client:
        for number in range(400):  # twice what there is room for
            error, _ = await client.call(number, "agent.ask", {"input": f"{number} {text}", "id": f"q{number}"})
            assert error is None
        _, known = await client.call(1000, "requests.list", {"limit": 1000})
        assert len(known) < 300


async def test_store_that_is_full_of_what_waits_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """What is not finished is never dropped for what is new; as soon as it is finished there is room."""
    async with House(tmp_path, store={"max_bytes": "1MiB"}, queue={"max_waiting": 1000}) as house:
        taken: list[Accepted] = []

        async def fill() -> None:
            while True:
                taken.append(await house.take(f"wait {len(taken)} {TEXT}"))

        with pytest.raises(Busy, match="the store is full") as refused:
            await fill()
        assert refused.value.retry_after_s
        assert {await house.state(each) for each in taken} == {State.RECEIVED, State.RUNNING}
        house.engine.open.set()
        assert {(await house.reply(each))["status"] for each in taken} == {"done"}
        async with asyncio.timeout(START_S):
            while True:
                with contextlib.suppress(Busy):
                    await house.ask("hello")
                    break
                await asyncio.sleep(0.01)  # between two attempts
