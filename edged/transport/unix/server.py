"""MessagePack-RPC on a Unix socket (CONTRACT section 5, https://github.com/msgpack-rpc/msgpack-rpc/blob/master/spec.md).

A connection reads frames and answers each in a task of its own, so a slow answer holds up no other. What a peer does
wrong ends its own connection only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack

from edged.access.gate import Gate
from edged.api import Api
from edged.errors import BadRequest, EdgedError, Internal, TooLarge
from edged.transport import sockets
from edged.transport.base import Backend, Sockets, Transport
from edged.types import JSON, Caller
from edged.wire import MAX_DEPTH, depth, fault

log = logging.getLogger("edged.unix")

MAX_FRAME_BYTES = 4 * 2**20  # CONTRACT section 5
READ_BYTES = 64 * 1024  # one read; a frame of the usual size arrives whole
MAX_ITEMS = 2**17  # of one list or map: an item of a byte takes eight and more in memory
FRAME_S = 10.0  # from a frame's first byte to its last: on this board it takes milliseconds, and its bytes take memory
MAX_IN_FLIGHT = 64  # calls of one connection being answered; beyond it nothing more is read from that peer
DELTA_HIGH_WATER = 256 * 1024  # bytes a peer has not read; above it deltas are dropped, the reply never is
UNREAD_S = 60.0  # with the kernel's buffers and ours full: a client that works on an answer reads sooner
CLOSE_S = 2.0  # how long a closing connection may take to send what it still has

REQUEST, RESPONSE, NOTIFICATION = 0, 1, 2
BEGINS = b"\x93\x94\xdc\xdd"  # MessagePack's lists of three, four and any number: what a frame begins with
NO_CALL = "not MessagePack-RPC: a request is [0, msgid, method, [params]]"

# From Python 3.13 on asyncio removes a socket's file when it closes the server, also one that others still listen on.
KEEP_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Session:
    """One connection, as a method sees it."""

    def __init__(self, caller: Caller, writer: asyncio.StreamWriter) -> None:
        self.caller = caller
        self.gone = asyncio.Event()  # the peer closed, or has to be closed; set before its calls are cancelled
        self.on_close: list[Callable[[], None]] = []
        self._writer = writer

    def notify(self, method: str, params: list[JSON]) -> bool:
        """Send a notification; False where it was dropped because the peer reads too slowly."""
        if self._writer.is_closing() or self._writer.transport.get_write_buffer_size() > DELTA_HIGH_WATER:
            return False
        self._writer.write(_packed([NOTIFICATION, method, params]))
        return True

    async def respond(self, msgid: int, error: JSON, result: JSON) -> None:
        """Send a response and wait until the peer's buffer took it. A peer that does not read loses the connection;
        its request is in the store."""
        if self._writer.is_closing():
            return
        self._writer.write(_packed([RESPONSE, msgid, error, result]))
        try:
            async with asyncio.timeout(UNREAD_S):
                await self._writer.drain()
        except ConnectionError:
            pass
        except TimeoutError:
            log.warning(
                "connection of %s closed: it has not read for %g s",
                self.caller.client,
                UNREAD_S,
                extra={"event": "connection_closed"},
            )
            self._writer.transport.abort()


Method = Callable[[Session, int, dict[str, JSON]], Awaitable[JSON]]


Methods = Mapping[str, Method]


class UnixTransport(Transport):
    """The socket and its connections. One that it inherits keeps its mode and its group.

    Args:
        methods: makes them, by name: async (session, msgid, params) -> result.
        group: name of the group that may connect; None: the process's own.
    """

    name = "unix"

    def __init__(self, path: Path, *, mode: int, group: str | None, methods: Callable[[Api], Methods]) -> None:
        self.addresses = (path,)
        self._path = path
        self._mode = mode
        self._gid = sockets.group_id(group)
        self._make_methods = methods
        self._methods: Methods = {}
        self._gate: Gate
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._inherited: socket.socket | None = None

    def inherit(self, sockets: Sockets) -> None:
        """See Transport."""
        [self._inherited] = sockets[self._path]

    async def start(self, backend: Backend) -> None:
        """See Transport. ConfigError where the socket cannot be made, or another daemon answers on it."""
        self._gate, self._methods = backend.gate, self._make_methods(backend.api)
        if self._inherited:
            self._gid = sockets.gid_of(self._path, self._gid)
            listening = self._inherited.dup()  # its queue stays when the server closes this one
        else:
            listening = await asyncio.to_thread(sockets.listen, self._path, self._mode, self._gid)
        self._server = await asyncio.start_unix_server(self._connected, sock=listening, limit=READ_BYTES, **KEEP_PATH)

    def stop_taking(self) -> None:
        """See Transport. Clients that connect to an inherited socket wait in its queue."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """See Transport. Removes the socket unless it is inherited."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        if not self._inherited:
            self._path.unlink(missing_ok=True)
        self._server = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # asyncio runs this callback as a task
        self._connections.add(task)
        try:
            session = Session(await self._caller(writer), writer)
        except BaseException:  # it left already, or the daemon stops
            self._connections.discard(task)
            writer.close()
            raise
        calls: set[asyncio.Task[None]] = set()
        try:
            await self._serve(session, reader, calls)
        except (BadRequest, TooLarge) as error:
            log.warning(
                "connection of %s closed: %s", session.caller.client, error, extra={"event": "connection_closed"}
            )
            self._gate.unread(session.caller, error)
            session.notify("error", [_error(error)])
            session.gone.set()
        except ConnectionError:  # closed with something unread
            session.gone.set()
        except asyncio.CancelledError:
            pass  # the daemon stops: its requests go on after the next start
        finally:
            self._connections.discard(task)
            await _close(session, writer, calls)

    async def _serve(self, session: Session, reader: asyncio.StreamReader, calls: set[asyncio.Task[None]]) -> None:
        frames, due = _Frames(), None
        while data := await _read(reader, due):
            whole = frames.whole(data)
            due = None if whole else due
            for frame in whole:  # a read holds thousands of the shortest
                while len(calls) >= MAX_IN_FLIGHT:
                    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                msgid, method, params = _call(frame)
                call = asyncio.create_task(self._answer(session, msgid, method, params), name=f"edged.unix.{method}")
                calls.add(call)
                call.add_done_callback(calls.discard)
            while len(calls) >= MAX_IN_FLIGHT:
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            if frames.begun and due is None:
                due = asyncio.get_running_loop().time() + FRAME_S
        session.gone.set()

    async def _answer(self, session: Session, msgid: int | None, method: str, params: dict[str, JSON]) -> None:
        error, result = None, None
        try:
            self._gate.enter(session.caller, "join the group of this socket")
            if method not in self._methods:
                raise BadRequest(f"no method {method!r}; there are {', '.join(sorted(self._methods))}")
            result = await self._methods[method](session, msgid or 0, params)
        except EdgedError as refused:
            self._gate.unread(session.caller, refused)
            error = _error(refused)
        except Exception:
            log.exception("method %s failed through a bug", method, extra={"event": "bug"})
            error = _error(Internal("an error inside edged; its log has the details"))
        if msgid is not None:  # a notification gets no answer
            await session.respond(msgid, error, result)

    async def _caller(self, writer: asyncio.StreamWriter) -> Caller:
        """Who connected, by the credentials the kernel took at connect()."""
        peer = await sockets.with_groups(sockets.peer(writer.get_extra_info("socket")))
        return self._gate.unix(peer.pid, peer.uid, peer.groups or (), socket_group=self._gid)


