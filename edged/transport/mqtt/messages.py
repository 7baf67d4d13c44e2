"""What comes in and what goes out, free of paho: the same for both protocol versions."""

from __future__ import annotations

import hashlib
import math

from msgspec import Struct

from edged import wire
from edged.errors import EdgedError
from edged.host import clock
from edged.transport.mqtt import topics
from edged.types import Address, Delivery, Packet, Status

MIN_EXPIRY_S = 60  # CONTRACT section 4: a reply to a request that is just over can still be fetched after a Wi-Fi gap
MAX_EXPIRY_S = 2**32 - 1  # four bytes in the packet
FIXED_BYTES = 64  # headers, lengths and property names of a PUBLISH, rounded up; what they add is at most about 40


class Incoming(Struct, frozen=True, kw_only=True):
    """A PUBLISH from the broker. `mid` is 0 with QoS 0; expiry_s: the Message Expiry that was left, in seconds.

    from_v5: it carries a property that only an MQTT 5 publisher can set, so that one could have set others as well.
    """

    topic: str
    payload: bytes
    qos: int
    mid: int
    duplicate: bool
    retained: bool
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str | None = None
    expiry_s: int | None = None
    from_v5: bool = False

    def packet(self) -> Packet | None:
        """Identity of the packet; None with QoS 0, which is never delivered again.

        The expiry is no part of it: it shrinks while the broker waits.
        """
        if self.qos == 0:
            return None
        digest = hashlib.sha256()
        for part in (self.topic, self.response_topic, self.correlation, self.content_type, self.payload):
            raw = part.encode(errors="surrogatepass") if isinstance(part, str) else part
            # Lengths in between: "ab","c" and "a","bc" are different packets; so are "" and none.
            digest.update(b"-" if raw is None else b"%d:" % len(raw))
            digest.update(raw or b"")
        return Packet(self.mid, digest.digest(), self.duplicate)


class Outgoing(Struct, frozen=True, kw_only=True):
    """A PUBLISH to the broker. expires_boot: clock.boot() until which it is of use; None: it does not expire."""

    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    correlation: bytes | None = None
    content_type: str | None = None
    user: tuple[tuple[str, str], ...] = ()
    expires_boot: float | None = None

    def expiry_s(self) -> int | None:
        """Message Expiry as of now, in whole seconds."""
        if self.expires_boot is None:
            return None
        return min(MAX_EXPIRY_S, max(MIN_EXPIRY_S, math.ceil(self.expires_boot - clock.boot())))

    def size(self) -> int:
        """Bytes of the packet, not less than it will have."""
        user = sum(len(name.encode()) + len(value.encode()) + 5 for name, value in self.user)
        marks = len(self.correlation or b"") + len(self.content_type or "") + user
        return FIXED_BYTES + len(self.topic.encode()) + marks + len(self.payload)


class Unsendable(Exception):
    """The broker cannot take this publish, now or later; the message says why."""


def reply(delivery: Delivery) -> Outgoing:
    """The publish that carries a reply: the same bytes whenever it is made."""
    address = delivery.address
    return Outgoing(
        topic=address.topic,
        payload=wire.encode_reply(delivery.body, address.format),
        qos=1,
        correlation=address.correlation,
        content_type=wire.content_type(address.format),
        user=_marks(delivery.status, delivery.request_id, delivery.rid),
        expires_boot=delivery.expires_boot,
    )


def refusal(error: EdgedError, address: Address, *, request_id: str | None) -> Outgoing:
    """The publish that tells a client that its request was not taken in."""
    return Outgoing(
        topic=address.topic,
        payload=wire.encode_reply(wire.refusal(error, id=request_id), address.format),
        qos=1,
        correlation=address.correlation,
        content_type=wire.content_type(address.format),
        user=_marks(Status.REFUSED, request_id, None),
        expires_boot=clock.boot(),
    )


def _marks(status: Status, request_id: str | None, rid: str | None) -> tuple[tuple[str, str], ...]:
    """User properties of a reply. An id that MQTT cannot carry as text is left out: the body has it."""
    marks = [("status", str(status))]
    if request_id is not None and topics.is_text(request_id):
        marks.append(("id", request_id))
    if rid is not None:
        marks.append(("rid", rid))
    return tuple(marks)
