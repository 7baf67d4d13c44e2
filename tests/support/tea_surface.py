"""An HTTP surface that edged does not know: routes and errors of its own. A daemon gets it by EDGED_TEST_MEMBERS."""

from __future__ import annotations

import asyncio

from aiohttp import web

from edged.errors import EdgedError
from edged.transport.http import surfaces
from edged.transport.http.core.connection import caller, gone
from edged.transport.http.core.errors import response
from edged.transport.http.core.stream import EventStream, event
from edged.transport.http.core.surface import Board
from edged.types import Ask, Message, Request


class Tea:
    """See core.surface.Surface."""

    paths = ("/tea",)
    open_paths = ("/tea/menu",)

    def __init__(self, board: Board) -> None:
        self._board = board

    def routes(self) -> list[web.RouteDef]:
        """See Surface."""
        return [
            web.get("/tea/menu", self.menu),
            web.get("/tea/who", self.who),
            web.get("/tea/broken", self.broken),
            web.post("/tea/{agent}", self.ask),
            web.post("/tea/{agent}/drops", self.drops),
        ]

    def error(self, _: web.BaseRequest, error: EdgedError) -> web.Response:
        """See Surface."""
        body = f"{error.code}: {error.message}".encode()
        return response(error, body, content_type="application/x-tea", headers={"X-Pot": "cold"})

    async def menu(self, _: web.Request) -> web.Response:
        """For everybody."""
        return web.Response(text="tea")

    async def who(self, request: web.Request) -> web.Response:
        """Who asks."""
        return web.Response(text=caller(request).client)

    async def broken(self, _: web.Request) -> web.Response:
        """A bug."""
        raise ZeroDivisionError("secret 42")

    async def ask(self, request: web.Request) -> web.Response:
        """The answer of an agent."""
        return web.Response(body=await self._board.api.requests.answer(await self._asked(request), gone=gone(request)))

    async def drops(self, request: web.Request) -> web.StreamResponse:
        """The same in pieces; a piece of nothing breaks it."""
        ask = await self._asked(request, stream=True)
        stream = EventStream[str](
            request, lambda pieces: event("".join(pieces).encode(), "drop"), start_s=1.0, heartbeat_s=1.0
        )

        async def pour() -> bytes:
            reply = await self._board.api.requests.answer(ask, lambda _, text: stream.add(text), gone=gone(request))
            if ask.request.id == "spill":
                await asyncio.sleep(0)
                raise ZeroDivisionError("secret 42")
            return reply

        return await stream.run(
            pour(), ended=lambda reply: event(reply, "pot"), failed=lambda error: event(error.code.encode(), "wrong")
        )

    async def _asked(self, request: web.Request, *, stream: bool = False) -> Ask:
        words = Message("user", (await request.read()).decode())
        agent, id = request.match_info["agent"], request.headers.get("X-Id")
        return Ask(request=Request(agent=agent, messages=(words,), id=id, stream=stream), caller=caller(request))


surfaces.SURFACES.append(Tea)
