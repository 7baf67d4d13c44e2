"""Answers that are streamed, for all surfaces: server-sent events
(https://html.spec.whatwg.org/multipage/server-sent-events.html), or JSON documents, one a line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from aiohttp import web

from edged.errors import EdgedError, Internal
from edged.transport.http.core.connection import connection
from edged.transport.http.core.errors import BUG

log = logging.getLogger("edged.http")

START_S = 1.0  # the answer begins so soon, with or without a piece of it: by then a refusal would have come
HIGH_WATER = 256 * 1024  # characters that wait for a slow reader; what is offered above it is dropped
HEARTBEAT = b": still working\n\n"  # a comment: readers skip it, proxies see life

EVENTS, LINES = "text/event-stream", "application/x-ndjson"  # content types
HEADERS = {"X-Accel-Buffering": "no"}  # nginx would collect the pieces

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def event(data: bytes, name: str | None = None) -> bytes:
    """One event. data: without line breaks, as compact JSON is."""
    return b"data: %s\n\n" % data if name is None else b"event: %s\ndata: %s\n\n" % (name.encode(), data)


class EventStream(Generic[Piece]):
    """The answer to one request: pieces as they come, then how it ended.

    Args:
        written: gets all pieces that have come since the last time, and gives their events. A client
            that reads slowly so gets fewer and larger events, if the surface joins pieces.
        start_s: after so many seconds the answer begins, whether there is a piece or not; before, an error is an
            ordinary response.
        heartbeat_s: the longest silence after that.
        heartbeat: what ends a silence; readers skip it.
        content_type: of the answer.
    """

    def __init__(
        self,
        request: web.Request,
        written: Callable[[list[Piece]], bytes],
        *,
        start_s: float,
        heartbeat_s: float,
        heartbeat: Callable[[], bytes] = lambda: HEARTBEAT,
        content_type: str = EVENTS,
    ) -> None:
        self._request = request
        self._written = written
        self._start_s = start_s
        self._heartbeat_s = heartbeat_s
        self._heartbeat = heartbeat
        self._response = web.StreamResponse(headers={**HEADERS, "Content-Type": content_type})
        self._waiting: list[Piece] = []
        self._offered = 0
        self._has_come = False
        self._news = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether there is more to the answer than its end; before, an error can still be a response of its own."""
        return self._response.prepared or self._has_come

    def add(self, piece: Piece) -> None:
        """A piece that reaches the client, however slow it is."""
        self._waiting.append(piece)
        self._has_come = True
        self._news.set()

    def offer(self, piece: Piece, size: int) -> None:
        """A piece that is dropped if the client does not keep up. size: its characters."""
        if self._offered < HIGH_WATER:
            self._offered += size
            self.add(piece)

    async def run(
        self,
        work: Coroutine[Any, Any, Result],
        *,
        ended: Callable[[Result], bytes | web.Response],
        failed: Callable[[EdgedError], bytes],
    ) -> web.StreamResponse:
        """Answer with what the work adds and offers. The work does not outlive this call.

        Args:
            ended: the last events, of the work's result; while nothing has `begun`, an ordinary response may be made
                of it instead.
            failed: the last events where an error comes too late to be a response of its own.

        Raises:
            Exception: the work's own, or that of `ended`, while nothing was sent.
            ConnectionError: the client went away.
        """
        task = asyncio.create_task(work, name="edged.http.answer")
        try:
            await self._carry(task)
            pieces = self._taken()
            try:
                last = ended(task.result())
            except Exception as error:
                if not self.begun:
                    raise
                last = failed(_as_ours(error))
            if isinstance(last, web.Response):
                return last
            await self._send(pieces + last, is_last=True)
        finally:
            await _end(task)
        return self._response

    async def _carry(self, work: asyncio.Task[Result]) -> None:
        """Send what comes until the work is done; what came at the very end waits for the last events."""
        work.add_done_callback(lambda _: self._news.set())
        patience_s = self._start_s
        while not work.done():
            try:
                async with asyncio.timeout(patience_s):
                    await self._news.wait()
            except TimeoutError:
                await self._send(self._heartbeat())
                patience_s = self._heartbeat_s
            self._news.clear()
            if self._waiting and not work.done():
                await self._send(self._taken())
                patience_s = self._heartbeat_s

    def _taken(self) -> bytes:
        """The events of the pieces that wait."""
        pieces, self._waiting, self._offered = self._waiting, [], 0
        return self._written(pieces) if pieces else b""

    async def _send(self, events: bytes, *, is_last: bool = False) -> None:
        """Waits for a slow reader, while more is added."""
        try:
            if not self._response.prepared:
                await self._response.prepare(self._request)
            await self._response.write(events)
            if is_last:
                await self._response.write_eof()
        except ConnectionError:
            connection(self._request).leave()
            raise


def _as_ours(error: Exception) -> EdgedError:
    if isinstance(error, EdgedError):
        return error
    log.error("a stream failed through a bug", exc_info=error)
    return Internal(BUG)


async def _end(work: asyncio.Task[Any]) -> None:
    """Nothing of the work stays. Its error is retrieved, so that asyncio does not report it as nobody's."""
    left_early = not work.done()
    if left_early:
        work.cancel()
        await asyncio.wait([work])
    error = None if work.cancelled() else work.exception()
    if left_early and error is not None and not isinstance(error, EdgedError):
        log.error("an answer failed through a bug after its client had left", exc_info=error)
