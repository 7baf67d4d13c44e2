"""When to try the broker again, with which protocol version, and how much of it to tell. Pure: the caller brings time
and chance."""

from __future__ import annotations

from random import Random

from msgspec import Struct

V311 = 4  # as CONNECT numbers the protocol
V5 = 5
CLOSES_TO_GIVE_UP_V5 = 2  # one may be a broker that is just going down; old brokers do it every time
FAILURES_TO_RETRY_V5 = 3  # by then the broker may be another one, or have been replaced
EVICTIONS_TO_BELIEVE = 3  # one may be chance and two a broker that restarts twice
REPEAT_LOG_S = 60.0  # an outage of a night is some hundred lines, and each still tells that we try
MAX_DOUBLINGS = 16  # beyond any cap; keeps 2**n a small number


class Backoff(Struct, frozen=True, kw_only=True):
    """How long to wait before the next attempt, in seconds.

    base_s: bound of the first wait; doubles with each failure.
    cap_s: its largest value: a broker that is back is used within half a minute, and one attempt every 15 s (the mean)
        costs neither a broker with a thousand boards nor the battery much.
    stable_s: a connection that held this long was a success; a shorter one counts as one more failure, or a broker
        that throws us out after CONNACK would be called in a tight loop.
    taken_over_s: wait after another client took our session: two daemons with one node id throw each other out, and
        at this pace each message still gets through while the log says what is wrong.
    """

    base_s: float = 1.0
    cap_s: float = 30.0
    stable_s: float = 30.0
    taken_over_s: float = 60.0

    def delay(self, failures: int, chance: Random) -> float:
        """Wait after this many failures in a row. Full jitter: boards that lost one broker must not return at once."""
        return chance.uniform(0, min(self.cap_s, self.base_s * 2 ** min(max(failures - 1, 0), MAX_DOUBLINGS)))

    def taken_over(self, chance: Random) -> float:
        """Wait after a takeover; the jitter keeps two daemons from doing it in step."""
        return self.taken_over_s * chance.uniform(1, 1.5)


class Versions:
    """Which protocol version the next attempt uses.

    1. 5 is refused in words: 3.1.1 from now on.
    2. The broker closes at CONNECT without an answer, CLOSES_TO_GIVE_UP_V5 times in a row: 3.1.1 as well.
    3. 3.1.1 after 5 fails FAILURES_TO_RETRY_V5 times in a row: 5 again.
    4. Anything else: no change.
    """

    def __init__(self, preferred: int) -> None:
        self._preferred = preferred
        self._closes = 0
        self._failures = 0
        self.current = preferred

    def refused(self) -> None:
        """The broker said that it does not speak this version."""
        if self.current == V5:
            self._use(V311)  # 1
        else:
            self.failed()

    def closed(self) -> None:
        """The broker closed the connection instead of answering CONNECT."""
        if self.current != V5:
            self.failed()
            return
        self._closes += 1
        if self._closes >= CLOSES_TO_GIVE_UP_V5:
            self._use(V311)  # 2

    def failed(self) -> None:
        """The attempt failed for a reason that says nothing about the version."""
        self._closes = 0
        self._failures += 1
        if self.current != self._preferred and self._failures >= FAILURES_TO_RETRY_V5:
            self._use(self._preferred)  # 3

    def connected(self) -> None:
        """The version works."""
        self._closes = self._failures = 0

    def _use(self, version: int) -> None:
        self.current = version
        self._closes = self._failures = 0


class Evictions:
    """Whether another client uses our client id where the broker does not say so (mosquitto 2.0 just closes).

    A broker that goes away is unreachable for a moment afterwards; one that lets us in and closes without a word soon
    after, EVICTIONS_TO_BELIEVE times in a row, most likely did so because another client came with our name.
    """

    def __init__(self, stable_s: float) -> None:
        self._stable_s = stable_s
        self._in_a_row = 0

    def ended(self, *, by_peer: bool, lasted_s: float) -> bool:
        """A connection ended, or could not be made (then lasted_s is 0 and by_peer false); returns the suspicion."""
        if not by_peer or lasted_s >= self._stable_s:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        return self._in_a_row >= EVICTIONS_TO_BELIEVE


class Outage:
    """What the log says while there is no link: the first failure, then one line a minute, then the end of it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._failures = 0
        self._told = False
        self._last_line: float | None = None

    def failed(self, reason: str, *, now: float) -> str | None:
        """One more failure; returns the line to log, or None where a line would be one too many."""
        if self._since is None:
            self._since, self._failures, self._told = now, 0, False
        self._failures += 1
        if self._last_line is not None and now - self._last_line < REPEAT_LOG_S:
            return None
        self._last_line, self._told = now, True
        if self._failures == 1:
            return reason
        return f"{reason} (failed {self._failures} times in {now - self._since:.0f} s)"

    def ended(self, *, now: float) -> str | None:
        """There is a link; returns the line to log if the outage was logged."""
        since, self._since = self._since, None
        if since is None or not self._told:
            return None
        return f"back after {now - since:.1f} s (failures: {self._failures})"
