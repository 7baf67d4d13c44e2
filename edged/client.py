"""Call edged from a program on the same board: `Client` blocks, `AsyncClient` does not. Imports nothing heavy.

    from edged.client import Client

    with Client() as edged:
        print(edged.ask("open the north valve", agent="house")["output"])

Both speak MessagePack-RPC over the Unix socket (CONTRACT section 5). A request that failed is a reply with its status;
`EdgedCallError` is raised for refusals and faults of the protocol, `ConnectionError` where no daemon listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import msgpack

DEFAULT_SOCKET = "/run/edged/edged.sock"
READ_BYTES = 64 * 1024

OnText = Callable[[str], None]
OnEvent = Callable[[dict[str, Any]], None]
OnProgress = Callable[[dict[str, Any]], None]


class EdgedCallError(Exception):
    """The daemon refused the call. `code`, `retryable` and `retry_after_s` are the contract's."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.code: str = error.get("code", "internal")
        self.message: str = error.get("message", "")
        self.retryable: bool = bool(error.get("retryable"))
        self.retry_after_s: float | None = error.get("retry_after_s")


def socket_path(path: str | os.PathLike[str] | None = None) -> str:
    """The socket: as given, else $EDGED_SOCKET, else where the service puts it."""
    return os.fspath(path) if path else os.environ.get("EDGED_SOCKET", DEFAULT_SOCKET)


class Client:
    """A blocking connection; not for several threads at once.

    Args:
        timeout_s: for each wait on the socket; None waits as long as the request may take.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, timeout_s: float | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._unpacker = msgpack.Unpacker(strict_map_key=False)
        self._msgid = 0
        try:
            self._socket.connect(socket_path(path))
        except OSError:
            self._socket.close()
            raise

    def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        on_text: OnText | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """Any method; the result, or EdgedCallError. on_progress: gets how a `models.update` goes."""
        self._msgid += 1
        with contextlib.suppress(BrokenPipeError):  # closed on us while we sent: what it said of that can be read
            self._socket.sendall(msgpack.packb([0, self._msgid, method, [params or {}]]))
        for frame in self._frames():
            match frame:
                case [1, self._msgid, error, result]:
                    if error is not None:
                        raise EdgedCallError(error)
                    return result
                case [2, "agent.delta", [self._msgid, _, text]] if on_text:
                    on_text(text)
                case [2, "models.progress", [self._msgid, progress]] if on_progress:
                    on_progress(progress)
                case [2, "error", [error]]:
                    raise EdgedCallError(error)
        raise ConnectionError("the daemon closed the connection before it answered")

    def ask(self, input: str, *, on_text: OnText | None = None, **fields: Any) -> dict[str, Any]:
        """Ask an agent; fields are the request's (agent, id, conversation, deadline_s, ...). With on_text the answer's
        pieces come as they are made. Returns the reply."""
        params = {"input": input, **fields, **({"stream": True} if on_text else {})}
        reply: dict[str, Any] = self.call("agent.ask", params, on_text)
        return reply

    def events(self) -> Iterator[dict[str, Any]]:
        """The daemon's events from now on, without end."""
        self.call("events.subscribe")
        return self._events()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _events(self) -> Iterator[dict[str, Any]]:
        for frame in self._frames():
            match frame:
                case [2, "event", [event]]:
                    yield event

    def _frames(self) -> Iterator[Any]:
        while True:
            yield from self._unpacker
            data = self._socket.recv(READ_BYTES)
            if not data:
                return
            self._unpacker.feed(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """A connection for asyncio; calls may overlap.

    Args:
        on_event: gets the daemon's events after `call("events.subscribe")`.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, on_event: OnEvent | None = None) -> None:
        self._path = socket_path(path)
        self._on_event = on_event
        self._msgid = 0
        self._calls: dict[int, tuple[asyncio.Future[Any], OnText | None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Connect; ConnectionError or FileNotFoundError where no daemon listens."""
        reader, self._writer = await asyncio.open_unix_connection(self._path)
        self._reading = asyncio.create_task(self._read(reader), name="edged.client")

    async def call(self, method: str, params: dict[str, Any] | None = None, on_text: OnText | None = None) -> Any:
        """Any method; the result, or EdgedCallError."""
        if self._writer is None or self._reading is None or self._reading.done():
            raise ConnectionError("not connected")
        self._msgid += 1
        msgid, future = self._msgid, asyncio.get_running_loop().create_future()
        self._calls[msgid] = (future, on_text)
        try:
            self._writer.write(msgpack.packb([0, msgid, method, [params or {}]]))
            with contextlib.suppress(ConnectionError):  # what the daemon said before it closed comes with the future
                await self._writer.drain()
            return await future
        finally:
            self._calls.pop(msgid, None)

    async def ask(self, input: str, *, on_text: OnText | None = None, **fields: Any) -> dict[str, Any]:
        """Ask an agent, as Client.ask."""
        params = {"input": input, **fields, **({"stream": True} if on_text else {})}
        reply: dict[str, Any] = await self.call("agent.ask", params, on_text)
        return reply

    async def close(self) -> None:
        """Close the connection; calls that wait fail."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def _read(self, reader: asyncio.StreamReader) -> None:
        unpacker = msgpack.Unpacker(strict_map_key=False)
        reason: Exception = ConnectionError("the daemon closed the connection before it answered")
        try:
            while data := await reader.read(READ_BYTES):
                unpacker.feed(data)
                for frame in unpacker:
                    reason = self._take(frame) or reason
        except ConnectionError:
            pass
        except Exception as error:  # of on_text or on_event: nobody reads any more, so nobody may go on waiting
            reason = error
        for future, _ in self._calls.values():
            if not future.done():
                future.set_exception(reason)

    def _take(self, frame: Any) -> Exception | None:
        match frame:
            case [1, int(msgid), error, result] if msgid in self._calls:
                future = self._calls[msgid][0]
                if not future.done():
                    future.set_exception(EdgedCallError(error)) if error is not None else future.set_result(result)
            case [2, "agent.delta", [int(msgid), _, text]] if msgid in self._calls:
                if on_text := self._calls[msgid][1]:
                    on_text(text)
            case [2, "event", [event]]:
                if self._on_event:
                    self._on_event(event)
            case [2, "error", [error]]:
                return EdgedCallError(error)
        return None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()
