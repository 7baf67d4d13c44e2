"""paho's socket on the event loop: its readers, writers and timers. paho has no thread and no loop of its own here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import paho.mqtt.client as paho

from edged.transport.mqtt.buffered import Buffered

TICK_S = 5.0  # paho's timers are looked at this often: fine enough for a keep-alive of 30 s, and the CPU can sleep


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
