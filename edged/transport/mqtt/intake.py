"""What one connection brings in: each message is handed on in receive order, worked on concurrently, acknowledged in
receive order, and never before it is safe."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from msgspec import Struct

from edged import wire
from edged.errors import BadRequest, EdgedError, Internal, NoLink, UnknownAgent
from edged.transport.mqtt import topics
from edged.transport.mqtt.messages import Incoming, Outgoing, refusal
from edged.transport.mqtt.settings import Settings
from edged.transport.mqtt.topics import Topics
from edged.types import Address, Ask, Caller, Format, Request

log = logging.getLogger(__name__)

MAX_BARE_REFUSALS = 64  # QoS 0 requests have no Receive Maximum: a flood of wrong ones must not fill memory


class Handlers(Struct, frozen=True):
    """What becomes of a message.

    accept: returns once the request is committed, or known already; raises EdgedError for a refusal.
    cancel: rid or id, and the topic it came on.
    send: publishes; returns None once the broker has it, else why it never will. Raises NoLink when stopped.
    identify: the caller, by client and topic; None: everyone may use every agent.
    refused: gets every refusal.
    others: gets what is neither; whether it has a use for that.
    """

    accept: Callable[[Ask], Awaitable[object]]
    cancel: Callable[[str, str], Awaitable[None]]
    send: Callable[[Outgoing], Awaitable[str | None]]
    identify: Callable[[str, str], Caller] | None = None
    refused: Callable[[Caller, EdgedError], None] = lambda caller, error: None
    others: Callable[[Incoming], bool] = lambda incoming: False


class Counters(Struct):
    """Since the start: messages in, replies out, requests refused, packets with the DUP flag."""

    received: int = 0
    replied: int = 0
    refused: int = 0
    duplicates: int = 0


class Unanswerable(Exception):
    """The message names a reply topic on which nothing may be said; the message of this error says why."""


class Receipt:
    """One publish that waits for its PUBACK."""

    __slots__ = ("mid", "settled")

    def __init__(self, mid: int) -> None:
        self.mid = mid
        self.settled = False


class Acks:
    """The open receipts of one connection: PUBACKs leave in the order in which the publishes came (MQTT-4.6.0-2),
    whatever order their work ends in.

    A packet id means something on its own connection only: a PUBACK that is sent on the next one would acknowledge
    another packet, which would then be lost. So there is one Acks per connection, and `drop` ends it.
    """

    def __init__(self, send: Callable[[int], None]) -> None:
        self._send: Callable[[int], None] | None = send
        self._open: deque[Receipt] = deque()

    def expect(self, mid: int) -> Receipt:
        """A publish with this packet id came in."""
        receipt = Receipt(mid)
        self._open.append(receipt)
        return receipt

    def settle(self, receipt: Receipt) -> None:
        """Its work is done; sends every PUBACK that waits for nothing older. Without effect after `drop`."""
        receipt.settled = True
        while self._send is not None and self._open and self._open[0].settled:
            self._send(self._open.popleft().mid)

    def drop(self) -> None:
        """The connection is gone: the broker delivers again what was not acknowledged."""
        self._send = None
        self._open.clear()

    def __len__(self) -> int:
        return len(self._open)


class Intake:
    """The messages of one connection.

    Args:
        settings: the agents and the default expiry.
        handlers: see there.
        counters: shared by all connections.
        working: tasks that must not be cut off on a clean stop; shared by all connections, because a commit goes on
            when its connection is gone.
        ack: sends a PUBACK on this connection.
        done: called once for each `take`, when the message no longer holds memory.
    """

    def __init__(
        self,
        settings: Settings,
        handlers: Handlers,
        *,
        counters: Counters,
        working: set[asyncio.Task[None]],
        ack: Callable[[int], None],
        done: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._topics = Topics(settings.node_id)
        self._agents = frozenset(settings.agents)
        self._handlers = handlers
        self._counters = counters
        self._working = working
        self._acks = Acks(ack)
        self._done = done
        self._answering: set[asyncio.Task[None]] = set()
        self._bare_refusals = 0

    def take(self, incoming: Incoming) -> None:
        """Start work on a message. Tasks start in the order they were made, so accept is called in receive order."""
        self._counters.received += 1
        self._counters.duplicates += incoming.duplicate
        receipt = self._acks.expect(incoming.mid) if incoming.qos else None
        task = asyncio.create_task(self._handle(incoming, receipt), name="edged.mqtt.message")
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    def close(self) -> None:
        """The connection is gone: nothing is acknowledged any more, and refusals are left to the redelivery."""
        self._acks.drop()
        for task in self._answering:
            task.cancel()

    async def _handle(self, incoming: Incoming, receipt: Receipt | None) -> None:
        try:
            answer = await self._work(incoming)
        finally:
            self._done()
        answered = answer is None or await self._refuse(answer, bare=receipt is None)
        if answered and receipt is not None:
            self._acks.settle(receipt)

    async def _work(self, incoming: Incoming) -> Outgoing | None:
        """Hand a message on; returns the refusal to publish, if there is one."""
        if incoming.retained:
            log.warning(
                "a retained message on %s is ignored: it would be done again at every start",
                incoming.topic,
                extra={"event": "mqtt_ignored"},
            )
            return None
        target = self._topics.target_of(incoming.topic)
        if target is not None:
            await self._cancel(target, incoming.topic)
            return None
        agent = self._topics.agent_of(incoming.topic)
        if agent is None and self._handlers.others(incoming):
            return None
        if agent is None:
            log.warning(
                "a message on %s, which was not asked for, is ignored", incoming.topic, extra={"event": "mqtt_ignored"}
            )
            return None
        try:
            return await self._request(agent, incoming)
        except Unanswerable as problem:
            log.warning(
                "a request on %s can have no reply and is dropped: %s",
                incoming.topic,
                problem,
                extra={"event": "mqtt_unanswerable"},
            )
            self._handlers.refused(self._caller(incoming), BadRequest(str(problem)))
            return None

    async def _cancel(self, target: str, topic: str) -> None:
        try:
            await self._handlers.cancel(target, topic)
        except EdgedError as error:
            log.info("cannot cancel %s: %s", target, error.message, extra={"event": "cancel_refused"})
        except Exception:
            log.exception("cancelling %s failed", target, extra={"event": "bug"})

    async def _request(self, agent: str, incoming: Incoming) -> Outgoing | None:
        # First by the topic and the properties alone: a refusal of whatever is wrong with the rest goes there.
        address = self._address(agent, incoming)
        request = None
        try:
            request, fmt = wire.decode_request(incoming.payload, agent=agent, content_type=incoming.content_type)
            address = self._address(agent, incoming, request=request, fmt=fmt)
            await self._handlers.accept(self._ask(request, incoming, address))
            return None
        except EdgedError as error:
            failure = error
        except Unanswerable:
            raise
        except Exception:
            log.exception("a request on %s could not be taken in", incoming.topic, extra={"event": "bug"})
            failure = Internal("a fault of edged's own; its log has the details")
        self._counters.refused += 1
        self._handlers.refused(self._caller(incoming), failure)
        return refusal(failure, address, request_id=request.id if request is not None else None)

    def _ask(self, request: Request, incoming: Incoming, address: Address) -> Ask:
        caller = self._caller(incoming)
        if request.agent not in self._agents and caller.agents:
            known = ", ".join(sorted(self._agents & caller.agents))
            raise UnknownAgent(f"agent {request.agent!r} is not configured; known: {known}")
        if request.reply_to is not None and incoming.response_topic is None and incoming.from_v5:
            raise BadRequest("reply_to: is for MQTT 3.1.1; set the property Response Topic")
        anonymous = request.id is None
        return Ask(
            request=request,
            caller=caller,
            key=f"corr:{incoming.correlation.hex()}" if anonymous and incoming.correlation is not None else None,
            packet=incoming.packet(),
            address=address,
            expiry_s=incoming.expiry_s if incoming.expiry_s is not None else self._settings.default_expiry_s,
        )

    def _caller(self, incoming: Incoming) -> Caller:
        client = f"mqtt:{incoming.response_topic or incoming.topic}"
        identify = self._handlers.identify
        return identify(client, incoming.topic) if identify else Caller(client, "mqtt", self._agents)

    def _address(
        self, agent: str, incoming: Incoming, *, request: Request | None = None, fmt: Format | None = None
    ) -> Address:
        """Where the reply goes, as far as it is known: Response Topic, else reply_to, else the agent's reply topic.

        Raises:
            Unanswerable: the client chose a topic on which no reply may go.
        """
        chosen = incoming.response_topic
        if chosen is None and request is not None and not incoming.from_v5:
            chosen = request.reply_to
        if chosen is not None and (problem := topics.reply_problem(chosen)):
            raise Unanswerable(problem)
        msgpack = incoming.content_type is not None and "msgpack" in incoming.content_type.lower()
        return Address(
            topic=chosen if chosen is not None else self._topics.reply(agent),
            correlation=incoming.correlation,
            format=fmt or (Format.MSGPACK if msgpack else Format.JSON),
        )

    async def _refuse(self, answer: Outgoing, *, bare: bool) -> bool:
        """Publish a refusal; returns whether it is over with, and the request can be acknowledged. `close` cuts the
        wait off."""
        if bare and self._bare_refusals >= MAX_BARE_REFUSALS:
            return True
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        self._bare_refusals += bare
        try:
            problem = await self._handlers.send(answer)
        except NoLink:  # stopped: the redelivery repeats it
            return False
        finally:
            self._answering.discard(task)
            self._bare_refusals -= bare
        if problem is not None:
            log.warning(
                "a refusal on %s cannot be delivered: %s", answer.topic, problem, extra={"event": "reply_undeliverable"}
            )
        return True
