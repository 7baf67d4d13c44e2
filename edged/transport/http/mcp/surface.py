"""The Model Context Protocol over HTTP (CONTRACT section 6): POST /mcp, a message in and at most one out, without
sessions and streams. Both eras on one path: a modern request says in its `_meta` that it is one.

A client that can name no key, only an address, has the key as the last part of it: /mcp/KEY.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from edged.errors import EdgedError
from edged.transport.http.core.connection import caller, gone
from edged.transport.http.core.errors import UnsupportedMedia, response
from edged.transport.http.core.surface import Board
from edged.transport.http.mcp.methods import Call, Methods
from edged.types import JSON
from edged.wire import MAX_DEPTH, depth, mcp
from edged.wire.mcp import Message, RpcError

PATH = "/mcp"
SUPPORTED = [mcp.MODERN]  # by the requests that say what they are of; a legacy client begins with `initialize`
ID = web.RequestKey("edged.mcp.id", object)
OF_THE_MODERN = {mcp.METHOD_NOT_FOUND: 404, mcp.INVALID_PARAMS: 400}  # statuses of errors


class Mcp:
    """See core.surface.Surface."""

    paths = (PATH,)
    open_paths = ()
    secret_paths = (PATH,)

    def __init__(self, board: Board) -> None:
        self._methods = Methods(board.api)

    def routes(self) -> list[web.RouteDef]:
        """See Surface."""
        return [web.post(PATH, self.message), web.post(f"{PATH}/{{key:.+}}", self.message)]

    def error(self, request: web.BaseRequest, error: EdgedError) -> web.Response:
        """See Surface. As JSON-RPC has it, with the id of the request as far as it is known."""
        told = RpcError(mcp.SERVER_ERROR, error.message, {"code": error.code})
        return response(error, msgspec.json.encode(mcp.failure(request.get(ID), told)))

    async def message(self, request: web.Request) -> web.Response:
        """POST /mcp: a request is answered, a notification is taken (202)."""
        if request.content_type != "application/json":
            raise UnsupportedMedia("the content type of a message is application/json")
        try:
            message = _message(await request.read())
            request[ID] = message.id
            is_modern = _is_modern(request.headers, message)
        except RpcError as error:
            return _document(mcp.failure(request.get(ID), error), 400)
        if message.id is None or message.method is None:  # a notification, or an answer to what nobody asked
            return web.Response(status=202)
        call = Call(caller(request), is_modern, gone(request))
        try:
            result = await self._methods.answer(call, message.method, message.params or {})
        except RpcError as error:  # a legacy client reads it from an answer with 200
            status = OF_THE_MODERN.get(error.code, 200) if is_modern else 200
            return _document(mcp.failure(message.id, error), status)
        return _document(mcp.answer(message.id, result))


def _document(body: dict[str, JSON], status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def _message(body: bytes) -> Message:
    """A message. Raises RpcError."""
    try:
        document: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise RpcError(mcp.PARSE_ERROR, "the body is no JSON") from None
    if not isinstance(document, dict):
        raise RpcError(mcp.INVALID_REQUEST, "the body is one JSON-RPC message, an object")
    if depth(document) > MAX_DEPTH:
        raise RpcError(mcp.INVALID_REQUEST, f"the message is nested deeper than {MAX_DEPTH} levels")
    try:
        message = msgspec.convert(document, Message)
    except msgspec.ValidationError as error:
        raise RpcError(mcp.INVALID_REQUEST, f"the message is no JSON-RPC: {error}") from None
    if document.get("jsonrpc") != "2.0" or (message.method is None and not {"result", "error"} & set(document)):
        raise RpcError(mcp.INVALID_REQUEST, 'the message is no JSON-RPC: it has "jsonrpc": "2.0" and a method')
    return message


def _is_modern(headers: Mapping[str, str], message: Message) -> bool:
    """Whether a message is a modern one, whose headers repeat what is in it. Raises RpcError where they do not."""
    version = headers.get(mcp.VERSION)
    about = (message.params or {}).get(mcp.META)
    told = about.get(mcp.VERSION_OF) if isinstance(about, dict) else None
    if told is None and (version is None or version in mcp.LEGACY):
        return False
    if told is None and version != mcp.MODERN:
        raise _unsupported(version)
    if message.id is None:  # a notification has no result that could be of one era or the other
        return True
    if not isinstance(about, dict) or mcp.CAPABILITIES_OF not in about or told is None:
        raise RpcError(mcp.INVALID_PARAMS, f"_meta: needs {mcp.VERSION_OF} and {mcp.CAPABILITIES_OF}")
    if version != told:
        raise RpcError(mcp.HEADER_MISMATCH, f"the header {mcp.VERSION} is not the {mcp.VERSION_OF} of _meta")
    if told != mcp.MODERN:
        raise _unsupported(told)
    if headers.get(mcp.METHOD) != message.method:
        raise RpcError(mcp.HEADER_MISMATCH, f"the header {mcp.METHOD} is not the method")
    key = mcp.NAMED_BY.get(message.method or "")
    name = (message.params or {}).get(key) if key else None
    if name is not None and mcp.of_header(headers.get(mcp.NAME, "")) != name:
        raise RpcError(mcp.HEADER_MISMATCH, f"the header {mcp.NAME} is not the {key}")
    return True


def _unsupported(version: JSON) -> RpcError:
    told = {"supported": SUPPORTED, "requested": version}
    return RpcError(mcp.UNSUPPORTED_VERSION, f"version {str(version)[:40]!r} of MCP is not spoken here", told)
