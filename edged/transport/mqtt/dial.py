"""Blocking work beside the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


async def in_thread(work: Callable[[], None], discard: Callable[[], None]) -> None:
    """Run blocking work in a thread of its own; `discard` undoes it when nobody waits for it any more.

    Not the loop's executor: a name lookup can take half a minute, and the end of the daemon would wait for it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def deliver(error: Exception | None) -> None:
        if done.cancelled():
            if error is None:
                discard()
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(None)

    def run() -> None:
        error = None
        try:
            work()
        except Exception as failure:  # raised where the work is waited for
            error = failure
        try:
            loop.call_soon_threadsafe(deliver, error)
        except RuntimeError:  # the loop is closed: the daemon ended meanwhile
            if error is None:
                discard()

    threading.Thread(target=run, name="edged.mqtt.dial", daemon=True).start()
    await done
