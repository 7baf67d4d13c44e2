"""Requests and replies over MQTT (CONTRACT section 4). One task owns the connection; all others post and wait."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from edged.errors import EdgedError
from edged.host import clock
from edged.transport.base import Backend, ReplyTransport
from edged.transport.mqtt import topics
from edged.transport.mqtt.attempts import Attempts
from edged.transport.mqtt.client import Client, Will
from edged.transport.mqtt.intake import Counters, Handlers, Intake
from edged.transport.mqtt.messages import Incoming
from edged.transport.mqtt.pacing import V5, Backoff
from edged.transport.mqtt.packets import End, Hello
from edged.transport.mqtt.presence import Presence
from edged.transport.mqtt.sender import Sender
from edged.transport.mqtt.settings import Settings, endpoint
from edged.types import JSON, Ask, Caller, Delivery, Event

if TYPE_CHECKING:
    from edged.transport.mqtt.homeassistant import HomeAssistant, Send

log = logging.getLogger(__name__)

PAUSE_READING_AT = 64  # messages whose work has not ended; twice RECEIVE_MAXIMUM, so only floods of QoS 0 get there
RESUME_READING_AT = 32
FAREWELL_S = 2.0  # of the grace, for "offline" and DISCONNECT; a broker on the local network needs milliseconds


class MqttTransport(ReplyTransport):
    """The device's link to its broker: takes requests in, carries replies out, publishes for tools.

    Implements `interfaces.Publisher`, too.

    Args:
        settings: the broker and who we are there.
        backoff: pace of reconnecting.
        home: Home Assistant, where it is told of this node.

    Raises:
        ValueError: the url is not one of a broker.
    """

    name = "mqtt"

    def __init__(
        self, settings: Settings, *, backoff: Backoff | None = None, home: Callable[[Send], HomeAssistant] | None = None
    ) -> None:
        endpoint(settings.url)
        self._settings = settings
        self._backend: Backend
        self._topics = topics.Topics(settings.node_id)
        self._counters = Counters()
        self._sender = Sender(self._linked, self._counters)
        self._inflight = self._sender.inflight
        self._home = home(self._sender.confirmed) if home is not None else None
        handlers = (self._accept, self._cancel, self._sender.confirmed, self._identify, self._refused)
        self._handlers = Handlers(*handlers, *([self._home.take] if self._home is not None else []))
        self._presence = Presence(self._topics, state=self._state, post=self._sender.post)
        self._attempts = Attempts(settings, backoff or Backoff())
        self._subscribed = asyncio.Event()
        self._client = self._make_client(settings.version)
        self._inbox: asyncio.Queue[Incoming | End] = asyncio.Queue()
        self._unfinished = 0
        self._working: set[asyncio.Task[None]] = set()
        self._owner: asyncio.Task[None] | None = None
        self._birth: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._taking = True
        self._hello: Hello | None = None
        self._must_forget = False

    # Life

    async def start(self, backend: Backend) -> asyncio.Task[None]:
        """Begin to connect. Returns the owner task: watch it, it ends by `stop` only, or by a bug."""
        assert self._owner is None, "started twice"
        self._backend = backend
        if self._home is not None:
            self._home.attach(backend.api, backend.gate)
        self._owner = asyncio.create_task(self._run(), name="edged.mqtt")
        return self._owner

    def stop_taking(self) -> None:
        """Hand on nothing new from now on; replies go on. What comes in meanwhile is not acknowledged, so the broker
        keeps it for the next start: a stopping pipeline could only refuse it."""
        self._taking = False

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take nothing new, finish and acknowledge what was taken, say offline, disconnect; within `grace_s` seconds.

        What is not finished then is not acknowledged either: the broker delivers it again.
        """
        self.stop_taking()
        self._stopping.set()
        if self._working:
            await asyncio.wait(self._working, timeout=max(0.0, grace_s - FAREWELL_S))
        for task in self._working:
            task.cancel()
        if self._hello is not None:
            await self._say_goodbye(min(FAREWELL_S, grace_s))
        self._inflight.close()
        if self._owner is not None:
            self._owner.cancel()  # before the client is touched: it may be connecting, in a thread
            await asyncio.wait([self._owner])
        if self._hello is not None:
            self._client.abort("no time for a farewell")
        if self._working:
            await asyncio.wait(self._working)

    # What comes in

    async def _accept(self, ask: Ask) -> None:
        """Returns once a request is committed, or known already. Raises EdgedError for a refusal."""
        address = ask.address if ask.request.stream else None
        delta = functools.partial(self._sender.delta, address) if address else None
        await self._backend.api.requests.submit(ask, delta)

    async def _cancel(self, name: str, topic: str) -> None:
        """MQTT does not say who published; the topic decides the role."""
        await self._backend.api.requests.cancel_unnamed(self._identify(f"mqtt:{topic}", topic), name)

    def _identify(self, client: str, topic: str) -> Caller:
        return self._backend.gate.policy.mqtt(client, topic)

    def _state(self) -> dict[str, JSON]:
        return self._backend.state()

    def _refused(self, caller: Caller, error: EdgedError) -> None:
        self._backend.gate.unread(caller, error)

    # For the pipeline, tools and the rest of the daemon

    async def deliver(self, delivery: Delivery) -> None:
        """See Sender."""
        await self._sender.deliver(delivery)
        if self._home is not None:
            await self._home.answered(delivery)

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        """See Sender."""
        await self._sender.publish(topic, payload, qos=qos, retain=retain)

    def event(self, event: Event) -> None:
        """Publish an event; dropped while there is no link."""
        self._presence.event(event)

    def state_changed(self) -> None:
        """The state document changed; it is published within a second or so."""
        self._presence.changed()

    async def until_ready(self) -> None:
        """See Transport: the broker has agreed to the subscriptions."""
        await self._subscribed.wait()

    def missing(self) -> str | None:
        """See Transport."""
        if self._subscribed.is_set():
            return None
        where = endpoint(self._settings.url)
        if self._hello is None:
            return self._attempts.error or f"not connected to {where} yet"
        refused = ", ".join(f"{topic}: {why}" for topic, why in self._client.refused_topics.items())
        return f"{where} refused to send what it is asked: {refused}" if refused else f"not subscribed at {where} yet"

    def status(self) -> dict[str, JSON]:
        """The link as `edged status` shows it. `since` in seconds since the epoch."""
        return {
            "connected": self._hello is not None,
            "since": self._attempts.since,
            "broker": str(endpoint(self._settings.url)),
            "version": "5" if self._client.version == V5 else "3.1.1",
            "error": self._attempts.error,
            "cause": self._attempts.cause,
            "taken_over": self._attempts.taken_over,
            "subscribed": self._subscribed.is_set(),
            "refused_subscriptions": dict(self._client.refused_topics),
            "in_flight": len(self._inflight),
            "received": self._counters.received,
            "replied": self._counters.replied,
            "refused": self._counters.refused,
            "duplicates": self._counters.duplicates,
        }

    # The owner task

    async def _run(self) -> None:
        while not self._stopping.is_set():
            self._choose_client()
            self._inbox = asyncio.Queue()
            answer = await self._client.connect()
            began = clock.boot()
            if isinstance(answer, Hello):
                end = await self._serve(answer)
            else:
                end = answer
                self._attempts.failed(end)
            if not self._stopping.is_set():
                pause_s = self._attempts.pause_s(end, lasted_s=clock.boot() - began)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._stopping.wait()

    async def _serve(self, hello: Hello) -> End:
        """Work with an established connection until it ends."""
        self._begin(hello)
        intake = Intake(
            self._settings,
            self._handlers,
            counters=self._counters,
            working=self._working,
            ack=self._client.ack,
            done=self._finished,
        )
        try:
            # Not only on this connection: the next one finds the new session present, and nothing recorded.
            self._must_forget |= not hello.session_present
            if self._must_forget:
                await self._forget_session()
            return await self._hand_on(intake)
        finally:
            intake.close()
            self._presence.end()
            if self._home is not None:
                self._home.end()
            if self._birth is not None:
                self._birth.cancel()

    def _begin(self, hello: Hello) -> None:
        self._hello = hello
        self._attempts.succeeded()
        # In this order: who sees us online finds us listening.
        wanted = self._home.filters if self._home is not None else []
        self._client.subscribe([self._topics.requests, self._topics.cancels, *wanted])
        self._inflight.open(hello.send_maximum)
        self._birth = asyncio.create_task(self._announce(), name="edged.mqtt.birth")
        self._presence.begin()
        if self._home is not None:
            self._home.begin()

    async def _forget_session(self) -> None:
        try:
            await self._backend.api.requests.forget_packets()
        except Exception as error:  # a full disk, say; without the record an old packet id could hide a new request
            log.debug("the loss of the MQTT session could not be recorded", exc_info=True)
            self._client.abort(f"the loss of the broker's session could not be recorded: {error!r}")
        else:
            self._must_forget = False

    async def _hand_on(self, intake: Intake) -> End:
        while True:
            item = await self._inbox.get()
            if isinstance(item, End):
                return item
            if self._taking:
                intake.take(item)
            else:
                self._finished()

    # The client and its callbacks

    def _linked(self) -> Client | None:
        return self._client if self._hello is not None else None

    def _make_client(self, version: int) -> Client:
        return Client(
            self._settings,
            version=version,
            will=Will(self._topics.status, self._presence.offline().payload),
            on_message=self._received,
            on_confirmed=self._inflight.confirmed,
            on_session=self._session,
            on_subscribed=self._subscribed.set,
            on_end=self._ended,
        )

    def _choose_client(self) -> None:
        """The protocol version belongs to the client object; publishes in flight start anew on the other one."""
        version = self._attempts.version
        if self._client.version == version:
            return
        log.info("trying MQTT %s", "5" if version == V5 else "3.1.1", extra={"event": "mqtt_version"})
        self._inflight.start_again()
        self._client = self._make_client(version)

    def _session(self, hello: Hello) -> bool:
        """Whether the broker still knows what is in flight. If not, or if it takes less at a time than before, paho
        must not send all of it again at once."""
        if hello.session_present and len(self._inflight) <= hello.send_maximum:
            return True
        self._inflight.start_again()
        return False

    def _received(self, incoming: Incoming) -> None:
        self._unfinished += 1
        if self._unfinished >= PAUSE_READING_AT:
            self._client.pause_reading()
        self._inbox.put_nowait(incoming)

    def _finished(self) -> None:
        self._unfinished -= 1
        if self._unfinished <= RESUME_READING_AT:
            self._client.resume_reading()

    def _ended(self, end: End) -> None:
        self._inflight.pause()
        self._subscribed.clear()
        if self._hello is not None:
            self._hello = None
            self._attempts.lost()
        self._inbox.put_nowait(end)

    async def _announce(self) -> None:
        problem = await self._sender.confirmed(self._presence.online())
        if problem is not None:
            log.error("nobody sees that this node is online: %s", problem, extra={"event": "mqtt_unsendable"})

    async def _say_goodbye(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self._sender.confirmed(self._presence.offline())
                self._client.disconnect()
                if self._owner is not None:
                    await asyncio.wait([self._owner])
        except TimeoutError:
            log.debug("the broker did not confirm the farewell in time; the will says it")