class _Frames:
    """Bytes of one connection into whole frames; what is incomplete stays inside.

    A frame is read only when it is whole: the header of a list announces any number of items, and the memory for them
    is taken when it is read, so that a thousand headers in each other would have taken a gigabyte.
    """

    def __init__(self) -> None:
        # finds where frames end and makes nothing of them; of a read whose frame is whole a part belongs to the next
        self._scanner = msgpack.Unpacker(read_size=READ_BYTES, max_buffer_size=MAX_FRAME_BYTES + READ_BYTES)
        self._data = bytearray()  # from the beginning of the frame that is not whole
        self._done = 0  # bytes in front of it

    @property
    def begun(self) -> bool:
        """Whether there is a frame that is not whole."""
        return bool(self._data)

    def whole(self, data: bytes) -> list[Any]:
        """The frames that end in `data`. Raises BadRequest, TooLarge."""
        frames = []
        self._data += data
        try:
            self._scanner.feed(data)
            while (length := self._length()) is not None:
                frames.append(self._take(length))
        except msgpack.exceptions.BufferFull:
            raise _too_large() from None
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:  # TypeError: a list as a map's key
            reason = "nested too deep" if isinstance(error, msgpack.exceptions.StackError) else str(error)
            raise BadRequest(f"not MessagePack: {reason or 'no value begins so'}") from None
        if len(self._data) > MAX_FRAME_BYTES:
            raise _too_large()
        return frames

    def _length(self) -> int | None:
        """Of the next frame; None while it is not whole. What cannot become one is not waited for."""
        if self._data and self._data[0] not in BEGINS:
            raise BadRequest(NO_CALL)
        try:
            self._scanner.skip()  # goes on where it had to stop
        except msgpack.exceptions.OutOfData:
            return None
        return int(self._scanner.tell()) - self._done

    def _take(self, length: int) -> Any:
        if length > MAX_FRAME_BYTES:
            raise _too_large()
        frame = self._data[:length]
        del self._data[:length]
        self._done += length
        return msgpack.unpackb(frame, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, strict_map_key=False)


async def _read(reader: asyncio.StreamReader, due: float | None) -> bytes:
    """What comes next. due: when the rest of a frame has to be there, in the loop's time. Raises BadRequest."""
    try:
        async with asyncio.timeout_at(due):
            return await reader.read(READ_BYTES)
    except TimeoutError:
        raise BadRequest(f"the rest of a frame did not come within {FRAME_S:g} s") from None


def _too_large() -> TooLarge:
    return TooLarge(f"a frame has more than {MAX_FRAME_BYTES} bytes")


def _call(frame: Any) -> tuple[int | None, str, dict[str, JSON]]:
    """(msgid, method, params) of a request or notification; the protocol's own faults end the connection."""
    if depth(frame) > MAX_DEPTH:
        raise TooLarge(f"a frame is nested deeper than {MAX_DEPTH} levels")
    match frame:
        case [0, int(msgid), str(method), list(params)]:
            return msgid, method, _params(params)
        case [2, str(method), list(params)]:
            return None, method, _params(params)
        case _:
            raise BadRequest(NO_CALL)


def _params(params: list[Any]) -> dict[str, JSON]:
    match params:
        case []:
            return {}
        case [dict(only)] if all(isinstance(name, str) for name in only):
            return only
        case _:
            raise BadRequest("params is a list with one map, whose keys are texts")


def _error(error: EdgedError) -> JSON:
    known = fault(error)
    return {
        "code": known.code,
        "message": known.message,
        "retryable": known.retryable,
        "retry_after_s": known.retry_after_s,
    }


def _packed(frame: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(frame)
    return packed


async def _close(session: Session, writer: asyncio.StreamWriter, calls: set[asyncio.Task[None]]) -> None:
    for callback in session.on_close:
        callback()
    for call in list(calls):
        call.cancel()
    if calls:
        await asyncio.wait(calls)
    writer.close()
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()
