"""The words of the Model Context Protocol, for both of its ends: versions, names and error codes. Pure.

There are two eras. A legacy peer begins with `initialize`. A modern one (2026-07-28) has no beginning: each request
says in its `_meta` which version it is of, and `server/discover` tells what a server can.

    https://modelcontextprotocol.io/specification
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from msgspec import Struct

from edged.types import JSON

MODERN = "2026-07-28"
LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")  # the newest first
UNNAMED = "2025-03-26"  # what an HTTP request without a version is of

INITIALIZE, INITIALIZED, DISCOVER, PING = "initialize", "notifications/initialized", "server/discover", "ping"
LIST, CALL, CANCELLED = "tools/list", "tools/call", "notifications/cancelled"

META = "_meta"
PREFIX = "io.modelcontextprotocol/"
VERSION_OF, CAPABILITIES_OF = f"{PREFIX}protocolVersion", f"{PREFIX}clientCapabilities"
CLIENT_OF, SERVER_OF = f"{PREFIX}clientInfo", f"{PREFIX}serverInfo"

VERSION, SESSION, METHOD, NAME = "MCP-Protocol-Version", "Mcp-Session-Id", "Mcp-Method", "Mcp-Name"  # HTTP headers
PARAMETER = "Mcp-Param-"  # and what a schema says with PARAMETER_OF: the header that repeats an argument
PARAMETER_OF = "x-mcp-header"
NAMED_BY = {CALL: "name", "resources/read": "uri", "prompts/get": "name"}  # what NAME repeats, by method

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603
HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32020, -32021, -32022
SERVER_ERROR = -32000  # and below: an implementation's own

_ENCODED = re.compile(r"=\?base64\?(.*)\?=")
_PLAIN = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?|")


class RpcError(Exception):
    """An error as JSON-RPC has it: in an answer that came, or in one that is to be given."""

    def __init__(self, code: int, message: str, data: JSON = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data

    def document(self) -> dict[str, JSON]:
        """{code, message, data?}."""
        told: dict[str, JSON] = {"code": self.code, "message": self.message}
        return told if self.data is None else {**told, "data": self.data}


class Message(Struct):
    """A JSON-RPC message: a request (method and id), a notification (method), or an answer (id)."""

    jsonrpc: str = "2.0"
    id: int | str | float | None = None
    method: str | None = None
    params: dict[str, Any] | None = None
    result: Any = None
    error: dict[str, Any] | None = None


def request(id: int, method: str, params: dict[str, JSON]) -> dict[str, JSON]:
    """A request."""
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def notification(method: str, params: dict[str, JSON] | None = None) -> dict[str, JSON]:
    """A notification."""
    return {"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params})}


def answer(id: JSON, result: JSON) -> dict[str, JSON]:
    """An answer."""
    return {"jsonrpc": "2.0", "id": id, "result": result}


def failure(id: JSON, error: RpcError) -> dict[str, JSON]:
    """An answer that says what went wrong."""
    return {"jsonrpc": "2.0", "id": id, "error": error.document()}


def in_header(text: str) -> str:
    """A text as a header carries it: as it is, or in base64 where it has other characters than ASCII."""
    if _PLAIN.fullmatch(text) and not _ENCODED.fullmatch(text):
        return text
    return f"=?base64?{base64.b64encode(text.encode(errors='replace')).decode()}?="


def of_header(value: str) -> str | None:
    """The text that a header carries; None where it is none."""
    if (found := _ENCODED.fullmatch(value)) is None:
        return value
    try:
        return base64.b64decode(found[1], validate=True).decode()
    except (binascii.Error, ValueError):
        return None
