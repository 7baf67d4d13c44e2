"""The OpenAI API on a real server, on a Unix socket and on TCP, for tests with the real SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import openai

from edged import wire
from edged.access import policy
from edged.access.gate import Gate
from edged.access.policy import Policy
from edged.api import Api
from edged.api.models import Models
from edged.api.requests import Requests
from edged.api.responses import Responses
from edged.completions.embeddings import EmbeddingModels
from edged.completions.plain import Completions
from edged.config import Agent, Config, Model, Node
from edged.requests.watchers import OnDelta
from edged.store.database import Database
from edged.store.requests import Accepted
from edged.transport.base import Backend, Readiness
from edged.transport.http.core.limits import Limits
from edged.transport.http.server import HttpTransport
from edged.types import Ask, Caller, Reply, RouteTaken, Status, ToolRecord, Usage
from edged.upstreams import LocalServers
from tests.support.http_api import KEY, keys_file

CALLER = Caller("unix:1000", "http", frozenset({"house"}))
GUEST = Caller("guest", "http", frozenset(), models=frozenset())
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

    async def find(self, name: str, client: str | None = None) -> None:
        """See Pipeline: nothing is kept here."""

    def is_awaited(self, _: str) -> bool:
        """See Pipeline."""
        return False

    def leave(self, rid: str, _ask: Ask, _on_delta: OnDelta) -> None:
        """See Pipeline."""
        self._watchers.pop(rid, None)

    async def cancel(self, rid: str) -> None:
        """See Pipeline."""
        await self.cancelled.put(rid)


class Porter(Gate):
    """Takes everybody for the caller that the test says, also over TCP."""

    caller = CALLER

    def unix(self, *_: Any, **__: Any) -> Caller:
        """See Gate."""
        return self.caller


class Served:
    """A server and clients of it. ignored: how many parameters of a request had no effect, where some had none."""

    def __init__(
        self, socket: Path, port: int, house: House, gate: Porter, transport: HttpTransport, ignored: list[int]
    ) -> None:
        self.ignored = ignored
        self.socket, self.port, self.house, self.gate, self._transport = socket, port, house, gate, transport
        self.client = self.over_unix()

    async def become(self, caller: Caller) -> None:
        """From now on the clients are this caller, on connections that are made from now on."""
        self.gate.caller = caller
        await self.client.close()
        self.client = self.over_unix()

    @property
    def answering(self) -> int:
        """Requests that are being answered."""
        return len(self._transport._services[0].connections.answering)

    def over_unix(self) -> openai.AsyncOpenAI:
        """Another client."""
        http = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(self.socket)))
        return openai.AsyncOpenAI(
            base_url="http://edged/v1", api_key=KEY, max_retries=0, timeout=TIMEOUT_S, http_client=http
        )

    def over_tcp(self) -> openai.AsyncOpenAI:
        """Another client."""
        return openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0, timeout=TIMEOUT_S
        )

    async def in_thread(self, use: Callable[[openai.OpenAI], Any], *, tcp: bool) -> Any:
        """What a synchronous client gets."""

        def run() -> Any:
            if tcp:
                made = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0)
            else:
                transport = httpx2.HTTPTransport(uds=str(self.socket))
                http = httpx2.Client(transport=transport)
                made = openai.OpenAI(base_url="http://edged/v1", api_key=KEY, max_retries=0, http_client=http)
            with made as client:
                return use(client)

        return await asyncio.to_thread(run)


@asynccontextmanager
async def serving(
    folder: Path,
    chats: Completions,
    models: dict[str, Model],
    embeds: EmbeddingModels | None = None,
    limits: Limits | None = None,
    *,
    strict: bool = False,
    origins: Sequence[str] = (),
    database: Database | None = None,
) -> AsyncIterator[Served]:
    """A server of these models and of the agent `house`. database: where responses are kept, if any are."""
    config = Config(node=Node(), models=models, agents={"house": Agent(model="small"), "barn": Agent(model="small")})
    house = House()
    gate = Porter(Policy(config.agents))
    requests = Requests(config, cast(Any, house), gate)
    api = Api(
        requests=requests,
        responses=Responses(config, cast(Any, database), requests, lambda: None),
        models=Models(
            config, cast(Any, None), chats, cast(Any, embeds), cast(Any, None), served=LocalServers({}), gate=gate
        ),
        library=cast(Any, None),
        tools=cast(Any, None),
        calibrate=cast(Any, None),
        learnt=cast(Any, None),
        events=cast(Any, None),
        mcp=cast(Any, None),
    )
    socket = folder / "http.sock"
    transport = HttpTransport(
        [socket, ("127.0.0.1", 0)],
        mode=0o660,
        group=None,
        api_keys_file=keys_file(folder),
        limits=limits,
        strict=strict,
        origins=origins,
    )
    ignored: list[int] = []
    await transport.start(
        Backend(config, api, gate, dict, lambda: Readiness(True), lambda: (b"", "text/plain"), ignored.append)
    )
    port = next(address[1] for address in transport.bound if isinstance(address, tuple))
    served = Served(socket, port, house, gate, transport, ignored)
    try:
        yield served
    finally:
        await transport.stop()
        await served.client.close()
