"""An MQTT 5 client of a hundred lines for load: it shares no code with edged, and costs little beside what it measures.

QoS 1 only. It keeps the broker's Receive Maximum, acknowledges at once, and tells of each message its Correlation Data
and payload.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Self

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9
RESPONSE_TOPIC, CORRELATION, RECEIVE_MAXIMUM = 0x08, 0x09, 0x21
QOS1 = 0x02  # in a PUBLISH's flags
DEFAULT_MAXIMUM = 65_535  # where CONNACK does not name one
# How long each property's value is: so many bytes, one text or binary with its length, or two texts.
FIXED = {0x01: 1, 0x02: 4, 0x11: 4, 0x13: 2, 0x21: 2, 0x22: 2, 0x23: 2, 0x24: 1, 0x25: 1, 0x27: 4}
FIXED |= {0x28: 1, 0x29: 1, 0x2A: 1}
PAIR = 0x26

OnMessage = Callable[[bytes, bytes], None]


class Line(asyncio.Protocol):
    """A connection. on_message gets (Correlation Data, payload)."""

    def __init__(self, name: str, on_message: OnMessage) -> None:
        self._name = name
        self._on_message = on_message
        self._data = bytearray()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room = asyncio.Semaphore(0)
        self._next = 0

    @classmethod
    async def open(cls, port: int, name: str, on_message: OnMessage) -> Self:
        """Connect to a broker on this machine; its session ends with the connection."""
        loop = asyncio.get_running_loop()
        transport, line = await loop.create_connection(lambda: cls(name, on_message), "127.0.0.1", port)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await line._ready
        return line

    async def subscribe(self, topic: str) -> None:
        """With QoS 1; returns when the broker has it."""
        self._write(SUBSCRIBE, QOS1, struct.pack(">H", 1) + b"\0" + _text(topic) + b"\x01")
        await self._subscribed

    async def publish(self, topic: str, payload: bytes, *, response: str, correlation: bytes) -> None:
        """Hand a message to the broker, as soon as it takes one more."""
        await self._room.acquire()
        self._next = self._next % 65_535 + 1
        properties = bytes([RESPONSE_TOPIC]) + _text(response) + bytes([CORRELATION]) + _binary(correlation)
        head = _text(topic) + struct.pack(">H", self._next) + _length(len(properties)) + properties
        self._write(PUBLISH, QOS1, head + payload)

    def close(self) -> None:
        """End the connection; the session ends with it."""
        self._transport.close()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who we are."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        clean_start, keepalive = 0x02, 0
        head = _text("MQTT") + struct.pack(">BBH", 5, clean_start, keepalive) + b"\0"
        self._write(CONNECT, 0, head + _text(self._name))

    def data_received(self, data: bytes) -> None:
        """Read all whole packets."""
        self._data += data
        while (found := _whole(self._data)) is not None:
            begin, end = found
            kind, flags = self._data[0] >> 4, self._data[0] & 0x0F
            body = bytes(self._data[begin:end])
            del self._data[:end]
            self._take(kind, flags, body)

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits hears of it."""
        for waiting in (self._ready, self._subscribed):
            if not waiting.done():
                waiting.set_exception(error or ConnectionError("the broker closed the connection"))
                waiting.exception()  # nobody may wait

    def _take(self, kind: int, flags: int, body: bytes) -> None:
        if kind == PUBLISH:
            at = 2 + int.from_bytes(body[:2], "big")
            if flags & 0x06:
                self._write(PUBACK, 0, body[at : at + 2])
                at += 2
            properties, at = _properties(body, at)
            self._on_message(properties.get(CORRELATION, b""), body[at:])
        elif kind == PUBACK:
            self._room.release()
        elif kind == CONNACK:
            properties, _ = _properties(body, 2)
            told = properties.get(RECEIVE_MAXIMUM)
            for _ in range(int.from_bytes(told, "big") if told else DEFAULT_MAXIMUM):
                self._room.release()
            self._ready.set_result(None)
        elif kind == SUBACK:
            self._subscribed.set_result(None)

    def _write(self, kind: int, flags: int, body: bytes) -> None:
        self._transport.write(bytes([kind << 4 | flags]) + _length(len(body)) + body)


def _whole(data: bytearray) -> tuple[int, int] | None:
    """Where the first packet's body begins and ends; None: it is not all there."""
    size = shift = 0
    for at in range(1, min(len(data), 5)):
        size |= (data[at] & 0x7F) << shift
        shift += 7
        if not data[at] & 0x80:
            return (at + 1, at + 1 + size) if len(data) >= at + 1 + size else None
    return None


def _properties(body: bytes, at: int) -> tuple[dict[int, bytes], int]:
    """The properties that begin at a place, and where they end."""
    size = shift = 0
    while True:
        byte = body[at]
        at += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    end = at + size
    found: dict[int, bytes] = {}
    while at < end:
        name, at = body[at], at + 1
        if name in FIXED:
            found[name] = body[at : at + FIXED[name]]
            at += FIXED[name]
            continue
        for _ in range(2 if name == PAIR else 1):
            length = int.from_bytes(body[at : at + 2], "big")
            found[name] = body[at + 2 : at + 2 + length]
            at += 2 + length
    return found, end


def _length(size: int) -> bytes:
    """A variable byte integer."""
    parts = bytearray()
    while True:
        size, part = divmod(size, 128)
        parts.append(part | (0x80 if size else 0))
        if not size:
            return bytes(parts)


def _text(text: str) -> bytes:
    return _binary(text.encode())


def _binary(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
