"""Home Assistant, by MQTT discovery: the device is described, answers are told, buttons are pressed.

What was described is kept in a file of the state folder: an entity that is gone, because its agent was renamed, has to
be taken back by its name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from edged.access.gate import Gate
from edged.api import Api
from edged.errors import BadRequest, EdgedError, NoLink
from edged.host import clock
from edged.transport.mqtt import discovery
from edged.transport.mqtt.discovery import Subject
from edged.transport.mqtt.messages import Incoming, Outgoing
from edged.transport.mqtt.topics import Topics
from edged.types import Caller, Delivery

log = logging.getLogger(__name__)

FILE = "homeassistant.json"
# Home Assistant's birth reaches all devices of a home at once; answers in the same second would be what it drops.
BIRTH_SPREAD_S = 10.0
MAX_GONE = 256  # entities that are taken back again at each start; more are of somebody who tries names out
Send = Callable[[Outgoing], Awaitable[str | None]]


class _Told(Struct):
    """What was described last: the topic, and platforms by key. gone: of entities that are no more."""

    topic: str = ""
    components: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)


class HomeAssistant:
    """The device. Nothing of it waits for the broker but the tasks that it makes.

    Args:
        prefix: of Home Assistant's topics.
        state_dir: where it is kept what was described.
        send: publishes with QoS 1; returns None once the broker has it, else why it never will. Raises NoLink.
        delay_s: gives the seconds from Home Assistant's birth to the next description.
    """

    def __init__(
        self,
        subject: Subject,
        prefix: str,
        state_dir: Path,
        send: Send,
        *,
        delay_s: Callable[[], float] = lambda: random.uniform(0, BIRTH_SPREAD_S),  # noqa: S311  # spreads load
    ) -> None:
        self._subject = subject
        self._topics = Topics(subject.node)
        self._topic = discovery.config_topic(prefix, subject.node)
        self._birth = f"{prefix}/status"
        self._control = f"{self._topics.base}/control/"
        self._file = state_dir / FILE
        self._send = send
        self._delay_s = delay_s
        self._timer: asyncio.TimerHandle | None = None
        self._describing: asyncio.Task[None] | None = None
        self._commands: set[asyncio.Task[None]] = set()
        self._api: Api
        self._gate: Gate

    @property
    def filters(self) -> list[str]:
        """What it wants to hear."""
        return [self._birth, *([f"{self._control}+"] if self._subject.control else [])]

    def attach(self, api: Api, gate: Gate) -> None:
        """Before the first `begin`: what commands are carried out by."""
        self._api, self._gate = api, gate

    def begin(self) -> None:
        """The link is up."""
        if self._describing is not None:
            self._describing.cancel()
        self._describing = asyncio.create_task(_guarded(self._describe()), name="edged.mqtt.homeassistant.describe")

    def end(self) -> None:
        """The link is down: what is to be said is said when it is up again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._describing is not None:
            self._describing.cancel()

    def take(self, incoming: Incoming) -> bool:
        """Whether a message is meant for this; it is seen to then."""
        if incoming.topic == self._birth:
            if incoming.payload == b"online":
                self._born()
            return True
        if self._subject.control and incoming.topic.startswith(self._control):
            work = _guarded(self._command(incoming.topic, incoming.payload))
            task = asyncio.create_task(work, name="edged.mqtt.homeassistant.command")
            self._commands.add(task)
            task.add_done_callback(self._commands.discard)
            return True
        return False

    async def answered(self, delivery: Delivery) -> None:
        """A reply over MQTT went out. That of an agent whose answers are told is told."""
        if delivery.agent in self._subject.answers:
            await _guarded(self._tell(delivery))

    async def _tell(self, delivery: Delivery) -> None:
        body = msgspec.json.decode(delivery.body)
        kept = discovery.answer(body, delivery.agent, clock.wall())
        topic = discovery.answer_topic(self._topics.base, delivery.agent)
        await self._publish(topic, msgspec.json.encode(kept), retain=True)
        told = msgspec.json.encode(discovery.event(body, delivery.agent))
        # Not retained: what happened once is not to happen again when Home Assistant starts.
        await self._publish(discovery.event_topic(self._topics.base, delivery.agent), told, retain=False)

    def _born(self) -> None:
        """Home Assistant has started, and has forgotten what was not retained."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._delay_s(), self._describe_again)

    def _describe_again(self) -> None:
        self._timer = None
        self.begin()

    async def _describe(self) -> None:
        """Take back what is gone, describe what there is, and keep what was said."""
        before = await asyncio.to_thread(_read, self._file)
        now = {key: str(each["platform"]) for key, each in discovery.components(self._subject).items()}
        gone = discovery.still_gone({**before.gone, **before.components}, now)
        answers = [discovery.answer_topic(self._topics.base, agent) for agent in self._subject.answers]
        told = _Told(self._topic, now, dict(list(gone.items())[-MAX_GONE:]), answers)
        if before.topic and before.topic != self._topic:
            await self._publish(before.topic, b"", retain=True)
        for topic in set(before.answers) - set(answers):
            await self._publish(topic, b"", retain=True)
        if told != before:  # first: what is described and not known here could never be taken back
            await asyncio.to_thread(_write, self._file, msgspec.json.encode(told))
        await self._publish(self._topic, msgspec.json.encode(discovery.device(self._subject, told.gone)), retain=True)

    async def _publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        problem = await self._send(Outgoing(topic=topic, payload=payload, qos=1, retain=retain))
        if problem is not None:
            log.error("Home Assistant is not told on %s: %s", topic, problem, extra={"event": "mqtt_unsendable"})

    async def _command(self, topic: str, payload: bytes) -> None:
        command = topic.removeprefix(self._control)
        caller = self._gate.policy.mqtt(f"mqtt:{topic}", topic)
        try:
            await self._carry_out(caller, command, payload.decode(errors="replace"))
        except EdgedError as error:
            self._gate.unread(caller, error)
            log.warning("the command %s is not done: %s", command, error.message, extra={"event": "command_refused"})

    async def _carry_out(self, caller: Caller, command: str, argument: str) -> None:
        match command:
            case "unload":
                await self._api.models.unload(caller, argument)
            case "reload":
                with self._gate.managing(caller, "reload the configuration"):
                    os.kill(os.getpid(), signal.SIGHUP)  # as the service manager does
            case _:
                raise BadRequest(f"no command {command!r}; there are reload, unload")


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except NoLink:  # stopped
        pass
    except Exception:
        log.exception("what Home Assistant is to be told, or wants, failed through a bug", extra={"event": "bug"})


def retained(state_dir: Path, node: str, prefix: str, agents: Iterable[str]) -> list[str]:
    """The topics on which the broker may keep something for Home Assistant: by the configuration, and by what was
    described last, where that can be read."""
    before, base = _read(state_dir / FILE), Topics(node).base
    answers = [discovery.answer_topic(base, agent) for agent in agents]
    topics = [discovery.config_topic(prefix, node), before.topic, *answers, *before.answers]
    return [topic for topic in dict.fromkeys(topics) if topic]


def _read(file: Path) -> _Told:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Told)
    except FileNotFoundError:
        return _Told()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s cannot be read, and is written anew: %s", file, error, extra={"event": "mqtt_ignored"})
        return _Told()


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all, and on the medium."""
    unfinished = file.with_suffix(".new")
    with unfinished.open("wb") as sink:
        sink.write(content)
        sink.flush()
        os.fsync(sink.fileno())
    unfinished.replace(file)
