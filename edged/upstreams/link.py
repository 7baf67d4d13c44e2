"""The link to an upstream: whether it can be used, when it is probed, how much may be with it. Pure: a link and what
was seen give the next link; times are seconds on any one clock, `chance` is a random number from 0 to 1.

Three states. UNKNOWN (at the start) and UP take requests; DOWN takes none and ends by a probe that was answered. What
begins carries the link's `era`, which changes when the link goes down: what began before says nothing about afterwards.

There is no second circuit breaker: a link that comes up by a probe is on probation (one weak failure takes it down
again, and the backoff goes on where it was) until a request was answered, or until a probe found it well once more.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

MAX_DOUBLINGS = 30  # beyond it every pace is at its cap, and the power would only grow


class LinkState(StrEnum):
    """What is known of a link."""

    UNKNOWN = "unknown"  #: nothing was heard yet; it may be tried
    UP = "up"  #: it answers
    DOWN = "down"  #: it does not; only probes go out


class Sign(StrEnum):
    """What an exchange showed."""

    GOOD = "good"  #: an answer, or the refusal of one request by a server that is well
    WEAK = "weak"  #: it may be chance: a timeout, 5xx, a cut stream, garbage
    STRONG = "strong"  #: nothing is there: connection refused, unreachable, DNS, TLS
    REFUSED = "refused"  #: it does not take our key or does not have the model; a person has to act
    BUSY = "busy"  #: it is well and wants a pause


class ProbeTiming(Struct, frozen=True, kw_only=True):
    """How fast a link reacts, in seconds.

    first_s, longest_s: between probes of a link that is down; doubled each time. Most outages are a router's or a
        server's restart; after minutes without a link another few do not matter, and neither must the probes.
    idle_s: until an unused link is probed; cheap, and known within a minute.
    refused_s, refused_longest_s: the same where a person has to act, who is not waited for every second.
    shortest_pause_s, longest_pause_s: bounds of a Retry-After. With 0 it would be asked without end; a server that
        means tomorrow is asked once a quarter of an hour, because quotas are also raised by hand.
    weak_limit: that many weak failures in a row are no chance any more.
    window_limit: requests at once; the daemon works on no more.
    """

    first_s: float = 1.0
    longest_s: float = 180.0
    idle_s: float = 60.0
    refused_s: float = 60.0
    refused_longest_s: float = 900.0
    shortest_pause_s: float = 1.0
    longest_pause_s: float = 900.0
    weak_limit: int = 3
    window_limit: int = 8


class Seen(Struct, frozen=True, kw_only=True):
    """What an exchange showed. pause_s: what the server asked for, with Sign.BUSY, if it said."""

    sign: Sign
    reason: str = ""
    pause_s: float | None = None
    probe: bool = False


class Link(Struct, frozen=True, kw_only=True):
    """The state of one link.

    since: when it came into `state`; reason: what went wrong last, empty while nothing is.
    weak: weak failures in a row; downs: how often in a row it was found down, which is how far the backoff has grown.
    probe_at: when the next probe is due; probing: one is on its way.
    paused_until: the server wants to be left alone until then.
    in_flight: requests of this era that are with it; window: how many it bears.
    """

    since: float
    probe_at: float
    state: LinkState = LinkState.UNKNOWN
    reason: str = ""
    weak: int = 0
    downs: int = 0
    probing: bool = False
    paused_until: float = 0.0
    era: int = 0
    in_flight: int = 0
    window: int = 1


def fresh(now: float) -> Link:
    """The link at the start: may be tried, and is probed at once."""
    return Link(since=now, probe_at=now)


def usable(link: Link, now: float) -> bool:
    """Whether a request may be tried."""
    return link.state is not LinkState.DOWN and now >= link.paused_until


def places(link: Link, now: float) -> int:
    """How many more requests it would take now."""
    return max(0, link.window - link.in_flight) if usable(link, now) else 0


def next_probe(link: Link) -> float | None:
    """When a probe is due; None while one is on its way, or while requests show how it is."""
    if link.probing or (link.state is not LinkState.DOWN and link.in_flight):
        return None
    return link.probe_at


def usable_at(link: Link, now: float) -> float:
    """When it may be usable, as far as can be told."""
    at = max(link.probe_at, link.paused_until) if link.state is LinkState.DOWN else link.paused_until
    return max(at, now)


def begin(link: Link) -> Link:
    """A request goes out."""
    return replace(link, in_flight=link.in_flight + 1)


def begin_probe(link: Link) -> Link:
    """A probe goes out."""
    return replace(link, probing=True)


def abandoned(link: Link, era: int, *, probe: bool = False) -> Link:
    """What began in `era` ended without showing anything: it was broken off."""
    if probe:
        link = replace(link, probing=False)
    elif era == link.era:
        link = replace(link, in_flight=link.in_flight - 1)
    return link


def ended(link: Link, era: int, seen: Seen, now: float, chance: float, pace: ProbeTiming) -> Link:
    """What began in `era` ended.

    (1) it began before the link went down: a good answer makes the next probe due, a failure is old news;
    (2) a request was answered: up, all doubts are gone, one more at once;
    (3) a probe was answered and the link was not down: up, all doubts are gone;
    (4) a probe was answered and the link was down: up on probation, one request at once;
    (5) it wants a pause: left alone until then, half as many at once; broken it is not;
    (6) it wants a pause and is down: the next probe waits for that;
    (7) a weak failure of a link that is not down, and not too many in a row: counted, half as many at once; what only
        a probe has shown is probed again soon;
    (8) one weak failure too many, or a strong one: down;
    (9) the key or the model is refused: down, with rarer probes;
    (10) a failed probe of a link that is down: rarer probes.
    """
    link = abandoned(link, era, probe=seen.probe)
    if era != link.era:  # (1)
        return replace(link, probe_at=min(link.probe_at, now)) if seen.sign is Sign.GOOD and _down(link) else link
    if seen.sign is Sign.GOOD:
        return _good(link, seen, now, chance, pace)
    if seen.sign is Sign.BUSY:
        return _busy(link, seen, now, chance, pace)
    if seen.sign is Sign.WEAK and not _down(link) and link.weak + 1 < pace.weak_limit:  # (7)
        weak = link.weak + 1
        wait = _backoff(weak, pace.first_s, pace.longest_s) if seen.probe else pace.idle_s
        window = max(1, link.window // 2)
        return replace(link, reason=seen.reason, weak=weak, window=window, probe_at=now + _spread(wait, chance))
    return _fallen(link, seen, now, chance, pace)


def _good(link: Link, seen: Seen, now: float, chance: float, pace: ProbeTiming) -> Link:
    idle = now + _spread(pace.idle_s, chance)
    since = link.since if link.state is LinkState.UP else now
    up = replace(link, state=LinkState.UP, since=since, reason="", weak=0, probe_at=idle)
    if not seen.probe:  # (2)
        return replace(up, downs=0, window=min(link.window + 1, pace.window_limit))
    if not _down(link):  # (3)
        return replace(up, downs=0)
    return replace(up, weak=pace.weak_limit - 1, window=1)  # (4)


def _busy(link: Link, seen: Seen, now: float, chance: float, pace: ProbeTiming) -> Link:
    if seen.pause_s is None:  # it does not say how long: as if it were down
        downs = link.downs + 1
        pause = _spread(_backoff(downs, pace.first_s, pace.longest_s), chance)
    else:
        downs = link.downs
        pause = min(max(seen.pause_s, pace.shortest_pause_s), pace.longest_pause_s)
    until = max(link.paused_until, now + pause)
    paused = replace(link, reason=seen.reason, downs=downs, paused_until=until)
    if _down(link):  # (6)
        return replace(paused, probe_at=until)
    return replace(paused, window=max(1, link.window // 2), probe_at=until + _spread(pace.idle_s, chance))  # (5)


def _fallen(link: Link, seen: Seen, now: float, chance: float, pace: ProbeTiming) -> Link:
    """(8), (9), (10): down, or still down."""
    downs = link.downs + 1
    if seen.sign is Sign.REFUSED:
        wait = _backoff(downs, pace.refused_s, pace.refused_longest_s)
    else:
        wait = _backoff(downs, pace.first_s, pace.longest_s)
    probe_at = max(now + _spread(wait, chance), link.paused_until)
    link = replace(link, reason=seen.reason, downs=downs, probe_at=probe_at)
    if _down(link):  # (9), (10)
        return link
    return replace(link, state=LinkState.DOWN, since=now, weak=0, era=link.era + 1, in_flight=0, window=1)  # (8), (9)


def _down(link: Link) -> bool:
    return link.state is LinkState.DOWN


def _backoff(times: int, first_s: float, longest_s: float) -> float:
    return min(longest_s, first_s * 2.0 ** min(times - 1, MAX_DOUBLINGS))


def _spread(seconds: float, chance: float) -> float:
    """A quarter more or less: boards that lost one server must not return in step."""
    return seconds * (0.75 + chance / 2)
