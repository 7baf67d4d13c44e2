"""The load of the crash tests: clients that ask all the time, over every transport and for every kind of tool, each
under a number of its own, and write down what they were told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from tests.support.broker import marks
from tests.support.daemon import ASK, BASE, NOTES, REPLY, START_S, Customer, Daemon, Wired, entry, note
from tests.support.fault_verdict import KEEP, LAMP, NOTE, Books, Due

OUTSTANDING = 8  # requests on their way: some run, some wait, some are on the wire when it strikes
AGAIN_S = 0.2  # a client that is told to come again in a minute does not wait so long in a test
WITHIN_S = 120.0  # for everything to be answered when nothing strikes any more: the daemon may wait 30 s for the broker
DEADLINE_S = 0.5
PLAIN_REPLY = f"{BASE}/agents/house/reply"
TALK = 140  # numbers that share a conversation: its turns are read with each

READ, NEVER = "read", "never"
TEXTS = {NOTE: "note {};", KEEP: "keep {};", LAMP: "lamp on", READ: "how full is the south one?", NEVER: "never ends"}
SCRIPT = "".join(
    (
        entry(r"note (\d+);", note(r"n\1"), text=r"noted \1"),
        entry(r"keep (\d+);", {"name": "keep", "arguments": {"text": r"k\1"}}, text=r"kept \1"),
        entry("lamp on", {"name": "lamp", "arguments": {"lamp": "desk", "state": "ON"}}, text="The lamp is on."),
        entry("how full", {"name": "tank_level", "arguments": {"tank": "south"}}, text="It is 41 percent full."),
        entry("never ends", text="word " * 10_000, token_s=0.05),
    )
)
KEEPER = '''
"""A tool of the user's that does nothing twice under the same key."""
import sqlite3
from pathlib import Path

def keep(text: str, idempotency_key: str) -> str:
    """Keep a text."""
    with sqlite3.connect(Path(__file__).with_name("kept.db"), isolation_level=None) as kept:
        kept.execute("INSERT INTO tries VALUES (?)", (idempotency_key,))
        kept.execute("INSERT OR IGNORE INTO kept VALUES (?, ?)", (idempotency_key, text))
    kept.close()
    return text
