"""Keeps the link of one server: probes it, counts what is with it, and tells of every change. What a link is lies in
`link`; what is particular to upstreams and to servers on this board lies in `cloud` and `local_servers`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from edged.host import clock
from edged.types import JSON
from edged.upstreams import link
from edged.upstreams.failures import ExchangeFailed
from edged.upstreams.http import Endpoint
from edged.upstreams.link import LinkState, ProbeTiming, Seen, Sign

log = logging.getLogger("edged.upstreams")

SOON_S = 1.0  # the least that is given as a time to ask again; 0 would be taken at its word
Tell = Callable[[str, dict[str, JSON]], None]


class Keeper:
    """Owns the link of one server.

    Args:
        name: the upstream's, or the model's that the server runs.
        woken: is set whenever something has changed, so that `keep` looks again.
        tell: gets (event name, data): `event` with "_up" or "_down".
    """

    noun: ClassVar[str]  # what `name` is: "upstream" or "model"
    event: ClassVar[str]
    probe_s: ClassVar[float | None] = None  # most seconds of a probe; None: as the endpoint's own limits say

    def __init__(self, name: str, server: Endpoint, timing: ProbeTiming, woken: asyncio.Event, tell: Tell) -> None:
        self.name, self.server = name, server
        self.link = link.fresh(clock.boot())
        self._timing, self._woken, self._tell = timing, woken, tell
        self._probe: asyncio.Task[None] | None = None

    @property
    def title(self) -> str:
        """How the log names it."""
        return f"{self.noun} {self.name}"

    async def stop(self) -> None:
        """End the probe and close the connections."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        await self.server.close()

    async def look_after(self) -> float | None:
        """Probe it where that is due. Returns the seconds until there is something to do again; None: not by itself."""
        now = clock.boot()
        due = link.next_probe(self.link)
        if due is not None and due <= now:
            self.probe()
            due = None
        times = [due, self.link.paused_until if self.link.paused_until > now else None]
        return min((at - now for at in times if at is not None), default=None)

    def probe(self) -> asyncio.Task[None]:
        """Find out how it is: one probe at a time, and all who ask wait for the same."""
        if self._probe is None or self._probe.done():
            self.link = link.begin_probe(self.link)
            self._probe = asyncio.create_task(self._find_out(), name=f"edged.upstreams.probe.{self.name}")
        return self._probe

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """Around a request to it, which takes a place from here on. A block that ends shows that the server is well;
        ExchangeFailed shows what it says; anything else breaks the exchange off and shows nothing."""
        era, seen = self.link.era, None
        self._set(link.begin(self.link))
        try:
            yield
            seen = Seen(sign=Sign.GOOD)
        except ExchangeFailed as failed:
            seen = failed.seen()
            raise
        finally:
            self._ended(era, seen)

    def usable_in_s(self) -> float:
        """Seconds until it may be usable, as far as is known; 0: it is."""
        now = clock.boot()
        return link.usable_at(self.link, now) - now

    def since_wall(self) -> float:
        """When the link came into its state: seconds since the epoch."""
        return round(clock.wall() - (clock.boot() - self.link.since), 1)

    # -- for the two kinds of servers ------------------------------------------------------------------------------

    def _judged(self, names: Sequence[str] | None) -> Seen:
        """What its list of models says; None: it has none."""
        return Seen(sign=Sign.GOOD, probe=True)

    def _changed(self) -> None:
        """The link is another one."""

    def _ended(self, era: int, seen: Seen | None, *, probe: bool = False) -> None:
        """An exchange is over; `seen` is None where it was broken off by ourselves."""
        if seen is None:
            self._set(link.abandoned(self.link, era, probe=probe))
        else:
            chance = random.random()  # noqa: S311  # jitter, no secret
            self._set(link.ended(self.link, era, seen, clock.boot(), chance, self._timing))

    # -- what was seen ---------------------------------------------------------------------------------------------

    async def _find_out(self) -> None:
        era, seen = self.link.era, None
        try:
            async with asyncio.timeout(self.probe_s):
                seen = self._judged(await self.server.probe())
        except ExchangeFailed as failed:
            seen = failed.seen(probe=True)
        except TimeoutError:
            seen = Seen(sign=Sign.WEAK, reason=f"no list of its models within {self.probe_s:g} s", probe=True)
        except Exception:  # the board works without this server: no reason to end the daemon
            log.exception("the probe of %s failed through a bug", self.title)
            seen = Seen(sign=Sign.WEAK, reason="a bug of edged; its log has the details", probe=True)
        finally:
            self._ended(era, seen, probe=True)

    def _set(self, new: link.Link) -> None:
        """Take over the next state, and tell everyone whom it concerns."""
        before, self.link = self.link, new
        self._woken.set()
        if new.state is not before.state:
            up = new.state is LinkState.UP
            event = f"{self.event}_{'up' if up else 'down'}"
            if up:
                log.info("%s answers", self.title, extra={"event": event})
            else:
                log.warning("%s cannot be used: %s", self.title, new.reason, extra={"event": event})
            self._tell(event, {self.noun: self.name, "reason": "it answers" if up else new.reason})
        elif new.reason and new.reason != before.reason:
            log.info("%s: %s", self.title, new.reason)
        self._changed()


async def keep(keepers: Sequence[Keeper], woken: asyncio.Event) -> None:
    """Look after servers until cancelled."""
    while True:
        woken.clear()
        waits = [wait_s for keeper in keepers if (wait_s := await keeper.look_after()) is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(waits)) if waits else None):
                await woken.wait()
