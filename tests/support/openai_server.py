"""The OpenAI API on a real server, on a Unix socket and on TCP, for tests with the real SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import openai
from aiohttp import web

from edged import wire
from edged.access import policy
from edged.api.service import Service
from edged.completions.embeddings import Embeds
from edged.completions.local import Chats
from edged.config import Agent, Config, Model, Node
from edged.requests.watchers import OnDelta
from edged.store.requests import Accepted
from edged.transport.http.openai.routes import routes
from edged.types import Ask, Caller, Reply, RouteTaken, Status, ToolRecord, Usage

CALLER = Caller("unix:1000", "http", frozenset({"house"}))
GUEST = Caller("guest", "http", frozenset(), admitted=False)
TIMEOUT_S = 60.0  # two busy cores some patience

Work = Callable[[Ask, OnDelta], Awaitable[Reply]]


def done(output: str | None, **more: Any) -> Reply:
    """A reply as an agent gives one."""
    values: dict[str, Any] = {
        "id": None,
        "rid": "r1",
        "status": Status.DONE,
        "output": output,
        "tool_calls": (ToolRecord("set_valve", {"valve": "north"}, {"changes": 1, "rows": []}, True),),
        "route": RouteTaken("local", "small", "local_ok", 0.9),
        "usage": Usage(12, 8, 3, 2),
    }
    return Reply(**{**values, **more})


class House:
    """Stands for the pipeline: one agent that does with a request what the test says."""

    def __init__(self) -> None:
        self.work: Work | None = None
        self.asks: list[Ask] = []
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.waits = asyncio.Event()
        self._watchers: dict[str, OnDelta] = {}

    async def accept(self, ask: Ask, on_delta: OnDelta | None = None) -> Accepted:
        """See Pipeline."""
        policy.check(ask.caller, ask.request.agent)
        self.asks.append(ask)
        rid = f"r{len(self.asks)}"
        self._watchers[rid] = on_delta or (lambda offset, text: None)
        return Accepted(rid)

    async def result(self, rid: str) -> bytes:
        """See Pipeline."""
        assert self.work is not None
        self.waits.set()
        return wire.reply_bytes(await self.work(self.asks[int(rid[1:]) - 1], self._watchers[rid]))

    def is_awaited(self, _: str) -> bool:
        """See Pipeline."""
        return False

    async def cancel(self, rid: str) -> None:
        """See Pipeline."""
        await self.cancelled.put(rid)


class Served:
    """A server and clients of it."""

    def __init__(self, socket: Path, port: int, house: House) -> None:
        self.socket, self.port, self.house = socket, port, house
        self.caller = CALLER
        self.client = openai.AsyncOpenAI(
            base_url="http://edged/v1",
            api_key="none",
            max_retries=0,
            timeout=TIMEOUT_S,
            http_client=httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(socket))),
        )

    def over_tcp(self) -> openai.AsyncOpenAI:
        """Another client."""
        return openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
        )

    async def in_thread(self, use: Callable[[openai.OpenAI], Any], *, tcp: bool) -> Any:
        """What a synchronous client gets."""

        def run() -> Any:
            if tcp:
                made = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)
            else:
                transport = httpx2.HTTPTransport(uds=str(self.socket))
                http = httpx2.Client(transport=transport)
                made = openai.OpenAI(base_url="http://edged/v1", api_key="none", max_retries=0, http_client=http)
            with made as client:
                return use(client)

        return await asyncio.to_thread(run)


@asynccontextmanager
async def serving(
    folder: Path, chats: Chats, models: dict[str, Model], embeds: Embeds | None = None
) -> AsyncIterator[Served]:
    """A server of these models and of the agent `house`."""
    config = Config(node=Node(), models=models, agents={"house": Agent(model="small"), "barn": Agent(model="small")})
    house = House()
    service = Service(
        config,
        cast(Any, house),
        cast(Any, None),
        cast(Any, None),
        chats,
        cast(Any, embeds),
        cast(Any, None),
        status=lambda: asyncio.sleep(0, {}),
    )
    app = web.Application()
    served: Served | None = None

    def caller_of(_: web.Request) -> Caller:
        assert served is not None
        return served.caller

    app.add_routes(routes(service, config, caller_of))
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    socket = folder / "http.sock"
    await web.UnixSite(runner, str(socket)).start()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = next(a[1] for a in runner.addresses if isinstance(a, tuple))
    served = Served(socket, port, house)
    try:
        yield served
    finally:
        await runner.cleanup()
        await served.client.close()
