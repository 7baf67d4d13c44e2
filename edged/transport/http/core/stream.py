"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) as the answer to a request."""

from __future__ import annotations

import asyncio

from aiohttp import web

START_S = 1.0  # the answer begins so soon, with or without a piece of it: by then a refusal would have come
HIGH_WATER = 256 * 1024  # bytes that wait for a slow reader; above it pieces are dropped
HEARTBEAT = b": still working\n\n"  # a comment: readers skip it, proxies see life

HEADERS = {
    "Content-Type": "text/event-stream",
    "X-Accel-Buffering": "no",  # nginx would collect the pieces
}


class EventStream:
    """Events to one client. What is offered may be dropped, what is sent at the end is not."""

    def __init__(self, request: web.Request, *, heartbeat_s: float) -> None:
        self._request = request
        self._heartbeat_s = heartbeat_s
        self._response = web.StreamResponse(headers=HEADERS)
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._news = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether the status has been sent; before, an error can still be one of HTTP."""
        return self._response.prepared

    def offer(self, name: str, data: bytes) -> None:
        """An event that is dropped if the client does not keep up. data: without line breaks, as compact JSON is."""
        if self._bytes < HIGH_WATER:
            self._put(_event(name, data))

    async def carry(self, work: asyncio.Future[bytes]) -> None:
        """Send what is offered until the work is done. Raises ConnectionError where the client went away."""
        work.add_done_callback(lambda _: self._news.set())
        patience_s = START_S
        while not work.done():
            try:
                async with asyncio.timeout(patience_s):
                    await self._news.wait()
            except TimeoutError:
                self._put(HEARTBEAT)
            self._news.clear()
            if self._waiting:
                await self._flush()
                patience_s = self._heartbeat_s

    async def end(self, name: str, data: bytes) -> web.StreamResponse:
        """Send the last event, however slow the client is. Raises ConnectionError as `carry`."""
        self._put(_event(name, data))
        await self._flush()
        await self._response.write_eof()
        return self._response

    def _put(self, event: bytes) -> None:
        self._waiting.append(event)
        self._bytes += len(event)
        self._news.set()

    async def _flush(self) -> None:
        if not self._response.prepared:
            await self._response.prepare(self._request)
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        await self._response.write(data)  # waits for a slow reader, while more is offered


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
