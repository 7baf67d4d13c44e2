"""What goes out: replies, pieces of answers, publishes of tools, and the node's own topics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from edged.errors import NoLink, ToolFailed
from edged.transport.mqtt import topics
from edged.transport.mqtt.client import Client
from edged.transport.mqtt.inflight import Inflight
from edged.transport.mqtt.intake import Counters
from edged.transport.mqtt.messages import Outgoing, Unsendable, reply
from edged.transport.mqtt.packets import REFUSED, reason
from edged.types import Address, Delivery

log = logging.getLogger(__name__)


class Sender:
    """Publishes over whichever client there is. inflight: what the broker has not confirmed yet.

    Args:
        linked: gives the client that is connected; None: there is no link.
        counters: of the transport.
    """

    def __init__(self, linked: Callable[[], Client | None], counters: Counters) -> None:
        self.inflight = Inflight(self._send)
        self._linked = linked
        self._counters = counters

    async def deliver(self, delivery: Delivery) -> None:
        """Publish a reply; returns once the broker has it, or will never take it. Waits for the link, and so does not
        return after the end: cancel it."""
        message = reply(delivery)
        try:
            problem = await self.confirmed(message)
        except NoLink:  # stopped: to return now would say that the reply is delivered
            await asyncio.get_running_loop().create_future()
            raise
        if problem is None:
            self._counters.replied += 1
        else:
            text = "reply %s on %s cannot be delivered: %s"
            log.error(text, delivery.rid, message.topic, problem, extra={"event": "reply_undeliverable"})

    def delta(self, address: Address, offset: int, text: str) -> None:
        """Publish a piece of a streamed answer, QoS 0; `offset` in characters. Dropped while the broker is away or
        slow."""
        client = self._linked()
        if client is None or client.congested:
            return
        self.post(
            Outgoing(
                topic=address.topic + topics.DELTA,
                payload=text.encode(errors="replace"),
                qos=0,
                correlation=address.correlation,
                content_type="text/plain",
                user=(("offset", str(offset)),),
            )
        )

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        """Publish for a tool and wait for the broker's confirmation; waits for the link while there is none.

        Raises:
            ToolFailed: the topic is none, or the broker refused the message.
            NoLink: the transport was stopped first.
        """
        problem = await self.confirmed(Outgoing(topic=topic, payload=payload, qos=qos, retain=retain))
        if problem is not None:
            raise ToolFailed(f"cannot publish to {topic}: {problem}")

    def post(self, message: Outgoing) -> None:
        """Publish with QoS 0 if that is possible now."""
        if (client := self._linked()) is None:
            return
        try:
            client.publish(message)
        except Unsendable as problem:
            log.warning("nothing is published on %s: %s", message.topic, problem, extra={"event": "mqtt_unsendable"})

    async def confirmed(self, message: Outgoing) -> str | None:
        """Publish; returns None once the broker has it, else why it will never take it. Waits for the link.

        Raises:
            NoLink: the transport was stopped.
        """
        problem = topics.publish_problem(message.topic)
        if problem is not None:
            return problem
        try:
            if message.qos == 0:
                await self.inflight.publish_unconfirmed(message)
                return None
            code = await self.inflight.publish(message)
        except Unsendable as unsendable:
            return str(unsendable)
        return f"the broker refused it: {reason(code)}" if code >= REFUSED else None

    def _send(self, message: Outgoing) -> int:
        client = self._linked()
        assert client is not None, "there is room only while there is a link"
        return client.publish(message)
