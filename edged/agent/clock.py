"""The board's clock and zone, as agents know them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from edged.agent.times import Moment
from edged.host import clock, zones

DAY = 86_400.0
INSTALLED = Path(__file__)  # written before now; images are unpacked with local times, so it may seem to be a day later
# A clock that is set right goes back by less. One that lost the time goes back by more.
BACK_S = 60.0


class BoardClock:
    """Says what time it was when a request came, where that is known.

    Args:
        timezone: IANA name; empty: the board's own.
        written: files that this daemon's predecessor wrote; they are looked at once, now.
    """

    def __init__(self, timezone: str = "", written: Iterable[Path] = ()) -> None:
        self._timezone = timezone
        self._written = max(map(_written_at, written), default=0.0)
        self._installed = _written_at(INSTALLED) - DAY

    @property
    def is_set(self) -> bool:
        """Whether the time of day can be right. It cannot on a board without a real-time clock before something has set
        it, nor where it is earlier than what has happened already."""
        now = clock.wall()
        if now < self._installed:
            return False
        synchronised = clock.synchronised()
        if synchronised:
            return True
        return now >= self._written - BACK_S and not (synchronised is False and clock.lacks_rtc())

    def moment(self, accepted: float | None) -> Moment:
        """Of a request. accepted: seconds since the epoch; None: the clock was not set then."""
        name, zone = (self._timezone, zones.named(self._timezone)) if self._timezone else zones.own()
        return Moment(None if accepted is None else datetime.fromtimestamp(accepted, zone), zone, name)

    def now(self) -> Moment:
        """Of a request that is asked now."""
        return self.moment(clock.wall() if self.is_set else None)


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
