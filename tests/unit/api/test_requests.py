"""Requests whose clients leave while they are taken in."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio

from edged.access.gate import Gate
from edged.access.policy import Policy
from edged.api.requests import Requests
from edged.config import Config, Node
from edged.errors import Busy
from edged.store.requests import Accepted
from edged.types import Ask, Caller, Message, Request

CALLER = Caller("unix:1", "unix", frozenset({"house"}))


class SlowStore:
    """Stands for the pipeline: takes a request in when the test lets it, or fails."""

    def __init__(self) -> None:
        self.begun, self.goes_on = asyncio.Event(), asyncio.Event()
        self.error: Exception | None = None
        self.cancelled: list[str] = []

    async def accept(self, _: Ask, __: object = None) -> Accepted:
        """See Pipeline."""
        self.begun.set()
        await self.goes_on.wait()
        if self.error is not None:
            raise self.error
        return Accepted("r1")

    async def result(self, _: str) -> bytes:
        """See Pipeline."""
        return b"{}"

    def is_awaited(self, _: str) -> bool:
        """See Pipeline."""
        return False

    async def cancel(self, rid: str) -> None:
        """See Pipeline."""
        self.cancelled.append(rid)


@pytest_asyncio.fixture
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """What asyncio had to complain of."""
    heard: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    yield heard
    loop.set_exception_handler(None)


async def leave(store: SlowStore, *, id: str | None, gone: bool) -> None:
    """A client asks, leaves, and then its request goes on."""
    door = Requests(Config(node=Node()), cast(Any, store), Gate(Policy(["house"])))
    ask = Ask(request=Request(agent="house", messages=(Message("user", "hi"),), id=id), caller=CALLER)
    left = asyncio.Event()
    answering = asyncio.create_task(door.answer(ask, gone=left))
    await store.begun.wait()
    if gone:
        left.set()
    answering.cancel()
    await asyncio.wait([answering])
    store.goes_on.set()
    while [task for task in asyncio.all_tasks() if task.get_name().startswith("edged.")]:
        await asyncio.sleep(0)
    del answering
    gc.collect()


@pytest.mark.parametrize("error", [Busy("full"), ZeroDivisionError("secret 42")], ids=["refusal", "bug"])
@pytest.mark.parametrize(("id", "gone"), [(None, True), ("q", True), (None, False)])
async def test_failure_after_the_client_left_is_nobodys_surprise(
    complaints: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, error: Exception, id: str | None, gone: bool
) -> None:
    """A refusal has no reader any more; a bug is in the log with its traceback, not as a task that nobody asked."""
    store = SlowStore()
    store.error = error
    await leave(store, id=id, gone=gone)
    assert complaints == []
    assert ("secret 42" in caplog.text) == isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize(("id", "gone", "cancelled"), [(None, True, ["r1"]), ("q", True, []), (None, False, [])])
async def test_request_that_nobody_can_ask_for_again_is_cancelled(
    complaints: list[dict[str, Any]], id: str | None, gone: bool, cancelled: list[str]
) -> None:
    """It has no id and its client went away; a daemon that stops is no client that went."""
    store = SlowStore()
    await leave(store, id=id, gone=gone)
    assert store.cancelled == cancelled
    assert complaints == []
