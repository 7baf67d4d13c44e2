"""One connection of paho's: made in a thread, read in large pieces, driven by the event loop. paho has no thread and no
loop of its own here."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable

import paho.mqtt.client as paho

PIECE_BYTES = 16 * 1024  # of a read: some fifty requests, and one record of TLS
TICK_S = 5.0  # paho's timers are looked at this often: fine enough for a keep-alive of 30 s, and the CPU can sleep


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


class Buffered:
    """What paho needs of a socket. Reads like the one below it, which it owns, in large pieces: paho asks for the first
    bytes of a packet one by one, each with a system call in which another thread takes the interpreter. At 500 messages
    a second that was half of the loop's time."""

    def __init__(self, below: socket.socket) -> None:
        self.below = below
        self._data = memoryview(b"")

    def recv(self, size: int) -> bytes:
        """As socket.recv: what there is, up to `size` bytes; b"" at the end; BlockingIOError (of TLS: its kinds of
        ssl.SSLError) where nothing is there."""
        if not self._data:
            self._data = memoryview(self.below.recv(max(size, PIECE_BYTES)))
        piece, self._data = self._data[:size], self._data[size:]
        return bytes(piece)

    def pending(self) -> int:
        """Bytes that were read from the connection and not asked for yet: the selector does not know of them."""
        decrypted = self.below.pending() if isinstance(self.below, ssl.SSLSocket) else 0
        return len(self._data) + decrypted

    def send(self, data: bytes | bytearray) -> int:
        """As socket.send."""
        return self.below.send(data)

    def close(self) -> None:
        """As socket.close; what was not asked for is lost, as what the kernel had."""
        self._data = memoryview(b"")
        self.below.close()

    def fileno(self) -> int:
        """As socket.fileno."""
        return self.below.fileno()

    def setblocking(self, flag: bool) -> None:
        """As socket.setblocking."""
        self.below.setblocking(flag)


class BufferedClient(paho.Client):
    """paho's client on such a socket. `_create_socket` is where paho itself puts a wrapper around it for WebSockets."""

    def _create_socket(self) -> paho.SocketLike:
        made = super()._create_socket()
        return Buffered(made) if isinstance(made, socket.socket) else made


class Pump:
    """Reads, writes and looks at timers while a connection is attached.

    congested: the kernel takes no more for now.

    Args:
        abort: ends the connection, with a reason: what came cannot be read.
    """

    def __init__(self, client: paho.Client, abort: Callable[[str], None]) -> None:
        self.congested = False
        self._paho = client
        self._abort = abort
        self._fd: int | None = None
        self._paused = False
        self._flush_due = False
        self._tick: asyncio.TimerHandle | None = None

    def attach(self) -> None:
        """A connection was made: its socket joins the loop."""
        sock, loop = self._paho.socket(), asyncio.get_running_loop()
        assert isinstance(sock, Buffered)
        # With Nagle's algorithm a PUBACK and the reply after it wait for each other: 40 ms for each request.
        sock.below.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._fd = sock.fileno()
        self._paused = False
        loop.add_reader(self._fd, self._read)
        self._tick = loop.call_later(TICK_S, self._look_at_timers)
        self._flush()

    def detach(self) -> None:
        """The connection is over: its socket leaves the loop."""
        fd, self._fd = self._fd, None
        if fd is None:  # paho also closes sockets that never joined the loop, in the thread that makes connections
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(fd)
        loop.remove_writer(fd)
        self.congested = False
        if self._tick is not None:
            self._tick.cancel()

    def pause(self) -> None:
        """Read nothing more: TCP holds the broker back."""
        if not self._paused and self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
        self._paused = True

    def resume(self) -> None:
        """Read on."""
        if not self._paused:
            return
        self._paused = False
        if self._fd is not None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._fd, self._read)
            loop.call_soon(self._read)  # there may be bytes that the selector does not know of

    def flush_soon(self) -> None:
        """Write at the end of this round of the loop: all that one round makes goes out without asking the selector."""
        if self._fd is not None and not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _read(self) -> None:
        try:
            while self._fd is not None and not self._paused:
                self._paho.loop_read()
                sock = self._paho.socket()
                # What was read and paho not yet asked for does not make the socket readable.
                if not isinstance(sock, Buffered) or not sock.pending():
                    break
        except Exception as error:  # a damaged packet must not end up in the loop's exception handler, for ever
            self._abort(f"a packet from the broker could not be read: {error!r}")

    def _flush(self) -> None:
        self._flush_due = False
        fd = self._fd
        if fd is None:
            return
        self._paho.loop_write()
        if self._fd != fd:  # the write found the connection gone
            return
        was, self.congested = self.congested, self._paho.want_write()
        loop = asyncio.get_running_loop()
        if self.congested:
            loop.add_writer(fd, self._flush)
        elif was:
            loop.remove_writer(fd)

    def _look_at_timers(self) -> None:
        self._paho.loop_misc()
        if self._fd is not None:
            self._tick = asyncio.get_running_loop().call_later(TICK_S, self._look_at_timers)
