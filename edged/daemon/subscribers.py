"""Who hears of events. A new subscriber is a factory of its own and a line in SUBSCRIBERS."""

from __future__ import annotations

from collections.abc import Callable

from edged.daemon.parts import Parts
from edged.interfaces import Heard
from edged.transport.mqtt import MqttTransport
from edged.types import INSIDE, AuditEntry, Event

AUDITED = {  # what changes models or the daemon, or shows that somebody had to do without
    "model_load_failed",
    "model_loaded",
    "model_rolled_back",
    "model_switched",
    "model_unloaded",
    "model_update_failed",
    "model_updated",
    "reload_failed",
    "request_quarantined",
    "store_damaged",
}


def metrics(parts: Parts) -> Heard:
    """Counts loads, unloads and requests that ended."""
    return parts.meter.heard


def audit(parts: Parts) -> Heard:
    """Writes AUDITED into the audit log."""

    def heard(event: Event) -> None:
        if event.name in AUDITED:
            outcome = str(event.data.get("code") or ("failed" if event.name.endswith("_failed") else "ok"))
            what = event.name.replace("_", ".", 1)
            parts.audit.note(AuditEntry(what=what, who="edged", outcome=outcome, about=event.data))

    return heard


def mqtt(parts: Parts) -> Heard | None:
    """Publishes on base/event."""
    link = next((each for each in parts.transports if isinstance(each, MqttTransport)), None)
    if link is None:
        return None

    def heard(event: Event) -> None:
        if event.name not in INSIDE:
            link.event(event)

    return heard


def state(parts: Parts) -> Heard:
    """Has base/state published anew."""
    return lambda event: parts.changed.set()


def faults(parts: Parts) -> Heard:
    """Looks at a model's file anew when it is another one."""
    return parts.faults.heard


def digests(parts: Parts) -> Heard:
    """Looks at models' files that are new."""
    return parts.hasher.heard


def preparing(parts: Parts) -> Heard:
    """Merges adapters of models that came in."""
    return parts.preparer.heard


# Each makes a subscriber of the parts, or none where the configuration has no use for it; its name is for the log.
# `events.subscribe` of the Unix socket subscribes by itself, a client at a time.
SUBSCRIBERS: list[Callable[[Parts], Heard | None]] = [metrics, audit, mqtt, state, faults, digests, preparing]
