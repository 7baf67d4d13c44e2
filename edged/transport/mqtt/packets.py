"""paho's objects and ours: CONNACK, DISCONNECT, PUBLISH and their properties."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edged.transport.mqtt.messages import Incoming, Outgoing

SESSION_EXPIRY_S = 7 * 86_400  # a board that is off for a long weekend finds its requests; beyond, they are stale
RECEIVE_MAXIMUM = 32  # requests that may wait for their commit: enough for a full group commit, little memory
REFUSED = 0x80  # reason codes from here on are failures
MAX_PACKET_BYTES = 1024 * 1024  # CONTRACT section 4; four times the largest request, the rest is properties
DEFAULT_SEND_MAXIMUM = 20  # where the broker names no Receive Maximum; mosquitto and paho use the same number
MAX_SEND_MAXIMUM = 64  # beyond it more publishes at a time are not faster, and all are sent again after a reconnect


class Hello(Struct, frozen=True, kw_only=True):
    """What the broker said when it let us in. maximum_packet in bytes, None: it names no limit."""

    session_present: bool
    send_maximum: int = DEFAULT_SEND_MAXIMUM
    maximum_qos: int = 2
    maximum_packet: int | None = None
    retain: bool = True


class Cause(StrEnum):
    """Why a connection ended, or was never made."""

    UNREACHABLE = "unreachable"  # no TCP or TLS connection
    VERSION = "version"  # the broker does not speak this protocol version
    SILENT = "silent"  # closed, or nonsense, instead of CONNACK
    REFUSED = "refused"  # CONNACK with an error
    TAKEN_OVER = "taken_over"  # another client with our client id
    DROPPED = "dropped"  # the peer closed it without a word
    LOST = "lost"  # it broke, or the broker said why it ended it
    CLOSED = "closed"  # by us


class End(Struct, frozen=True):
    """The end of a connection; `reason` is for people."""

    cause: Cause
    reason: str


def reason(code: int) -> str:
    """What the reason code of a PUBACK or PUBCOMP means, for people."""
    try:
        return str(ReasonCode(PacketTypes.PUBACK, identifier=code).getName())
    except KeyError:  # how paho tells that the number means nothing
        return f"reason code 0x{code:02X}"


def hello(flags: paho.ConnectFlags, properties: Properties | None) -> Hello:
    """CONNACK; `properties` is None with 3.1.1."""

    def said(name: str, otherwise: Any) -> Any:
        return getattr(properties, name, otherwise)

    return Hello(
        session_present=flags.session_present,
        send_maximum=min(MAX_SEND_MAXIMUM, said("ReceiveMaximum", DEFAULT_SEND_MAXIMUM)),
        maximum_qos=said("MaximumQoS", 2),
        maximum_packet=said("MaximumPacketSize", None),
        retain=bool(said("RetainAvailable", 1)),
    )


def incoming(message: paho.MQTTMessage) -> Incoming:
    """A PUBLISH that came in. A topic that is not UTF-8 becomes an empty one, which nobody asked for: an exception here
    would end the connection, and the broker would deliver the same packet on the next."""
    try:
        topic = message.topic
    except UnicodeDecodeError:
        topic = ""
    properties = message.properties
    marks = {
        field: getattr(properties, name, None)
        for field, name in (
            ("response_topic", "ResponseTopic"),
            ("correlation", "CorrelationData"),
            ("content_type", "ContentType"),
            ("expiry_s", "MessageExpiryInterval"),
        )
    }
    others = (getattr(properties, name, None) for name in ("UserProperty", "PayloadFormatIndicator"))
    return Incoming(
        topic=topic,
        payload=bytes(message.payload),
        qos=message.qos,
        mid=message.mid,
        duplicate=bool(message.dup),
        retained=bool(message.retain),
        from_v5=any(mark is not None for mark in (*marks.values(), *others)),
        **marks,
    )


def publish_properties(message: Outgoing) -> Properties:
    """The MQTT 5 properties of a publish, as of now."""
    properties = _new(PacketTypes.PUBLISH)
    values: dict[str, object] = {
        "CorrelationData": message.correlation,
        "ContentType": message.content_type,
        "MessageExpiryInterval": message.expiry_s(),
        "UserProperty": list(message.user) or None,
    }
    for name, value in values.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


def connect_properties() -> Properties:
    """What we promise and ask for with CONNECT. No Topic Alias Maximum: the broker may use none."""
    properties = _new(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = SESSION_EXPIRY_S
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    return properties


def _new(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho left this constructor untyped