'''
KEPT = "CREATE TABLE tries(key); CREATE TABLE kept(key PRIMARY KEY, text)"
KEEP_TOOL = '[tools.keep]\npython = "keeper:keep"\non_uncertain = "retry"\n'


@dataclass(frozen=True)
class Kind:
    """way: how it is asked (see `Load`); what: a key of TEXTS; fields: more of the request."""

    way: str
    what: str
    fields: dict[str, Any] = field(default_factory=dict)


KINDS = (
    Kind("correlated", LAMP),
    Kind("correlated", NOTE),
    Kind("socket", NOTE),
    Kind("named", NOTE),
    Kind("http", NOTE),
    Kind("correlated", KEEP),
    Kind("plain", NOTE),
    Kind("correlated", READ),
    Kind("socket", KEEP),
    Kind("named", NOTE, {"conversation": "talk"}),
    Kind("cancelled", NEVER),
    Kind("named", NOTE, {"priority": "batch"}),
    Kind("http", NOTE),
    Kind("named", NEVER, {"deadline_s": DEADLINE_S}),
)
OF_A_MODEL = tuple(
    Kind(way, what)
    for what in (LAMP, NOTE, NOTE, READ, NOTE, NOTE, NOTE)
    for way in ("correlated", "correlated", "socket", "correlated", "http")
)


class Load:
    """Clients. Ways: "correlated" (MQTT, with Correlation Data), "named" (MQTT, with an id), "plain" (MQTT, with
    neither: only a redelivered packet is known again), "socket", "http", "cancelled" (on the socket, until it is).

    Args:
        model: whether a real model answers, which decides by itself.
        plain: whether anything is asked without an identity: not where a client has to ask twice.
        patience_s: a client asks again after so long; None: never, what was confirmed is the daemon's.
        fragile: Python tools may be killed.
    """

    def __init__(
        self,
        daemon: Daemon,
        customer: Customer,
        chance: random.Random,
        *,
        model: bool = False,
        plain: bool = True,
        patience_s: float | None = None,
        fragile: bool = False,
    ) -> None:
        self.books = Books()
        self.lamps = 0
        self._daemon, self._customer, self._chance = daemon, customer, chance
        self._model, self._plain, self._patience_s, self._fragile = model, plain, patience_s, fragile
        self._kinds = OF_A_MODEL if model else KINDS
        self._next = 0
        self._slots = asyncio.Semaphore(OUTSTANDING)
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: dict[int, Callable[[], Awaitable[None]]] = {}
        self._ways = {
            "correlated": self._over_mqtt,
            "named": self._over_mqtt,
            "plain": self._over_mqtt,
            "socket": self._over_socket,
            "http": self._over_http,
            "cancelled": self._until_cancelled,
        }

    def ask(self, requests: int | None = None) -> asyncio.Task[None]:
        """Ask, as fast as answers come; without a number until the task is cancelled."""
        return asyncio.create_task(self._ask_on(requests))

    async def stop(self) -> None:
        """Leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def answered(self) -> None:
        """Wait until all that was asked is."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def flowing(self) -> None:
        """Wait until something is answered that was not before: over the link that is back."""
        seen = len(self.books.replies)
        async with asyncio.timeout(WITHIN_S):
            await self._until(lambda: len(self.books.replies) > seen + OUTSTANDING)

    def hear(self, message: paho.MQTTMessage) -> None:
        """What came from the broker."""
        if message.topic in (REPLY, PLAIN_REPLY):
            self._reply(message)
        self.lamps += message.topic.startswith("lamps/")

    # -- asking ----------------------------------------------------------------------------------------------------

    async def _ask_on(self, requests: int | None) -> None:
        while requests is None or self._next < requests:
            await self._slots.acquire()
            number, self._next = self._next, self._next + 1
            self._spawn(self._ask(number))

    async def _ask(self, number: int) -> None:
        """Each kind in its turn; a place is free again when the answer is there."""
        kind = self._kinds[number % len(self._kinds)]
        if kind.way == "plain" and not self._plain:
            kind = Kind("correlated", kind.what, kind.fields)
        self.books.asked[number] = text = self._text(kind, number)
        if not self._model:
            self.books.due[number] = self._due(kind, number)
        try:
            await self._ways[kind.way](number, kind, text)
        finally:
            self._slots.release()
            self._news.set()

    def _text(self, kind: Kind, number: int) -> str:
        return TEXTS[kind.what].format(number % NOTES if self._model else number)

    def _due(self, kind: Kind, number: int) -> Due:
        if kind.what == NEVER:
            return Due(frozenset({"cancelled" if kind.way == "cancelled" else "expired"}))
        if kind.what == KEEP:
            statuses = frozenset({"done", "failed"} if self._fragile else {"done"})
            return Due(statuses, ((KEEP, f"k{number}"),), unsure=self._fragile)
        return Due(effects={NOTE: ((NOTE, f"n{number}"),), LAMP: ((LAMP, ""),)}.get(kind.what, ()))

    async def _over_mqtt(self, number: int, kind: Kind, text: str) -> None:
        hand_over = self._again[number] = lambda: self._hand_over(number, kind, text)
        await hand_over()
        while number not in self.books.replies:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s):
                    await self._until(lambda: number in self.books.replies)
                break
            await hand_over()
        del self._again[number]

    async def _hand_over(self, number: int, kind: Kind, text: str) -> None:
        """Until the broker has it. One that dies before it confirmed may have it, or not: asked again it is the same
        request by its Correlation Data or its id."""
        payload, properties = text, dict[str, Any]()
        if kind.way == "correlated":
            properties = {"ResponseTopic": REPLY, "CorrelationData": str(number).encode()}
        elif kind.way == "named":
            fields = {**kind.fields, "id": f"m{number}"}
            if "conversation" in fields:
                fields["conversation"] += str(number // TALK)
            payload = json.dumps({"input": text, **fields})
            properties = {"ResponseTopic": REPLY}
        while True:
            with contextlib.suppress(TimeoutError):
                await self._customer.publish(ASK, payload, **properties)
                return

    async def _over_socket(self, number: int, kind: Kind, text: str) -> None:
        await self._until_answered(number, lambda: self._call(number, text))
        [first] = self.books.replies[number]
        await self._until_answered(number, lambda: self._call(number, text))  # the stored reply
        if self.books.replies[number] == [first, first]:  # no copy that nobody wanted
            self.books.replies[number] = [first]

    async def _call(self, number: int, text: str) -> Any:
        async with Wired(self._daemon.socket) as client:
            error, reply = await client.call(1, "agent.ask", {"input": text, "id": f"u{number}"})
        return None if error else reply

    async def _until_cancelled(self, number: int, kind: Kind, text: str) -> None:
        asking = asyncio.create_task(self._over_socket(number, kind, text))
        try:
            while not asking.done():
                await asyncio.sleep(self._chance.uniform(0, 0.2))  # at any moment of its life
                with contextlib.suppress(OSError, AssertionError, TimeoutError):
                    async with Wired(self._daemon.socket) as client:
                        await client.call(1, "request.cancel", {"name": f"u{number}"})
        finally:
            asking.cancel()
            await asyncio.wait([asking])

    async def _over_http(self, number: int, kind: Kind, text: str) -> None:
        await self._until_answered(number, lambda: self._post(number, text))

    async def _post(self, number: int, text: str) -> Any:
        reader, writer = await asyncio.open_unix_connection(str(self._daemon.socket.with_name("http.sock")))
        with contextlib.closing(writer):
            body = json.dumps({"input": text, "id": f"h{number}"}).encode()
            head = f"POST /v1/agents/house/requests HTTP/1.1\r\nHost: edged\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + body)
            answer = await asyncio.wait_for(reader.read(), START_S)
        status, _, content = answer.partition(b"\r\n\r\n")
        return json.loads(content) if status.startswith(b"HTTP/1.1 200") else None

    async def _until_answered(self, number: int, ask: Callable[[], Awaitable[Any]]) -> None:
        """Asked again under the same id whenever the connection is lost, or the daemon is busy."""
        while True:
            with contextlib.suppress(OSError, AssertionError, TimeoutError, ValueError):
                if (reply := await ask()) is not None:
                    self.books.keep(number, json.dumps(reply).encode())
                    return
            await asyncio.sleep(0.02)  # between two attempts to connect

    # -- hearing ---------------------------------------------------------------------------------------------------

    def _reply(self, message: paho.MQTTMessage) -> None:
        """A reply over MQTT. A refusal that may be asked again is, under the same identity."""
        payload = bytes(message.payload)
        told = json.loads(payload)
        number = _number(message, told)
        if told["status"] == "refused" and told["error"]["retryable"]:
            self.books.refused += 1
            if again := self._again.get(number):
                self._spawn(self._later(again))
            return
        self.books.keep(number, payload)
        self._news.set()

    async def _later(self, again: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(AGAIN_S)
        await again()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until(self, ready: Callable[[], object]) -> None:
        """Wait until something is so that answers decide."""
        while not ready():
            self._news.clear()
            await self._news.wait()


def _number(message: paho.MQTTMessage, told: Any) -> int:
    """Whose reply it is: by the Correlation Data, else by the id, else by what was done."""
    if correlation := getattr(marks(message), "CorrelationData", None):
        return int(correlation)
    if told["id"]:
        return int(told["id"].removeprefix("m"))
    found = re.search(r"\d+", json.dumps([told["output"], *(call["arguments"] for call in told["tool_calls"])]))
    assert found, f"a reply that is nobody's: {told}"
    return int(found[0])


def set_up_keeper(folder: Path) -> Path:
    """The Python tool's module beside a configuration, and its table. Returns the file of the table."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "keeper.py").write_text(KEEPER)
    kept = tools / "kept.db"
    with contextlib.closing(sqlite3.connect(kept)) as database:
        database.executescript(KEPT)
    return kept
