"""PUBACKs in the order the publishes came (MQTT-4.6.0-2), whatever order their work ended in. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Receipt:
    """One publish that waits for its PUBACK."""

    __slots__ = ("mid", "settled")

    def __init__(self, mid: int) -> None:
        self.mid = mid
        self.settled = False


class Acks:
    """The open receipts of one connection.

    A packet id means something on its own connection only: a PUBACK that is sent on the next one would acknowledge
    another packet, which would then be lost. So there is one Acks per connection, and `drop` ends it.
    """

    def __init__(self, send: Callable[[int], None]) -> None:
        self._send: Callable[[int], None] | None = send
        self._open: deque[Receipt] = deque()

    def expect(self, mid: int) -> Receipt:
        """A publish with this packet id came in."""
        receipt = Receipt(mid)
        self._open.append(receipt)
        return receipt

    def settle(self, receipt: Receipt) -> None:
        """Its work is done; sends every PUBACK that waits for nothing older. Without effect after `drop`."""
        receipt.settled = True
        while self._send is not None and self._open and self._open[0].settled:
            self._send(self._open.popleft().mid)

    def drop(self) -> None:
        """The connection is gone: the broker delivers again what was not acknowledged."""
        self._send = None
        self._open.clear()

    def __len__(self) -> int:
        return len(self._open)
