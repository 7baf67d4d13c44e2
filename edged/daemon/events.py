"""The bus: parts publish named events, subscribers hear them. Neither knows the other, and a subscriber that raises,
hangs or is slow harms nobody else."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Callable

from edged.host import clock
from edged.interfaces import Heard
from edged.types import JSON, Event, Reply

log = logging.getLogger("edged.daemon.events")

QUEUED = 256  # events that wait for a slow subscriber; the oldest goes first, for the newest say how things are
SLOW_S = 0.1  # for a plain function: every request waits while it runs, and it should take microseconds
HANDLED_S = 60.0  # a coroutine that takes longer is cancelled, or its queue would stand still for ever
DRAIN_S = 1.0  # at a stop: for what waits in the queues


class EventBus:
    """The bus. Everything here runs on the event loop."""

    def __init__(self) -> None:
        self._subscriptions: list[_Subscription] = []

    def publish(self, name: str, data: dict[str, JSON]) -> None:
        """Let every subscriber hear of something. Never raises and waits for nobody."""
        event = Event(name, clock.wall(), data)
        for subscription in list(self._subscriptions):
            subscription.hear(event)

    def subscribe(self, name: str, heard: Heard) -> Callable[[], None]:
        """From now on `heard` gets every event, in order; the returned function ends it.

        Args:
            name: of the subscriber, for the log.
            heard: a plain function is called at once, and must return at once. A coroutine function gets a queue of
                its own: it may take its time, and where QUEUED events wait for it already it loses the oldest.
        """
        made = _Queue if inspect.iscoroutinefunction(heard) else _Subscription
        subscription = made(name, heard)
        self._subscriptions.append(subscription)

        def end() -> None:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
                subscription.end()

        return end

    def request_ended(self, agent: str, reply: Reply) -> None:
        """A request has its outcome: event `request_ended`."""
        route, timing = reply.route, reply.timing
        self.publish(
            "request_ended",
            {
                "rid": reply.rid,
                "agent": agent,
                "status": str(reply.status),
                "code": reply.error.code if reply.error else None,
                "outcome": reply.outcome,
                "where": route.where if route else "local",
                "model": route.model if route else None,
                "total_ms": timing.total_ms,
                "first_token_ms": timing.first_token_ms,
            },
        )

    async def stop(self) -> None:
        """Let slow subscribers hear what waits for them, for DRAIN_S at most, and end them all."""
        draining = [each.task for each in self._subscriptions if isinstance(each, _Queue) and each.task]
        if draining:
            await asyncio.wait(draining, timeout=DRAIN_S)
        for subscription in self._subscriptions:
            subscription.end()
        self._subscriptions = []


class Signal:
    """Something changed, which has no name and no data; those who care look for themselves."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call this as well from now on."""
        self._subscribers.append(changed)

    def __call__(self) -> None:
        """It has changed."""
        for changed in self._subscribers:
            changed()


class _Subscription:
    """A plain function."""

    def __init__(self, name: str, heard: Heard) -> None:
        self.name = name
        self._heard = heard

    def hear(self, event: Event) -> None:
        began = time.monotonic()
        try:
            self._heard(event)
        except Exception as error:
            _failed(self.name, event, error)
        if (took := time.monotonic() - began) > SLOW_S:
            about = {"event": "subscriber_slow", "subscriber": self.name}
            log.warning("%s took %.1f s to hear of %s; everything waited", self.name, took, event.name, extra=about)

    def end(self) -> None:
        """Nothing is left to be done."""


class _Queue(_Subscription):
    """A coroutine function. There is a task only while there are events."""

    def __init__(self, name: str, heard: Heard) -> None:
        super().__init__(name, heard)
        self.task: asyncio.Task[None] | None = None
        self._waiting: deque[Event] = deque(maxlen=QUEUED)
        self._lost = 0

    def hear(self, event: Event) -> None:
        self._lost += len(self._waiting) == QUEUED
        self._waiting.append(event)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._drain(), name=f"edged.events.{self.name}")

    def end(self) -> None:
        """Hear nothing more, not even what waits."""
        self._waiting.clear()
        if self.task is not None:
            self.task.cancel()

    async def _drain(self) -> None:
        while self._waiting:
            event = self._waiting.popleft()
            try:
                async with asyncio.timeout(HANDLED_S):
                    await self._heard(event)  # type: ignore[misc]  # a coroutine function, see EventBus.subscribe
            except Exception as error:
                _failed(self.name, event, error)
        if self._lost:
            lost, self._lost = self._lost, 0
            about = {"event": "events_lost", "subscriber": self.name}
            log.warning("%s is too slow: it has not heard of %d events", self.name, lost, extra=about)


def _failed(name: str, event: Event, error: Exception) -> None:
    about = {"event": "subscriber_failed", "subscriber": name}
    log.error("%s could not hear of %s", name, event.name, exc_info=error, extra=about)
