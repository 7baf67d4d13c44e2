"""Three clocks. Deadlines use `boot`: it counts through suspend and never jumps when a board without a battery
learns the date from the network. `wall` is for people and for what must outlive a reboot."""

from __future__ import annotations

import ctypes
import functools
import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
RTCS = Path("/sys/class/rtc")
BOARD = Path("/proc/device-tree/model")  # of boards only: PCs have a real-time clock, virtual machines their host's
TIME_ERROR = 5  # adjtimex(2): nobody sets the clock
TIMEX_BYTES = 512  # more than struct timex has on any kernel; with all bits 0 it only reads


def boot() -> float:
    """Seconds since this boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    """Seconds since the epoch, as far as the board knows the date."""
    return time.time()


def boot_id() -> str:
    """Identity of this boot; boot times of different boots cannot be compared."""
    return BOOT_ID.read_text(encoding="utf-8").strip()


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def synchronised() -> bool | None:
    """Whether something keeps the clock right; None where the kernel does not say."""
    try:
        state: int = _libc().adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR


def lacks_rtc() -> bool:
    """Whether this is a board that forgets the time when it is switched off."""
    try:
        return BOARD.exists() and not any(RTCS.iterdir())
    except OSError:  # a kernel that does not tell
        return False


class Stopwatch:
    """Milliseconds since it was made, on the monotonic clock."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def ms(self) -> float:
        """Milliseconds so far, to a tenth of a microsecond."""
        return round((time.perf_counter() - self._start) * 1000, 4)
