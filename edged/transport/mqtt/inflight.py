"""QoS 1 and 2 publishes on their way to the broker, never more of them than it takes at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from edged.errors import NoLink
from edged.transport.mqtt.messages import Outgoing


class SessionLost(Exception):
    """The broker's session is gone and with it what it knew of this publish: it has to start again."""


class Inflight:
    """Bounds and awaits publishes.

    MQTT 5 ends the connection of a client that has more unconfirmed publishes than the broker's Receive Maximum, and
    paho does not look at it. While the link is down nothing starts, and what was sent stays in flight: paho sends it
    again, with the same packet id, when the session goes on. When it does not, `start_again` starts everything anew.

    Args:
        send: hands a publish to the client and returns its packet id; raises Unsendable.
    """

    def __init__(self, send: Callable[[Outgoing], int]) -> None:
        self._send = send
        self._limit = 0
        self._unconfirmed: dict[int, asyncio.Future[int]] = {}
        self._queue: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._unconfirmed)

    async def publish(self, message: Outgoing) -> int:
        """Publish and wait for the broker's confirmation; waits for the link while there is none.

        Returns:
            The reason code of the confirmation: 128 and above is a refusal. 3.1.1 knows 0 only.

        Raises:
            Unsendable: the broker cannot take such a message.
            NoLink: the transport was stopped.
        """
        while True:
            await self._room()
            answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            try:
                mid = self._send(message)
            except BaseException:
                self._wake()  # the room that was given to it is the next one's
                raise
            self._unconfirmed[mid] = answer
            try:
                return await answer
            except SessionLost:
                continue

    async def publish_unconfirmed(self, message: Outgoing) -> None:
        """Publish without a confirmation, QoS 0; waits for the link while there is none, and for its turn.

        Raises:
            Unsendable, NoLink: as `publish`.
        """
        await self._room()
        try:
            self._send(message)
        finally:
            self._wake()  # it takes no room

    async def _room(self) -> None:
        """Return while there is a link and room for one more publish. Raises NoLink once stopped."""
        while not self._free():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._queue:
                    self._queue.remove(waiter)
                self._wake()  # it may have been cancelled with the room already given to it
                raise

    def open(self, limit: int) -> None:
        """The link is up; the broker takes `limit` unconfirmed publishes."""
        self._limit = limit
        self._wake()

    def pause(self) -> None:
        """The link is down."""
        self._limit = 0

    def confirmed(self, mid: int, code: int) -> None:
        """The broker confirmed a packet id. Until then it keeps its place, even when nobody waits for it any more."""
        answer = self._unconfirmed.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(code)
        self._wake()

    def start_again(self) -> None:
        """The session is lost: every publish that was in flight starts again, with a new packet id."""
        lost, self._unconfirmed = self._unconfirmed, {}
        for answer in lost.values():
            if not answer.done():
                answer.set_exception(SessionLost())

    def close(self) -> None:
        """Nothing will be sent any more: all who wait get NoLink."""
        self._closed = True
        lost, self._unconfirmed = self._unconfirmed, {}
        for answer in lost.values():
            if not answer.done():
                answer.set_exception(_stopped())
        self._wake()

    def _free(self) -> bool:
        if self._closed:
            raise _stopped()
        return len(self._unconfirmed) < self._limit

    def _wake(self) -> None:
        room = len(self._queue) if self._closed else self._limit - len(self._unconfirmed)
        while room > 0 and self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1


def _stopped() -> NoLink:
    return NoLink("the MQTT transport was stopped before the broker confirmed it")
