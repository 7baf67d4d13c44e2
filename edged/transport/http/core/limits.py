"""How much of the daemon one client may take, and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from edged.errors import Busy

BUSY_S = 1.0  # retry_after_s of a client with too much at once: it knows itself when something of it ends


class Limits(Struct, frozen=True, kw_only=True):
    """Times in seconds.

    head_s: from the first byte of a request, or the connection, to the end of the request's head.
    body_s: from there to the end of its body.
    idle_s: a connection may wait for its next request.
    linger_s: what a client still sends is read so long after an answer that came before the end of its body.
    heartbeat_s: the longest silence in a stream of events.
    connections: at once from one client; what is more is answered `busy`, and beyond twice as many not answered at
        all.
    unix_connections, tcp_connections: from all clients of Unix sockets, and from all that showed a key on TCP.
    strangers: connections at once of clients that are not known: that showed no key yet, or may not use the socket.
        For one more, one of those goes: of the origin that has the most, the oldest.
    in_flight: requests of one client that do work at once.
    """

    head_s: float = 10.0  # a head fits one packet: who needs longer means harm, or is lost
    body_s: float = 30.0  # the largest body over a line of 70 kbit/s
    idle_s: float = 75.0  # longer than the 60 s of usual proxies, so that they close first and no request is lost
    linger_s: float = 2.0  # many read the answer only when all is sent; closed earlier, they would never see it
    heartbeat_s: float = 15.0  # proxies end a silent answer after 30 to 60 s
    connections: int = 64
    # A service may have 1024 files open, and models, databases and tools need theirs. The board's own programs come by
    # the Unix socket, so it has the most.
    unix_connections: int = 256
    tcp_connections: int = 128
    strangers: int = 64  # one has head_s to become known; 64 of them all the time is somebody who means harm
    in_flight: int = 32  # four times what is worked on at once; who has more queues it with `respond-async`


class ClientLoad:
    """How many there are, by whose they are."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @property
    def largest(self) -> str:
        """Who has the most; there is somebody."""
        return self._counts.most_common(1)[0][0]

    def add(self, whose: str) -> int:
        """One more; how many that one has now."""
        self._counts[whose] += 1
        return self._counts[whose]

    def remove(self, whose: str) -> None:
        """One less."""
        self._counts[whose] -= 1
        if not self._counts[whose]:
            del self._counts[whose]  # addresses come and go without end

    @contextmanager
    def one_more(self, whose: str, most: int) -> Iterator[None]:
        """Count one while the block runs. Raises Busy where there are as many as may be."""
        try:
            if self.add(whose) > most:
                raise Busy(f"{whose} has {most} requests in flight, which is the most", retry_after_s=BUSY_S)
            yield
        finally:
            self.remove(whose)
