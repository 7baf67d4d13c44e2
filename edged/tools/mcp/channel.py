"""A way to exchange JSON-RPC messages with one MCP server: what `stdio` and `http` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import msgspec

from edged.types import JSON
from edged.wire import MAX_DEPTH, depth, mcp
from edged.wire.mcp import Message, RpcError

# Of one message. Results hold images in base64; ten times more than edged takes of a result is dropped after all.
MAX_MESSAGE = 4 * 2**20
MAX_ERROR = 300  # characters of a server's error: models and people read it


class Gone(Exception):
    """There is no such channel any more; the message says how it ended."""


class Unasked(Exception):
    """The server says that it does not know this client any more: it has to introduce itself again."""


class Channel(ABC):
    """One connection, or what stands for one over HTTP."""

    @abstractmethod
    async def request(self, method: str, params: dict[str, JSON], headers: Mapping[str, str]) -> JSON:
        """The result of a request. Cancelled, it tells the server so.

        Args:
            headers: for HTTP.

        Raises:
            RpcError: the server's answer is an error.
            Gone: there is no answer, and no channel any more.
            Unasked: the server has forgotten the session.
        """

    @abstractmethod
    async def notify(self, method: str, params: dict[str, JSON] | None, headers: Mapping[str, str]) -> None:
        """Tell the server something. Raises Gone."""

    @abstractmethod
    async def close(self) -> None:
        """End it, and what belongs to it."""

    @property
    @abstractmethod
    def lost(self) -> str | None:
        """How it ended; None: it has not."""


def parsed(data: bytes) -> Message | None:
    """A message; None where it is none."""
    try:
        message = msgspec.json.decode(data, type=Message)
    except (ValueError, RecursionError):  # also text that is not UTF-8
        return None
    return message if message.jsonrpc == "2.0" and (message.method or message.id is not None) else None


def result_of(message: Message) -> JSON:
    """What an answer holds.

    Raises:
        RpcError: an error, or nothing that an answer may be.
    """
    if message.error is not None:
        code, text = message.error.get("code"), message.error.get("message")
        told = printable(text if isinstance(text, str) else "it gives no reason")
        raise RpcError(code if isinstance(code, int) else mcp.INTERNAL, told, message.error.get("data"))
    if not isinstance(message.result, dict):
        raise RpcError(mcp.INTERNAL, "its answer is no object")
    if depth(message.result) > MAX_DEPTH:
        raise RpcError(mcp.INTERNAL, f"its answer is nested deeper than {MAX_DEPTH} levels")
    return message.result


def answer_to(message: Message) -> dict[str, JSON] | None:
    """What a server's own request gets: ping an answer, all else is not offered; None: it is no request."""
    if message.method is None or message.id is None:
        return None
    if message.method == mcp.PING:
        return mcp.answer(message.id, {})
    return mcp.failure(message.id, RpcError(mcp.METHOD_NOT_FOUND, f"{printable(message.method)} is not offered"))


def printable(text: str) -> str:
    """A server's words as a line that steers no terminal."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:MAX_ERROR]
