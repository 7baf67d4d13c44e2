"""Wyoming's frames: a line of JSON `{type, version, data_length?, payload_length?}`, more data as JSON, a payload.

See https://github.com/OHF-Voice/wyoming. edged hears no sounds: payloads are read over, whatever they are.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from msgspec import Struct

from edged.errors import BadRequest, TooLarge
from edged.types import JSON
from edged.wire import MAX_REQUEST_BYTES

MAX_LINE_BYTES = 64 * 1024  # what the protocol's own library reads, by asyncio's default
MAX_PAYLOAD_BYTES = 16 * 2**20  # of sound: several minutes; nobody sends so much to what handles text
FRAME_S = 10.0  # from a frame's line to its last byte: on this board it takes milliseconds
VERSION = "1.10.2"  # of the protocol's library that this was written and is tested against
_PIECE = 64 * 1024  # bytes of a payload that are in memory at once


class Frame(Struct, frozen=True):
    """An event of the protocol, without its payload."""

    type: str
    data: dict[str, JSON]


class _Line(Struct):
    """The line. Older clients have all their data in it."""

    type: str
    data: dict[str, Any] | None = None
    data_length: int | None = None
    payload_length: int | None = None


async def read(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame; None: the peer has closed, or broke off within a frame. May be cancelled before the line is
    whole, and called again.

    Args:
        reader: its limit is MAX_LINE_BYTES.

    Raises:
        BadRequest, TooLarge: what came is no frame, and nothing after it can be read.
    """
    try:
        line = await reader.readline()
    except ValueError:
        raise TooLarge(f"a line has more than {MAX_LINE_BYTES} bytes") from None
    if not line.endswith(b"\n"):
        return None
    head = _decoded(line)
    try:
        async with asyncio.timeout(FRAME_S):
            return await _rest(reader, head)
    except TimeoutError:
        raise BadRequest(f"the rest of an event did not come within {FRAME_S:g} s") from None
    except asyncio.IncompleteReadError:
        return None


def encoded(type: str, data: dict[str, JSON] | None = None) -> bytes:
    """A frame. Data is behind the line, so that the line stays short whatever an answer is."""
    head: dict[str, JSON] = {"type": type, "version": VERSION}
    if not data:
        return msgspec.json.encode(head) + b"\n"
    body = msgspec.json.encode(data)
    return msgspec.json.encode({**head, "data_length": len(body)}) + b"\n" + body


def _decoded(line: bytes) -> _Line:
    try:
        head = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"not Wyoming: an event begins with a line of JSON, {{type, ...}}: {error}") from None
    for name, length, most in (
        ("data_length", head.data_length, MAX_REQUEST_BYTES),
        ("payload_length", head.payload_length, MAX_PAYLOAD_BYTES),
    ):
        if length is not None and not 0 <= length <= most:
            raise TooLarge(f"{name}: {length} is not between 0 and {most}")
    return head


async def _rest(reader: asyncio.StreamReader, head: _Line) -> Frame:
    data = head.data or {}
    if head.data_length:
        more = await reader.readexactly(head.data_length)
        try:
            data |= msgspec.json.decode(more, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the data of {head.type!r} is no JSON object: {error}") from None
    left = head.payload_length or 0
    while left:
        left -= len(await reader.readexactly(min(left, _PIECE)))
    return Frame(head.type, data)
