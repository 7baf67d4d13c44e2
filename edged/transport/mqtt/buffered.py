"""A socket that is read in large pieces. paho asks for the first bytes of a packet one by one, each with a system call
in which another thread takes the interpreter: at 500 messages a second half of the loop's time.
"""

from __future__ import annotations

import socket
import ssl

import paho.mqtt.client as paho

PIECE_BYTES = 16 * 1024  # of a read: some fifty requests, and one record of TLS


class Buffered:
    """What paho needs of a socket. Reads like the one below it, which it owns."""

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
