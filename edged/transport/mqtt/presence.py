"""What the broker keeps and tells of this node: online or not, its state, its events."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import msgspec

from edged.transport.mqtt.messages import Outgoing
from edged.transport.mqtt.topics import Topics
from edged.types import JSON, Event

log = logging.getLogger(__name__)

STATE_PERIOD_S = 30.0  # CONTRACT section 4
# Events that must be heard though they happen before there is a link: the last ALARMS_KEPT of them wait for it.
ALARMS, ALARMS_KEPT = frozenset({"request_quarantined", "store_damaged"}), 16
STATE_DEBOUNCE_S = 1.0  # a load, an unload and ten requests within a second are one document


class Presence:
    """Publishes the node's own topics. State and events are QoS 0: the next one is better than an old one.

    Args:
        state: makes the state document.
        post: publishes without waiting; drops what cannot be sent now.
    """

    def __init__(
        self, topics: Topics, *, state: Callable[[], dict[str, JSON]], post: Callable[[Outgoing], None]
    ) -> None:
        self._topics = topics
        self._state = state
        self._post = post
        self._timer: asyncio.TimerHandle | None = None
        self._alarms: deque[Outgoing] = deque(maxlen=ALARMS_KEPT)

    def online(self) -> Outgoing:
        """The birth."""
        return self._status("online")

    def offline(self) -> Outgoing:
        """The will, and the farewell of a clean stop."""
        return self._status("offline")

    def begin(self) -> None:
        """The link is up: publish the state now, and every STATE_PERIOD_S, and the alarms that waited for it."""
        self._publish_state()
        while self._alarms:
            self._post(self._alarms.popleft())

    def changed(self) -> None:
        """The state changed: publish it soon. While the link is down the next `begin` does."""
        if self._timer is None:
            return
        soon = asyncio.get_running_loop().time() + STATE_DEBOUNCE_S
        if soon < self._timer.when():
            self._schedule(STATE_DEBOUNCE_S)

    def end(self) -> None:
        """The link is down."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def event(self, event: Event) -> None:
        """Publish an event. While the link is down alarms wait for it, others are dropped."""
        message = Outgoing(topic=self._topics.event, payload=_json(event), qos=0, content_type="application/json")
        if self._timer is None and event.name in ALARMS:
            self._alarms.append(message)
        else:
            self._post(message)

    def _status(self, state: str) -> Outgoing:
        # QoS 1 and retained both ways: a birth and a will that differ there leave a node stuck as offline.
        return Outgoing(topic=self._topics.status, payload=_json({"state": state}), qos=1, retain=True)

    def _publish_state(self) -> None:
        self._schedule(STATE_PERIOD_S)
        try:
            payload = _json(self._state())
        except Exception:  # from a timer it would end in the loop's handler, and tell nobody which part failed
            log.exception("the state document could not be made", extra={"event": "bug"})
            return
        self._post(
            Outgoing(topic=self._topics.state, payload=payload, qos=0, retain=True, content_type="application/json")
        )

    def _schedule(self, delay_s: float) -> None:
        self.end()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._publish_state)


def _json(value: object) -> bytes:
    """JSON; what has no JSON form, such as a path in an event, appears as its text."""
    return msgspec.json.encode(value, enc_hook=str)
