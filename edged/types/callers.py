"""Who asks, over what, and who is told. Values only, no behaviour."""

from __future__ import annotations

from msgspec import Struct, field

from edged.types.json import JSON
from edged.types.requests import Format, Priority, Request, Status


class Rate(Struct, frozen=True):
    """How much a client may ask: requests a minute in the long run, `burst` at once."""

    per_minute: float
    burst: int


class Caller(Struct, frozen=True):
    """Who asks. `client` owns ids and conversations; what it may use was decided by `access`. admitted: it may use the
    daemon at all, also where no agent is configured; kept_out: why not, where it is not for want of a role. role: by
    which that was decided; empty where no roles are configured.

    tools, models: by hand and by an agent for it, plain ones without an agent; None: all there are.
    manage: models and other clients' requests are its business, too.
    highest: the priority its requests may have. rate: how much it may ask; None: no bound. counted_as: who shares that.
    former: the name under which its requests were stored before; empty: this one.
    """

    client: str
    transport: str
    agents: frozenset[str]
    admitted: bool = True
    role: str = ""
    tools: frozenset[str] | None = None
    models: frozenset[str] | None = None
    manage: bool = True
    highest: Priority = Priority.INTERACTIVE
    rate: Rate | None = None
    counted_as: str = ""
    kept_out: str = ""
    former: str = ""


class AuditEntry(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One entry of the audit log: who did what, and what came of it. When is added by the log.

    what: a dotted word, the object first: `request.accepted`, `request.ended`, `request.refused`, `tool.called`,
        `upstream.asked`, `model.loaded`, ...
    who: the client; "edged" where the daemon did it by itself.
    outcome: "ok", or an error's code.
    about: more of it, by name; no secrets, and of private values only that they were there.
    """

    what: str
    who: str
    role: str = ""
    outcome: str = "ok"
    rid: str = ""
    about: dict[str, JSON] = field(default_factory=dict)


class Packet(Struct, frozen=True):
    """Identity of an MQTT packet in the current session, to know a redelivery of one that was committed."""

    mid: int
    digest: bytes
    duplicate: bool


class Address(Struct, frozen=True):
    """Where a reply is published and how it is written."""

    topic: str
    correlation: bytes | None = None
    format: Format = Format.JSON


class Ask(Struct, frozen=True, kw_only=True):
    """A request as a transport hands it to the pipeline.

    key: identity beside the id (MQTT's Correlation Data); address: where the reply is to be published, None when the
    caller waits for it; expiry_s: bound of the deadline that the transport knows (Message Expiry), in seconds.
    """

    request: Request
    caller: Caller
    key: str | None = None
    packet: Packet | None = None
    address: Address | None = None
    expiry_s: float | None = None


class Delivery(Struct, frozen=True, kw_only=True):
    """A reply on its way out. expires_boot: clock.boot() until which the reply is of use. settled_wall: when its
    outcome was stored, which tells it from the reply that is made when the request is tried again. agent: whose it is.
    """

    id: int
    rid: str
    transport: str = "mqtt"  # the one that carries replies to those who do not wait
    request_id: str | None
    status: Status
    address: Address
    body: bytes
    expires_boot: float
    settled_wall: float = 0.0
    agent: str = ""


# Events of every request: heard inside the daemon, and not sent to clients, who have asked for changes and alarms.
INSIDE = frozenset({"request_ended"})


class Event(Struct, frozen=True):
    """Something worth telling: `name` is stable, `data` explains it."""

    name: str
    at: float
    data: dict[str, JSON] = field(default_factory=dict)
