"""Between the event loop and a thread that owns native objects: futures are answered on the loop, and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any


def resolve(future: asyncio.Future[Any], value: object) -> None:
    """Set a future's result or exception, unless it has one."""
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)


def run_all(calls: Iterable[Callable[[], None]]) -> None:
    """What a thread sends in one call: one wake-up of the loop for all of it."""
    for call in calls:
        call()


async def settled(future: asyncio.Future[Any]) -> BaseException | None:
    """Wait for a future whatever happens, and return its exception. The wait is bounded by what the thread does at
    once: more cancellations meanwhile change nothing, the first one is raised afterwards."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    return future.exception()
