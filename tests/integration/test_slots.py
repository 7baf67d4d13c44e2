"""Work that others do, upstreams and servers on this board, leaves the board's own half of the slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edged.requests.worker import MAX_REMOTE, MAX_RUNNING
from tests.support import cloud as clouds
from tests.support.broker import until
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import ask, cloudy, upstream
from tests.support.daemon import Daemon, Wired

MANY = 2 * MAX_RUNNING
OWN = """
[agents.own]
model = "small"
system = "You stay here."
tools = ["note"]
"""


@pytest.fixture
async def slow() -> AsyncIterator[ScriptedCloud]:
    """A server that answers what it is asked once `release` is set."""
    async with ScriptedCloud() as scripted:
        yield scripted


async def submit(client: Wired, texts: list[str], **fields: Any) -> None:
    """Requests whose answers are read later."""
    for number, text in enumerate(texts):
        client.send([0, number, "agent.ask", [{"input": text, "agent": "house", **fields}]])


async def own_work_goes_on(daemon: Daemon) -> None:
    """As many as the board has slots left for, one after the other and at once."""
    replies = await asyncio.gather(*(ask(daemon, f"note {n};", agent="own") for n in range(MAX_RUNNING)))
    assert [reply["status"] for reply in replies] == ["done"] * MAX_RUNNING


async def test_slow_server_on_this_board_leaves_slots_for_the_boards_own_models(
    tmp_path: Path, slow: ScriptedCloud
) -> None:
    """However many wait for it. They are all answered in the end."""
    release = asyncio.Event()
    slow.otherwise = clouds.held(release)
    daemon = Daemon(tmp_path)
    model = f'[models.npu]\nengine = "openai"\nbase_url = "{slow.base_url}"\nmodel = "large"\n'
    daemon.drop_in(f'{model}[agents.house]\nmodel = "npu"\n{OWN}')
    async with daemon, Wired(daemon.socket) as client:
        await submit(client, [f"think {n}" for n in range(MANY)])
        await until(lambda: len(slow.chats) == MAX_REMOTE)
        await own_work_goes_on(daemon)
        assert len(slow.chats) == MAX_REMOTE
        assert daemon.states()[:MANY].count("running") == MAX_REMOTE
        release.set()
        for number in range(MANY):
            error, reply = await client.answer(number)
            assert (error, reply["status"]) == (None, "done")
        assert await daemon.stop() == 0


async def test_slow_upstreams_leave_slots_for_the_board_however_many_they_are(
    tmp_path: Path, slow: ScriptedCloud
) -> None:
    """Each bears eight at once; what would need a ninth slot waits in the queue, also where the board had begun it."""
    async with ScriptedCloud() as other:
        patient = {"timeout_s": 60, "first_byte_timeout_s": 60}
        daemon = cloudy(tmp_path, upstream("one", slow, **patient), upstream("two", other, **patient))
        daemon.drop_in(f'{OWN}[agents.other]\nmodel = "small"\nsystem = "x"\nprivacy = "any"\nupstream = "two"\n')
        async with daemon, Wired(daemon.socket) as client:
            for agent in ("house", "other"):  # until each is trusted with as many as it may ever have
                for _ in range(MAX_REMOTE):
                    assert (await ask(daemon, "hello", agent=agent, route="cloud"))["output"] == "ok"
            asked = len(slow.chats) + len(other.chats)
            done = daemon.states().count("done")
            release = asyncio.Event()
            slow.otherwise = other.otherwise = clouds.held(release)
            await submit(client, [f"too hard {n}" for n in range(MANY // 2)])
            async with Wired(daemon.socket) as second:
                for number in range(MANY // 2):
                    second.send([0, number, "agent.ask", [{"input": "x", "agent": "other", "route": "cloud"}]])
                await until(lambda: len(slow.chats) + len(other.chats) == asked + MAX_REMOTE)
                await own_work_goes_on(daemon)
                assert len(slow.chats) + len(other.chats) == asked + MAX_REMOTE
                release.set()
                await until(lambda: daemon.states().count("done") == done + MANY + MAX_RUNNING)
            assert await daemon.stop() == 0
