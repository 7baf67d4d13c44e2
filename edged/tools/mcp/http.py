"""An MCP server that is spoken to over HTTP ("streamable HTTP"): a POST for each message, answered by JSON or by a
stream of events that ends with the answer. aiohttp comes into memory with the first message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from edged import __version__
from edged.tools.mcp.channel import MAX_MESSAGE, Channel, Gone, Unasked, answer_to, parsed, printable, result_of
from edged.types import JSON
from edged.wire import mcp
from edged.wire.mcp import Message, RpcError

if TYPE_CHECKING:
    import aiohttp

CONNECT_S = 5.0  # with the look-up of the name
FAREWELL_S = 2.0  # for what is said last: a server that is slow then is left
MAX_STREAM = 4 * MAX_MESSAGE  # bytes of one answer's stream: what comes beside the answer is nothing that edged uses
ACCEPT = "application/json, text/event-stream"
REFUSED = {401: "it wants another key (HTTP 401): see key_file", 403: "it refuses the key (HTTP 403): see key_file"}
NOT_FOUND = 404


class HttpChannel(Channel):
    """What stands for a connection with one server.

    Args:
        key: sent as a bearer token; empty: none.
        headers: that are sent with every message.
    """

    def __init__(self, url: str, key: str, headers: Mapping[str, str]) -> None:
        self._url = url
        self._headers = {"Accept": ACCEPT, "User-Agent": f"edged/{__version__}", **headers}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._client: aiohttp.ClientSession | None = None
        self._session_id = ""
        self._last = 0
        self._lost: str | None = None
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def lost(self) -> str | None:
        """See Channel."""
        return self._lost

    async def request(self, method: str, params: dict[str, JSON], headers: Mapping[str, str]) -> JSON:
        """See Channel."""
        self._last += 1
        number = self._last
        try:
            async with self._posted(mcp.request(number, method, params), headers) as response:
                answer = await self._answer(response, number, headers)
                if method == mcp.INITIALIZE:
                    self._session_id = response.headers.get(mcp.SESSION, "")
        except asyncio.CancelledError:
            if mcp.METHOD not in headers:  # a modern server knows by the connection
                why = {"requestId": number, "reason": "nobody waits for it any more"}
                self._tell_later(mcp.notification(mcp.CANCELLED, why), headers)
            raise
        return result_of(answer)

    async def notify(self, method: str, params: dict[str, JSON] | None, headers: Mapping[str, str]) -> None:
        """See Channel."""
        async with self._posted(mcp.notification(method, params), headers) as response:
            await self._check(response)

    async def close(self) -> None:
        """See Channel. A server that gave a session is told that it ends."""
        self._lost = self._lost or "it was stopped"
        for task in self._telling:
            task.cancel()
        client, self._client = self._client, None
        if client is None:
            return
        with contextlib.suppress(Exception):  # it is over whatever the server says
            async with asyncio.timeout(FAREWELL_S):
                if self._session_id:
                    told = {**self._headers, mcp.SESSION: self._session_id}
                    await client.delete(self._url, headers=told, allow_redirects=False)
        await client.close()

    @contextlib.asynccontextmanager
    async def _posted(
        self, message: dict[str, JSON], headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to a message. Raises Gone."""
        import aiohttp

        if self._lost is not None:
            raise Gone(self._lost)
        if self._client is None:
            timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S)
            self._client = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        told = {**self._headers, **headers, "Content-Type": "application/json"}
        if self._session_id:
            told[mcp.SESSION] = self._session_id
        try:
            body = msgspec.json.encode(message)
            async with self._client.post(self._url, data=body, headers=told, allow_redirects=False) as response:
                yield response
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one: of the connection, or of who waits
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
                raise
            raise Gone(f"it cannot be reached: {printable(str(error) or type(error).__name__)}") from None

    async def _answer(self, response: aiohttp.ClientResponse, number: int, headers: Mapping[str, str]) -> Message:
        if response.content_type != "text/event-stream":
            body = await self._check(response)
            message = parsed(body)
            if message is None or message.method is not None:
                raise RpcError(mcp.INTERNAL, f"its answer (HTTP {response.status}) is no JSON-RPC")
            return message
        if response.status != 200:
            raise RpcError(mcp.INTERNAL, f"it answers HTTP {response.status}")
        async for data in _events(response.content):
            message = parsed(data)
            if message is None:
                continue
            if message.method is None and message.id == number:
                return message
            if (answer := answer_to(message)) is not None:
                self._tell_later(answer, headers)
        raise Gone("its answer broke off")

    async def _check(self, response: aiohttp.ClientResponse) -> bytes:
        """The body. Raises what a status means."""
        body = await _read(response.content)
        status = response.status
        if status < 300:
            return body
        if status in REFUSED:
            raise Gone(REFUSED[status])
        message = parsed(body)
        if message is not None and message.error is not None:
            result_of(message)
        if status == NOT_FOUND and self._session_id:
            self._session_id = ""
            raise Unasked
        if status >= 500 or status < 400:
            raise Gone(f"it answers HTTP {status}")
        raise RpcError(mcp.INVALID_REQUEST, f"it answers HTTP {status}")

    def _tell_later(self, message: dict[str, JSON], headers: Mapping[str, str]) -> None:
        async def tell() -> None:
            with contextlib.suppress(Gone, RpcError, Unasked, TimeoutError):
                async with asyncio.timeout(FAREWELL_S), self._posted(message, headers):
                    pass

        task = asyncio.create_task(tell(), name="edged.mcp.tell")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


async def _read(content: Any) -> bytes:
    """A body, bounded. Raises RpcError."""
    data = bytearray()
    async for piece in content.iter_any():
        data += piece
        if len(data) > MAX_MESSAGE:
            raise RpcError(mcp.INTERNAL, f"its answer has more than {MAX_MESSAGE} bytes")
    return bytes(data)


async def _events(content: Any) -> AsyncIterator[bytes]:
    """The data of server-sent events. Raises RpcError where there is too much of it."""
    rest, data, total = b"", bytearray(), 0
    async for piece in content.iter_any():
        total += len(piece)
        if total > MAX_STREAM:
            raise RpcError(mcp.INTERNAL, f"its answer has more than {MAX_STREAM} bytes")
        *lines, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data += line[5:].lstrip(b" ") + b"\n"
            elif not line and data:
                yield bytes(data)
                data.clear()
