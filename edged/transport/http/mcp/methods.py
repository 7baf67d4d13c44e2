"""The methods of the Model Context Protocol that edged offers, for both eras: parameters into calls of the API."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping

import msgspec

from edged import __version__
from edged.api import Api
from edged.errors import BadRequest, Busy, EdgedError
from edged.transport.http.mcp import offered
from edged.transport.http.mcp.offered import Kind, Offer
from edged.types import JSON, Ask, Caller, Request
from edged.wire import mcp
from edged.wire.mcp import RpcError

PATIENCE_S = 8.0  # for an agent's answer: Home Assistant gives a handshake and a call ten seconds in all
STATUS_URI = "edged://status"
NO_RESOURCE = -32002  # of the legacy era: there is no such resource
TTL_MS = 60_000  # that a client may keep a list for; a reload may change it
SERVER = {"name": "edged", "title": "edged", "version": __version__}
STATUS = {"uri": STATUS_URI, "name": "status", "title": "Status", "mimeType": "application/json"}

# What a client may keep for a while, in the modern era.
CACHED = (mcp.DISCOVER, mcp.LIST, "resources/list", "resources/templates/list", "resources/read")
CAPABILITIES: dict[str, JSON] = {"tools": {}, "resources": {}}

Params = dict[str, JSON]


class Call(msgspec.Struct, frozen=True):
    """Who calls, in which era. gone: set before the call is cancelled because its client has left."""

    caller: Caller
    is_modern: bool
    gone: asyncio.Event


class Methods:
    """The methods by name."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def answer(self, call: Call, method: str, params: Params) -> dict[str, JSON]:
        """The result of a request.

        Raises:
            RpcError: as the protocol has it.
            EdgedError: a refusal that is not about the call itself, as Busy.
        """
        result = await self._answer(call, method, params)
        if not call.is_modern:
            return result
        lasting = {"ttlMs": TTL_MS, "cacheScope": "private"} if method in CACHED else {}
        return {"resultType": "complete", **lasting, **result, mcp.META: {mcp.SERVER_OF: SERVER}}

    async def _answer(self, call: Call, method: str, params: Params) -> dict[str, JSON]:
        match method, call.is_modern:
            case mcp.INITIALIZE, False:
                return self._initialize(params)
            case mcp.PING, False:
                return {}
            case mcp.DISCOVER, True:
                about = {"capabilities": CAPABILITIES, "instructions": offered.INSTRUCTIONS}
                return {"supportedVersions": [mcp.MODERN], **about}
            case mcp.LIST, _:
                return {"tools": [offer.document for offer in self._offers(call.caller).values()]}
            case mcp.CALL, _:
                return await self._call(call, params)
            case "resources/list", _:
                return {"resources": [STATUS]}
            case "resources/templates/list", _:
                return {"resourceTemplates": []}
            case "resources/read", _:
                return await self._read(call, params)
        raise RpcError(mcp.METHOD_NOT_FOUND, f"{method[:100]} is not offered")

    def _initialize(self, params: Params) -> dict[str, JSON]:
        asked = params.get("protocolVersion")
        return {
            "protocolVersion": asked if asked in mcp.LEGACY else mcp.LEGACY[0],
            "capabilities": CAPABILITIES,
            "serverInfo": SERVER,
            "instructions": offered.INSTRUCTIONS,
        }

    def _offers(self, caller: Caller) -> dict[str, Offer]:
        agents = {name: agent.tools for name, agent in self._api.models.agents(caller).items()}
        return offered.offers(self._api.tools.usable(caller), agents)

    async def _read(self, call: Call, params: Params) -> dict[str, JSON]:
        if (uri := params.get("uri")) != STATUS_URI:
            code = mcp.INVALID_PARAMS if call.is_modern else NO_RESOURCE
            raise RpcError(code, f"no resource {str(uri)[:100]!r}; there is {STATUS_URI}", {"uri": uri})
        status = msgspec.json.encode(await self._api.events.status(call.caller)).decode()
        return {"contents": [{"uri": STATUS_URI, "mimeType": "application/json", "text": status}]}

    async def _call(self, call: Call, params: Params) -> dict[str, JSON]:
        name, arguments = params.get("name"), params.get("arguments")
        if not isinstance(name, str):
            raise RpcError(mcp.INVALID_PARAMS, "name: is required, a text")
        if arguments is not None and not isinstance(arguments, dict):
            raise RpcError(mcp.INVALID_PARAMS, "arguments: is an object")
        offers = self._offers(call.caller)
        if (offer := offers.get(name)) is None:
            known = ", ".join(offers) or "none for this client"
            raise RpcError(mcp.INVALID_PARAMS, f"unknown tool {name[:100]!r}; there are {known}")
        try:
            return await self._do(call, offer, arguments or {})
        except Busy:  # 503 with Retry-After
            raise
        except EdgedError as error:  # for the client's model to read
            return offered.failed(error.message)

    async def _do(self, call: Call, offer: Offer, arguments: Mapping[str, JSON]) -> dict[str, JSON]:
        if offer.kind is Kind.TOOL:
            return offered.result(await self._api.tools.call(call.caller, offer.name, dict(arguments)))
        if offer.kind is Kind.AGENT:
            id = f"mcp-{secrets.token_hex(8)}"
            asked = {"input": _one(arguments, "text"), "id": id}
            request = self._api.requests.request(asked, agent=offer.name)
            return await self._answered(call, id, request, is_new=True)
        row = await self._api.requests.find(call.caller, id := _one(arguments, "id"))
        if row.reply is None and row.client == call.caller.client:  # to ask again is to wait for the same
            return await self._answered(call, id, row.request, is_new=False)
        return offered.answered(id, await self._api.requests.view(row))

    async def _answered(self, call: Call, id: str, request: Request, *, is_new: bool) -> dict[str, JSON]:
        """The answer to a request, or that there is none yet. A modern client that leaves ends what it has asked."""
        reply: JSON = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    reply = msgspec.json.decode(
                        await self._api.requests.answer(Ask(request=request, caller=call.caller))
                    )
        except asyncio.CancelledError:
            if is_new and call.is_modern and call.gone.is_set():
                await self._api.requests.cancel(call.caller, id)
            raise
        if reply is None:
            reply = await self._api.requests.view(await self._api.requests.find(call.caller, id))
        return offered.answered(id, reply)


def _one(arguments: Mapping[str, JSON], name: str) -> str:
    """The one argument of a tool that is an agent, or fetches an answer."""
    if unknown := sorted(set(arguments) - {name}):
        raise BadRequest(f"arguments: unknown {', '.join(unknown)[:100]}; allowed is {name}")
    value = arguments.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadRequest(f"arguments: {name}: is required, a text")
    return value
