"""paho-mqtt on the event loop's own readers and writers: one client object, one connection at a time.

paho has no thread here. Only making the connection (DNS, TCP, TLS: seconds each) happens in a thread; then the socket
joins the loop. Everything else runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged.transport.mqtt import packets, tls
from edged.transport.mqtt.connection import BufferedClient, Pump, in_thread
from edged.transport.mqtt.messages import Incoming, Outgoing, Unsendable
from edged.transport.mqtt.pacing import V5
from edged.transport.mqtt.packets import Cause, End, Hello
from edged.transport.mqtt.settings import Settings, endpoint

log = logging.getLogger(__name__)

KEEPALIVE_S = 30  # a half-open link (Wi-Fi gone, router rebooted) is noticed after one to two of these
DIAL_TIMEOUT_S = 10.0  # for TCP and for TLS each; a board's first handshake after boot takes about two
CONNACK_TIMEOUT_S = 10.0  # a peer that takes the connection and says nothing is no broker, or a dead one
UNSUPPORTED_VERSION = 0x84
TAKEN_OVER = 0x8E
NOT_FOUND = 0x92  # PUBCOMP: the exchange had ended before, as it does when the link breaks at the wrong moment


class Will(Struct, frozen=True):
    """What the broker publishes, retained, when we are gone without a word."""

    topic: str
    payload: bytes


class Client:
    """One protocol version's client object. It carries paho's memory of unconfirmed publishes from one connection to
    the next; another version needs another object.

    Args:
        settings: the broker.
        version: V5 or V311.
        will: published by the broker.
        on_message: a publish came in, in the order of the wire.
        on_confirmed: packet id and reason code of a QoS 1 or 2 publish.
        on_session: called with Hello before anything is sent again; returns False when paho must forget what it has
            in flight.
        on_subscribed: the broker agreed to all subscriptions.
        on_end: the connection is over.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        version: int,
        will: Will,
        on_message: Callable[[Incoming], None],
        on_confirmed: Callable[[int, int], None],
        on_session: Callable[[Hello], bool],
        on_subscribed: Callable[[], None],
        on_end: Callable[[End], None],
    ) -> None:
        self.version = version
        self._settings = settings
        self._endpoint = endpoint(settings.url)
        self._on_message = on_message
        self._on_confirmed = on_confirmed
        self._on_session = on_session
        self._on_subscribed = on_subscribed
        self._on_end = on_end
        self._context: ssl.SSLContext | None = None
        self._errors = _LastError()
        self._hello: Hello | None = None
        self._answer: asyncio.Future[Hello | End] | None = None
        self._abort_reason: str | None = None
        self._bare: set[int] = set()
        self._subscriptions: dict[int, list[str]] = {}
        self.refused_topics: dict[str, str] = {}
        self._paho = self._make(will)
        self._pump = Pump(self._paho, self.abort)
        self.pause_reading, self.resume_reading = self._pump.pause, self._pump.resume

    @property
    def congested(self) -> bool:
        """Whether the broker takes less than it is given."""
        return self._pump.congested

    @property
    def _tls_hint(self) -> str:
        """What is likely wrong where a peer does not speak MQTT."""
        return "" if self._endpoint.tls else tls.HINT_AT_PLAIN

    # Life of a connection

    async def connect(self) -> Hello | End:
        """Make a connection; returns what the broker said, or why there is none."""
        loop = asyncio.get_running_loop()
        self._hello = self._abort_reason = None
        self._answer = loop.create_future()
        self._errors.last = None
        try:
            await in_thread(self._dial, self._hang_up)
        except Exception as error:  # whatever name lookup, TCP, TLS and certificate files come up with
            hint = tls.hint_at_dial(error) if self._endpoint.tls else ""
            return End(Cause.UNREACHABLE, f"cannot connect to {self._endpoint}: {tls.explain(error)}{hint}")
        self._bare.clear()
        self._subscriptions.clear()
        self._pump.attach()
        try:
            async with asyncio.timeout(CONNACK_TIMEOUT_S):
                return await self._answer
        except TimeoutError:
            self.abort(f"no answer within {CONNACK_TIMEOUT_S:.0f} s")
            return End(Cause.SILENT, f"{self._endpoint} took the connection and did not answer{self._tls_hint}")
        except asyncio.CancelledError:
            self.abort("stopped while connecting")
            raise

    def disconnect(self) -> None:
        """Say goodbye: the broker drops the will, and on_end is called when that is written."""
        self._abort_reason = "closed by us"
        self._paho.disconnect()

    def abort(self, reason: str) -> None:
        """End the connection at once, without a word to the broker: it publishes the will."""
        sock = self._paho.socket()
        if sock is None:
            return
        self._abort_reason = reason
        self._pump.detach()
        sock.close()
        self._paho.loop_read()  # finds the socket closed and takes paho's usual way through on_disconnect

    # What is sent

    def publish(self, message: Outgoing) -> int:
        """Hand a publish to paho; returns its packet id. Only while connected.

        Raises:
            Unsendable: it is larger than the broker takes.
        """
        hello = self._hello or Hello(session_present=False)
        if hello.maximum_packet is not None and message.size() > hello.maximum_packet:
            raise Unsendable(f"{message.size()} bytes, and the broker takes {hello.maximum_packet} at most")
        qos = min(message.qos, hello.maximum_qos)
        properties = packets.publish_properties(message) if self.version == V5 else None
        while True:
            info = self._paho.publish(message.topic, message.payload, qos, message.retain and hello.retain, properties)
            if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # else the packet id is still in use, 65535 publishes on
                break
        if qos == 0:
            # on_publish comes for these too, and their ids may be those of a publish that waits for its PUBACK.
            self._bare.add(info.mid)
            if message.qos:
                asyncio.get_running_loop().call_soon(self._on_confirmed, info.mid, 0)
        return info.mid

    def subscribe(self, filters: list[str]) -> None:
        """Subscribe with QoS 1. `refused_topics` tells what the broker refused."""
        # Retained messages are not wanted: not at the subscription, and when one is published now it shall show.
        options = SubscribeOptions(qos=1, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        if self.version == V5:
            _, mid = self._paho.subscribe([(name, options) for name in filters])
        else:
            _, mid = self._paho.subscribe([(name, 1) for name in filters])
        if mid is not None:
            self._subscriptions[mid] = filters

    def ack(self, mid: int) -> None:
        """Send the PUBACK of a packet of this connection."""
        self._paho.ack(mid, 1)

    # paho's side

    def _make(self, will: Will) -> paho.Client:
        five = self.version == V5
        client = BufferedClient(
            CallbackAPIVersion.VERSION2,
            client_id=f"edged-{self._settings.node_id}",
            clean_session=None if five else False,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,  # else paho tries 3.1 by itself, blocking the loop
            manual_ack=True,
        )
        client.enable_logger(self._errors.logger)
        client.connect_timeout = DIAL_TIMEOUT_S
        client.max_inflight_messages_set(0)  # unlimited: Inflight bounds them, and paho's own bound forgets resends
        client.will_set(will.topic, will.payload, qos=1, retain=True)
        if self._settings.username is not None:
            client.username_pw_set(self._settings.username, self._settings.password)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_publish = self._published
        client.on_subscribe = self._subscribed
        client.on_socket_close = lambda _client, _data, _sock: self._pump.detach()
        client.on_socket_register_write = lambda _client, _data, _sock: self._pump.flush_soon()
        client.on_socket_unregister_write = lambda _client, _data, _sock: None  # _flush looks after the writer
        where = self._endpoint
        if five:
            # The default of paho, clean start at the first connection, would throw the waiting requests away.
            client.connect_async(
                where.host, where.port, KEEPALIVE_S, clean_start=False, properties=packets.connect_properties()
            )
        else:
            client.connect_async(where.host, where.port, KEEPALIVE_S)
        return client

    def _dial(self) -> None:
        """DNS, TCP, TLS. In a thread; the loop keeps its hands off the client meanwhile."""
        if self._endpoint.tls:
            if self._context is None:
                self._context = tls.make_context(self._settings)
                self._paho.tls_set_context(self._context)
            tls.load_certificate(self._context, self._settings)
        self._paho.reconnect()

    def _hang_up(self) -> None:
        """The connection was made and nobody wants it any more."""
        sock = self._paho.socket()
        if sock is not None:
            sock.close()

    # paho's callbacks, all on the loop

    def _connected(
        self, _client: paho.Client, _data: Any, flags: paho.ConnectFlags, code: ReasonCode, said: Properties | None
    ) -> None:
        if code.is_failure:
            cause = Cause.VERSION if code.value == UNSUPPORTED_VERSION else Cause.REFUSED
            self._answered(End(cause, f"{self._endpoint} refused the connection: {code.getName()}"))
            return
        hello = packets.hello(flags, said)
        self._hello = hello
        if not self._on_session(hello):
            self._paho.drop_out_messages()
        self._answered(hello)

    def _disconnected(
        self, _client: paho.Client, _data: Any, flags: paho.DisconnectFlags, code: ReasonCode, _properties: Any
    ) -> None:
        end = self._end(code, by_broker=flags.is_disconnect_packet_from_server)
        if not self._answered(end) and self._hello is not None:
            self._on_end(end)

    def _end(self, code: ReasonCode, *, by_broker: bool) -> End:
        if self._abort_reason is not None:
            return End(Cause.CLOSED if self._hello is not None else Cause.SILENT, self._abort_reason)
        if by_broker and code.value == TAKEN_OVER:
            return End(Cause.TAKEN_OVER, code.getName())
        error = self._errors.last
        if self._hello is None:
            why = tls.explain(error) if error is not None else code.getName()
            line = f"{self._endpoint} closed the connection before it answered: {why}"
            if isinstance(error, ssl.SSLError):  # says nothing about the protocol version
                return End(Cause.UNREACHABLE, line + tls.hint_at_connect(self._settings))
            return End(Cause.SILENT, line + self._tls_hint)
        if by_broker:
            return End(Cause.LOST, f"{self._endpoint} ended the connection: {code.getName()}")
        if code.getName() == "Keep alive timeout":
            return End(Cause.LOST, f"no sign of life from {self._endpoint} for {KEEPALIVE_S} s")
        if error is None or isinstance(error, ConnectionResetError):
            return End(Cause.DROPPED, f"{self._endpoint} closed the connection")
        return End(Cause.LOST, f"the connection to {self._endpoint} was lost: {tls.explain(error)}")

    def _answered(self, answer: Hello | End) -> bool:
        """Whether `connect` still waited for this."""
        if self._answer is None or self._answer.done():
            return False
        self._answer.set_result(answer)
        return True

    def _received(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._on_message(packets.incoming(message))

    def _published(self, _client: paho.Client, _data: Any, mid: int, code: ReasonCode, _properties: Any) -> None:
        if mid in self._bare:
            self._bare.discard(mid)
            return
        self._on_confirmed(mid, 0 if code.value == NOT_FOUND else code.value)

    def _subscribed(
        self, _client: paho.Client, _data: Any, mid: int, codes: list[ReasonCode], _properties: Any
    ) -> None:
        for name, code in zip(self._subscriptions.pop(mid, ()), codes, strict=False):
            if code.is_failure:
                self.refused_topics[name] = code.getName()
                log.error(
                    "the broker refused the subscription to %s: %s; check its access list",
                    name,
                    code.getName(),
                    extra={"event": "mqtt_subscription_refused"},
                )
            else:
                self.refused_topics.pop(name, None)
        if not self._subscriptions and not self.refused_topics:
            self._on_subscribed()


class _LastError(logging.Handler):
    """Keeps the exception that ended a connection, which paho gives to its log only."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last: Exception | None = None
        # Stands alone and is not in the tree of loggers: nothing of it reaches the daemon's log, and it ends with us.
        self.logger = logging.Logger("paho", logging.ERROR)  # noqa: LOG001
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, Exception):
                self.last = argument
