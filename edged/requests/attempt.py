"""One attempt at a request: what is known of it while it lasts, and how to end it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from edged.agent.accounting import Accounting
from edged.agent.dispatch import Routing
from edged.agent.loop import Run
from edged.host import clock
from edged.store.conversations import Turn
from edged.store.journal import Journal


class NoRemoteSlot(Exception):
    """Work that others do has all the slots that it may have. The request waits in the queue for one."""


class Attempt:
    """A request being worked on: what is known of the run when it ends, however it ends, and how to end it.

    cancelled: it is interrupted because its client wants it; else because the daemon stops. settling: its outcome is
    being stored. remote: an upstream or a server on this board does the work. follows: something was said before the
    question.

    Args:
        has_remote_slot: whether one more may do its work elsewhere.
    """

    def __init__(self, agent: str, *, batch: bool, remote: bool, has_remote_slot: Callable[[], bool]) -> None:
        self.agent = agent
        self.batch = batch
        self.remote = remote
        self._has_remote_slot = has_remote_slot
        self.began_boot = clock.boot()
        self.accounting: Accounting | None = None
        self.run: Run | None = None
        self.routing: Routing | None = None
        self.journal: Journal | None = None
        self.messages: Turn = ()
        self.follows = False
        self.cancelled = self.settling = False
        self.ended = asyncio.Event()
        self._interrupted = False
        self._working: asyncio.Task[None] | None = None

    def go(self, *, remote: bool) -> None:
        """The work goes on here, or elsewhere. Raises NoRemoteSlot."""
        if remote and not self.remote and not self._has_remote_slot():
            raise NoRemoteSlot
        self.remote = remote

    def interrupt(self) -> None:
        """End the work on it, now or as soon as it begins. An outcome that is being stored is not touched: whoever
        waits would never hear of it."""
        self._interrupted = True
        if self._working:
            self._working.cancel()

    @contextlib.contextmanager
    def may_be_interrupted(self) -> Iterator[None]:
        """Around the work. A task that is cancelled before its first step would never run, nor store anything."""
        if self._interrupted:
            raise asyncio.CancelledError
        self._working = asyncio.current_task()
        try:
            yield
        finally:
            self._working = None
