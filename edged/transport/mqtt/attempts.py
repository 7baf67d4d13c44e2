"""What becomes of the attempts to reach the broker: with which version the next one is made, when, and what the log and
`edged status` tell of it."""

from __future__ import annotations

import logging
from random import Random

from edged.host import clock
from edged.transport.mqtt.pacing import V5, Backoff, Evictions, Outage, Versions
from edged.transport.mqtt.packets import Cause, End
from edged.transport.mqtt.settings import Settings, endpoint

log = logging.getLogger(__name__)


class Attempts:
    """The history of one transport's connections, as far as it decides about the next.

    since: seconds since the epoch; when the link came or went. error: why there is none, or why the last attempt
    failed; None: no attempt has failed yet, or there is a link. cause: of the error, likewise. taken_over: seconds
    since the epoch; when another client was last found to use our client id; None: never.
    """

    def __init__(self, settings: Settings, backoff: Backoff) -> None:
        self.since = clock.wall()
        self.error: str | None = None
        self.cause: Cause | None = None
        self.taken_over: float | None = None
        self._settings = settings
        self._backoff = backoff
        self._versions = Versions(settings.version)
        self._outage = Outage()
        self._evictions = Evictions(backoff.stable_s)
        self._chance = Random()  # noqa: S311  # jitter, no secret
        self._failures = 0
        self._first = True

    @property
    def version(self) -> int:
        """Of the protocol, for the next attempt."""
        return self._versions.current

    def succeeded(self) -> None:
        """There is a link."""
        self._versions.connected()
        self.since, self.error, self.cause = clock.wall(), None, None
        line = self._outage.ended(now=clock.boot())
        where = f"{endpoint(self._settings.url)} with MQTT {'5' if self.version == V5 else '3.1.1'}"
        about = {"event": "mqtt_connected"}
        if line is not None:
            log.info("connected to %s, %s", where, line, extra=about)
        elif self._first:
            log.info("connected to %s", where, extra=about)
        self._first = False

    def lost(self) -> None:
        """The link is gone."""
        self.since = clock.wall()

    def failed(self, end: End) -> None:
        """There was no link: what that says about the version."""
        if end.cause is Cause.VERSION:
            self._versions.refused()
        elif end.cause is Cause.SILENT:
            self._versions.closed()
        else:
            self._versions.failed()

    def pause_s(self, end: End, *, lasted_s: float) -> float:
        """Seconds to wait before the next attempt, after one that led to a link of `lasted_s` seconds (0: to none)."""
        self.error, self.cause = end.reason, end.cause
        self._failures = 1 if lasted_s >= self._backoff.stable_s else self._failures + 1
        suspected = self._evictions.ended(by_peer=end.cause is Cause.DROPPED, lasted_s=lasted_s)
        line = self._outage.failed(end.reason, now=clock.boot())
        if suspected or end.cause is Cause.TAKEN_OVER:
            pause_s = self._backoff.taken_over(self._chance)
            self.taken_over, self.cause = clock.wall(), Cause.TAKEN_OVER
            self.error = (
                f"the broker gave the connection of client edged-{self._settings.node_id} to another one, as it seems: "
                "do two daemons have the same node.id?"
            )
            log.error("%s Trying again in %.0f s", self.error, pause_s, extra={"event": "mqtt_taken_over"})
            return pause_s
        if line is not None:
            log.warning("no MQTT link: %s", line, extra={"event": "mqtt_no_link"})
        return self._backoff.delay(self._failures, self._chance)
