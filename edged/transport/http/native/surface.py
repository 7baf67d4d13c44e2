"""edged's own HTTP surface (CONTRACT section 6): agents and their requests, health and metrics. Its errors are replies
with status `refused`. What is no other surface's belongs to it."""

from __future__ import annotations

from aiohttp import web

from edged import wire
from edged.errors import EdgedError
from edged.transport.http.core.errors import response
from edged.transport.http.core.surface import Board
from edged.transport.http.native.requests import REQUEST, Agents
from edged.types import Format

LIVE = "/livez"
AGAIN_S = "1"  # Retry-After of a daemon that is not ready: a start takes a third of a second, and a look costs nothing


class Native:
    """See core.surface.Surface."""

    paths = ("/",)
    open_paths = (LIVE,)

    def __init__(self, board: Board) -> None:
        self._board = board
        self._agents = Agents(board.api.requests, heartbeat_s=board.heartbeat_s)

    def routes(self) -> list[web.RouteDef]:
        """See Surface."""
        return [
            *self._agents.routes(),
            web.get(LIVE, self.live),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.metrics),
        ]

    def error(self, request: web.BaseRequest, error: EdgedError) -> web.Response:
        """See Surface. In the format of the request and with its id, as far as they are known."""
        id, fmt = request.get(REQUEST, (None, Format.JSON))
        body = wire.encode_reply(wire.refusal(error, id=id), fmt)
        return response(error, body, content_type=wire.content_type(fmt))

    async def live(self, _: web.Request) -> web.Response:
        """GET /livez: the event loop runs."""
        return web.Response(text="ok\n")

    async def ready(self, _: web.Request) -> web.Response:
        """GET /readyz: "ok" where requests are taken, and a line "PART: WHY" for each part that is not there yet."""
        now = self._board.ready()
        lines = "".join(f"{part}: {why}\n" for part, why in now.missing.items())
        if now.taking:
            return web.Response(text=f"ok\n{lines}")
        return web.Response(text=lines, status=503, headers={"Retry-After": AGAIN_S})

    async def metrics(self, _: web.Request) -> web.Response:
        """GET /metrics."""
        body, content_type = self._board.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})
