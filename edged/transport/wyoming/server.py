"""The Wyoming listener and its connections.

Voice assistants make a connection for each sentence, and one now and then to ask who is there (`describe`), which is
answered at once whatever the models do. Nobody shows who they are, so they are all one client (`Policy.open_way`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec

from edged.access.gate import Gate
from edged.agent import language
from edged.api import Api
from edged.errors import BadRequest, Busy, EdgedError, Internal, TooLarge, UnknownAgent
from edged.transport.base import Backend, Sockets, Transport
from edged.transport.wyoming import events, frames
from edged.transport.wyoming.events import Sentence
from edged.types import JSON, Ask, Caller

log = logging.getLogger("edged.wyoming")

MAX_CONNECTIONS = 64  # as many as one client of HTTP may have; a home has a handful of satellites
IDLE_S = 300.0  # nobody says anything; Home Assistant makes a new connection each time
UNREAD_S = 30.0  # a client that has not read for so long is gone
UNSENT_BYTES = 256 * 1024  # a client so slow gets no more pieces; the whole answer it gets in any case
CLOSE_S = 2.0  # how long a closing connection may take to send what it still has


class WyomingTransport(Transport):
    """The listener.

    Args:
        agent: who answers.
        cancels: whether a sentence ends when its client leaves.
    """

    name = "wyoming"

    def __init__(self, address: tuple[str, int], agent: str, *, cancels: bool) -> None:
        self.addresses = (address,)
        self._address = address
        self._cancels = cancels
        self._agent = agent
        self._backend: Backend
        self._inherited: Sockets = {}
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    def inherit(self, sockets: Sockets) -> None:
        """See Transport."""
        self._inherited = sockets

    async def start(self, backend: Backend) -> None:
        """See Transport."""
        self._backend = backend
        for listening in self._inherited[self._address]:
            server = await asyncio.start_server(self._connected, sock=listening.dup(), limit=frames.MAX_LINE_BYTES)
            self._servers.append(server)

    def stop_taking(self) -> None:
        """See Transport."""
        for server in self._servers:
            server.close()

    async def stop(self) -> None:
        """See Transport. What is asked goes on after the next start; who asked is not told."""
        self.stop_taking()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        self._servers = []

    def status(self) -> JSON:
        """{listen: host:port, agent, connections}."""
        host, port = self._address
        return {"listen": f"{host}:{port}", "agent": self._agent, "connections": len(self._connections)}

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # asyncio runs this callback as a task
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.write(frames.encoded(*events.refusal(Busy(f"{MAX_CONNECTIONS} connections are open already"))))
            await _close(writer)
            return
        self._connections.add(task)
        caller = self._backend.gate.policy.open_way(self.name, self.name)
        connection = _Connection(reader, writer, caller, self._backend, self._agent, cancels=self._cancels)
        try:
            await connection.run()
        except asyncio.CancelledError:
            pass  # the daemon stops
        finally:
            self._connections.discard(task)
            await _close(writer)


class _Connection:
    """One connection, of anybody on this board."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        caller: Caller,
        backend: Backend,
        agent: str,
        *,
        cancels: bool,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._caller = caller
        self._api: Api = backend.api
        self._gate: Gate = backend.gate
        self._settings = backend.settings
        self._agent = agent
        self._cancels = cancels
        self._selected = agent
        self._gone = asyncio.Event()
        self._answering: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until the peer leaves, says what cannot be read, or says nothing for IDLE_S."""
        try:
            while (frame := await self._next()) is not None:
                await self._take(frame)
            if self._cancels:
                self._gone.set()
        except (BadRequest, TooLarge) as error:
            log.warning(
                "a connection of %s is closed: %s", self._caller.client, error, extra={"event": "connection_closed"}
            )
            self._gate.unread(self._caller, error)
            await self._send(*events.refusal(error))
        except (ConnectionError, TimeoutError):  # closed with something unread, or it does not read
            if self._cancels:
                self._gone.set()
        finally:
            if self._answering is not None:
                self._answering.cancel()
                await asyncio.wait([self._answering])

    async def _next(self) -> frames.Frame | None:
        reading = asyncio.create_task(frames.read(self._reader), name="edged.wyoming.frame")
        try:
            while not (await asyncio.wait([reading], timeout=IDLE_S))[0]:
                if self._answering is None:
                    return None
            return reading.result()
        finally:
            reading.cancel()

    async def _take(self, frame: frames.Frame) -> None:
        match frame.type:
            case "describe":
                await self._send("info", events.info(self._settings.node.id, self._agent, controls=self._controls()))
            case "ping":
                await self._send("pong", {"text": frame.data.get("text")})
            case "select-program":
                self._selected = str(frame.data.get("name"))
            case "transcript" if self._answering is not None:
                busy = Busy("the sentence before is not answered yet: ask on a connection of its own")
                await self._send(*events.refusal(busy))
            case "transcript":
                self._answering = asyncio.create_task(self._answer(frame.data), name="edged.wyoming.sentence")
                self._answering.add_done_callback(self._answered)
            case _:  # as the protocol has it: what is not known is left alone
                log.debug("%s is skipped", frame.type)

    def _answered(self, _: asyncio.Task[None]) -> None:
        self._answering = None

    def _controls(self) -> bool:
        """Whether the agent can do something for this caller."""
        tools = self._settings.agents[self._agent].tools
        return any(tool["effect"] == "write" and tool["name"] in tools for tool in self._api.tools.usable(self._caller))

    async def _answer(self, data: dict[str, JSON]) -> None:
        """One sentence, up to the event that ends it."""
        pieces, said = _Pieces(self._writer), None
        try:
            said = events.sentence(data)
            type, body = await self._outcome(said, pieces)
        except EdgedError as error:
            self._gate.unread(self._caller, error)
            type, body = events.refusal(error, said.conversation if said else None)
        except Exception:
            log.exception("a sentence failed through a bug", extra={"event": "bug"})
            type, body = events.refusal(Internal("an error inside edged; its log has the details"))
        with contextlib.suppress(ConnectionError, TimeoutError):
            if type == "handled":
                pieces.complete(body["text"])
            await self._send(type, body)
            if type == "handled" and pieces.begun:
                await self._send("handled-stop")  # after `handled`, as the protocol has it

    async def _outcome(self, said: Sentence, pieces: _Pieces) -> tuple[str, dict[str, JSON]]:
        if self._selected not in (self._agent, events.program(self._settings.node.id, self._agent)):
            raise UnknownAgent(f"no program {self._selected!r}: here is {self._agent}")
        self._gate.enter(self._caller, "name a role for access.wyoming")
        wanted: dict[str, JSON] = {"input": said.text, "stream": True}
        wanted |= {"conversation": said.conversation} if said.conversation else {}
        wanted |= {"language": said.language} if said.language else {}
        ask = Ask(request=self._api.requests.request(wanted, agent=self._agent), caller=self._caller)
        raw = await self._api.requests.answer_unless_parked(ask, pieces.add, gone=self._gone)
        if raw is None:
            return "handled", events.spoken(self._waits(said), said.conversation)
        return events.outcome(msgspec.json.decode(raw), said.conversation)

    def _waits(self, said: Sentence) -> str:
        """That the answer waits for a link, in the language of the question."""
        agent = self._settings.agents[self._agent]
        return language.WAITS[language.chosen(agent.language, said.language, (said.text, agent.system))]

    async def _send(self, type: str, data: dict[str, JSON] | None = None) -> None:
        """Raises ConnectionError, TimeoutError."""
        self._writer.write(frames.encoded(type, data))
        async with asyncio.timeout(UNREAD_S):
            await self._writer.drain()


class _Pieces:
    """An answer as it comes. Clients that show or speak none of it wait for `handled`, which has all of it.

    begun: whether any of it was sent.
    """

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.begun = False
        self._writer = writer
        self._sent = ""
        self._goes_on = True

    def add(self, offset: int, text: str) -> None:
        """A piece; offset in characters. What was sent cannot be taken back: if the answer begins anew, `handled` is
        what counts."""
        slow = self._writer.transport.get_write_buffer_size() > UNSENT_BYTES
        if offset != len(self._sent) or slow or self._writer.is_closing():
            self._goes_on = False
        if self._goes_on and text:
            self._send(text)

    def complete(self, answer: str) -> None:
        """Send what is missing of an answer that has begun, so that the pieces are all of it."""
        rest = answer.removeprefix(self._sent)
        if self.begun and self._goes_on and rest and rest != answer:
            self._send(rest)

    def _send(self, text: str) -> None:
        if not self.begun:
            self.begun = True
            self._writer.write(frames.encoded("handled-start"))
        self._sent += text
        self._writer.write(frames.encoded("handled-chunk", {"text": text}))


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()
