"""Three clocks. Deadlines use `boot`: it counts through suspend and never jumps when a board without a battery
learns the date from the network. `wall` is for people and for what must outlive a reboot."""

from __future__ import annotations

import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot() -> float:
    """Seconds since this boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    """Seconds since the epoch, as far as the board knows the date."""
    return time.time()


def boot_id() -> str:
    """Identity of this boot; boot times of different boots cannot be compared."""
    return BOOT_ID.read_text(encoding="utf-8").strip()


class Stopwatch:
    """Milliseconds since it was made, on the monotonic clock."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def ms(self) -> float:
        """Milliseconds so far, to a tenth of a microsecond."""
        return round((time.perf_counter() - self._start) * 1000, 4)
