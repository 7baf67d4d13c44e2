"""For tests of HTTP: the transport with its real sockets, and behind it requests whose answers a test decides."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec

from edged import wire
from edged.access.gate import Gate
from edged.access.policy import Policy
from edged.api import Api
from edged.errors import BadRequest, EdgedError
from edged.requests.watchers import OnDelta
from edged.store.lifecycle import State
from edged.store.lookup import Row
from edged.store.requests import Accepted
from edged.transport.base import Backend, Readiness
from edged.transport.http.core.limits import Limits
from edged.transport.http.server import HttpTransport, Listener
from edged.types import JSON, Ask, Caller, Fault, Message, Reply, Request, Status

KEY = "0123456789abcdef"
METRICS = "text/plain; version=1.0.0; charset=utf-8"


def reply(output: str = "done", *, error: EdgedError | None = None, id: str | None = None) -> bytes:
    """A reply's canonical bytes."""
    told = Fault(error.code, error.message, error.retryable, error.retry_after_s) if error else None
    status = Status.FAILED if error else Status.DONE
    return wire.reply_bytes(Reply(id=id, rid="r1", status=status, output=None if error else output, error=told))


class Desk:
    """Answers every request with `answers`, as soon as it is there: bytes, or an exception that is raised.

    asks: what came in; begun: there is one; watching: its on_delta; left: (id, gone was set) of the calls that were
    cancelled, with `missed` set when there is one, and `ending` raised then; rows: what find knows, by id and rid;
    unready: parts without which it takes none; missing: other ones.
    """

    def __init__(self) -> None:
        self.answers: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.asks: list[Ask] = []
        self.begun = asyncio.Event()
        self.watching: OnDelta | None = None
        self.left: list[tuple[str | None, bool]] = []
        self.missed = asyncio.Event()
        self.ending: Exception | None = None
        self.rows: dict[str, Row] = {}
        self.unready: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def says(self, answer: bytes | Exception) -> None:
        """From now on."""
        if isinstance(answer, Exception):
            self.answers.set_exception(answer)
            self.answers.exception()  # it is no mistake if nobody asks
        else:
            self.answers.set_result(answer)

    def keeps(self, *, answer: bytes | None = None, id: str | None = None, state: State = State.RUNNING) -> Row:
        """There is a request in the store."""
        asked = Request(agent="house", messages=(Message("user", "hi"),), id=id)
        row = Row(
            seq=1,
            rid="r1",
            client="c",
            id=id,
            transport="http",
            agent="house",
            conversation=None,
            request=asked,
            accepted_wall=0.0,
            accepted_boot=0.0,
            deadline_boot=None,
            state=State.DONE if answer else state,
            attempts=1,
            reply=answer,
            status=None,
            findings=(),
        )
        self.rows |= {"r1": row, **({id: row} if id else {})}
        return row

    def request(self, body: object, *, agent: str | None = None) -> Request:
        """See api.requests.Requests."""
        return wire.request_from_map(body, agent=agent)

    async def submit(self, ask: Ask, on_delta: OnDelta | None = None) -> Accepted:
        """See api.requests.Requests."""
        self.asks.append(ask)
        if self.answers.done():
            self.answers.result()
        row = self.rows.get("r1") or self.keeps(id=ask.request.id, state=State.RECEIVED)
        return Accepted(row.rid, reply=row.reply)

    async def answer(self, ask: Ask, on_delta: OnDelta | None = None, *, gone: asyncio.Event | None = None) -> bytes:
        """See api.requests.Requests."""
        self.asks.append(ask)
        self.watching = on_delta
        self.begun.set()
        try:
            return await asyncio.shield(self.answers)
        except asyncio.CancelledError:
            assert gone is not None
            self.left.append((ask.request.id, gone.is_set()))
            self.missed.set()
            if self.ending is not None:
                raise self.ending from None
            raise

    async def find(self, caller: Caller, name: str) -> Row:
        """See api.requests.Requests."""
        if name not in self.rows:
            raise BadRequest(f"no request {name!r}")
        return self.rows[name]

    async def view(self, row: Row) -> JSON:
        """See api.requests.Requests."""
        return {"id": row.id, "rid": row.rid, "status": "queued", "position": 2, "eta_s": 4.5}

    async def cancel(self, caller: Caller, name: str) -> Row:
        """See api.requests.Requests."""
        row = await self.find(caller, name)
        return row if row.reply else msgspec.structs.replace(row, reply=reply(id=row.id), state=State.CANCELLED)


def transport(
    desk: Desk, *listeners: Listener, inherited: dict[Listener, list[socket.socket]] | None = None, **more: Any
) -> HttpTransport:
    """The transport in front of a desk, for agent "house"."""
    settings: dict[str, Any] = {"mode": 0o660, "group": None, "api_keys_file": None, **more}
    made = HttpTransport(listeners, **settings)
    made.inherit(inherited or {})
    return made


def backend(desk: Desk) -> Backend:
    """What a transport finds of the daemon: the desk."""
    nobody: Any = None
    return Backend(
        settings=nobody,
        api=Api(requests=cast(Any, desk), **dict.fromkeys(set(Api.__struct_fields__) - {"requests"}, nobody)),
        gate=Gate(Policy(["house"])),
        state=dict,
        ready=lambda: Readiness(not desk.unready, {**desk.unready, **desk.missing}),
        metrics=lambda: (b"edged_up 1\n", METRICS),
    )


@contextlib.asynccontextmanager
async def serving(desk: Desk, *listeners: Listener, **more: Any) -> AsyncIterator[HttpTransport]:
    """The same, started."""
    served = transport(desk, *listeners, **more)
    await served.start(backend(desk))
    try:
        yield served
    finally:
        await served.stop()


def keys_file(folder: Path) -> str:
    """A file with the key of client "panel"."""
    (folder / "keys").write_text(f"panel:{KEY}\n")
    return str(folder / "keys")


class Line:
    """A connection on which a test says every byte itself."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def __aenter__(self) -> Line:
        self.reader, self.writer = await asyncio.open_unix_connection(str(self._path), limit=2**26)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def send(self, data: bytes) -> None:
        """Say something."""
        self.writer.write(data)

    def post(self, body: dict[str, Any], path: str = "/v1/agents/house/requests") -> None:
        """Ask for something."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        self.send(f"{head}\r\n\r\n".encode() + content)

    async def end(self) -> bytes:
        """All that comes until the other side closes."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionError:  # closed with something of ours unread, or while we were saying more
                return b""


def unix_session(path: Path) -> aiohttp.ClientSession:
    """A client of a Unix listener."""
    return aiohttp.ClientSession(
        "http://edged", connector=aiohttp.UnixConnector(str(path)), timeout=aiohttp.ClientTimeout(10)
    )


def tcp_session(served: HttpTransport, **headers: str) -> aiohttp.ClientSession:
    """A client of the last listener, which is on TCP."""
    address = served.bound[-1]
    assert isinstance(address, tuple)
    host, port = address
    return aiohttp.ClientSession(f"http://{host}:{port}", headers=headers, timeout=aiohttp.ClientTimeout(10))


def listening(path: Path) -> socket.socket:
    """A Unix socket that somebody else made and listens on."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


FAST = Limits(head_s=0.2, body_s=0.2, idle_s=0.4, linger_s=0.1, heartbeat_s=0.05)
