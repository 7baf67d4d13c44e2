"""GET /openapi.json, and the tools by hand that it tells of (contract, section 6)."""

from __future__ import annotations

import msgspec
from aiohttp import web

from edged import wire
from edged.api.models import Kind
from edged.errors import BadRequest, EdgedError
from edged.transport.http.core.connection import caller
from edged.transport.http.core.errors import NotFound, response
from edged.transport.http.core.headers import idempotency_key
from edged.transport.http.core.surface import Board
from edged.transport.http.openapi.document import document
from edged.types import Format
from edged.wire.values import checked

PATH = "/openapi.json"


class OpenAPI:
    """See core.surface.Surface."""

    paths = (PATH, "/v1/tools")
    open_paths = ()

    def __init__(self, board: Board) -> None:
        self._models, self._tools = board.api.models, board.api.tools

    def routes(self) -> list[web.RouteDef]:
        """See Surface."""
        return [web.get(PATH, self.describe), web.post("/v1/tools/{tool:[^/]+}", self.call)]

    def error(self, request: web.BaseRequest, error: EdgedError) -> web.Response:
        """See Surface: as edged's own."""
        return response(error, wire.refusal(error, id=None))

    async def describe(self, http: web.Request) -> web.Response:
        """GET /openapi.json: what the caller may use, now."""
        who = caller(http)
        agents = [name for name, kind in self._models.usable(who).items() if kind is Kind.AGENT]
        return _json(document(agents, self._tools.usable(who)))

    async def call(self, http: web.Request) -> web.Response:
        """POST /v1/tools/{tool}: a call by hand, with the arguments as the body, and its result. With an
        Idempotency-Key an SQL write of the same client happens once."""
        who, name = caller(http), http.match_info["tool"]
        body = wire.decode(await http.read() or b"{}", Format.JSON)
        try:
            result = await self._tools.call(
                who, name, checked(body, "a tool's arguments"), idempotency_key(http.headers)
            )
        except BadRequest as error:
            if name in {tool["name"] for tool in self._tools.usable(who)}:
                raise
            raise NotFound(error.message) from None
        return _json(result)


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
