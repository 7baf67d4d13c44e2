"""Writes that must happen: a store that refuses them is asked again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import apsw

log = logging.getLogger("edged.requests")

T = TypeVar("T")

RETRY_S = (0.5, 10.0)  # first and longest pause before something that the disk refused is tried again
# A full, failing or read-only disk, or somebody else's lock: what another try may find otherwise.
STORE_REFUSES = (apsw.FullError, apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.BusyError)


async def until_stored(write: Callable[[], Awaitable[T]]) -> T:
    """Write; a disk that refuses is asked again, without end."""
    pause, longest = RETRY_S
    while True:
        try:
            return await write()
        except STORE_REFUSES as error:
            log.error(
                "the store cannot be written, trying again in %.1f s: %s",
                pause,
                error,
                extra={"event": "store_refuses"},
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)
