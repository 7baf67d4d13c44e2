"""Timers of the event loop that count through suspend. asyncio's own count on CLOCK_MONOTONIC, which stops while the
board sleeps: a deadline that passed meanwhile would be noticed later by the time that it slept."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from edged.host import clock

# <linux/time.h>, <sys/timerfd.h>; `os` has these functions since Python 3.13 only.
CLOCK_BOOTTIME = 7
TFD_CLOEXEC, TFD_NONBLOCK, TFD_TIMER_ABSTIME = os.O_CLOEXEC, os.O_NONBLOCK, 1
EXPIRATIONS_BYTES = 8  # what a read of the descriptor gives: how often it has expired


class _TimeSpec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("it_interval", _TimeSpec), ("it_value", _TimeSpec))


class Alarms:
    """Calls at times on CLOCK_BOOTTIME (`clock.boot`), by one timerfd for all of them. A few dozen at once. Use it as a
    context manager: it holds a descriptor, and a reader of the running loop."""

    def __init__(self) -> None:
        self._alarms: dict[object, tuple[float, Callable[[], None]]] = {}
        self._descriptor: int | None = None
        self._armed_for: float | None = None

    def __enter__(self) -> Self:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        asyncio.get_running_loop().add_reader(self._descriptor, self._expired)
        self._arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._descriptor is not None
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = self._armed_for = None

    def call_at(self, when: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back at a time in seconds since the boot, at once where that has passed. Returns what calls it off."""
        alarm = object()
        self._alarms[alarm] = (when, callback)
        self._arm()

        def call_off() -> None:
            self._alarms.pop(alarm, None)

        return call_off

    @contextlib.asynccontextmanager
    async def timeout_at(self, when: float | None) -> AsyncIterator[asyncio.Timeout]:
        """As `asyncio.timeout_at`, on this clock. None: no limit."""
        async with asyncio.timeout(None) as limit:
            if when is None:
                yield limit
                return
            loop = asyncio.get_running_loop()
            call_off = self.call_at(when, lambda: limit.reschedule(loop.time()))
            try:
                yield limit
            finally:
                call_off()

    def _expired(self) -> None:
        assert self._descriptor is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, EXPIRATIONS_BYTES)
        self._armed_for, now = None, clock.boot()
        due = [alarm for alarm, (when, _) in self._alarms.items() if when <= now]
        for _, callback in [self._alarms.pop(alarm) for alarm in due]:
            callback()
        self._arm()

    def _arm(self) -> None:
        """For the earliest. Where that was called off meanwhile, it is found out when it comes."""
        earliest = min((when for when, _ in self._alarms.values()), default=None)
        if self._descriptor is None or earliest is None:
            return
        if self._armed_for is not None and self._armed_for <= earliest:
            return
        nanoseconds = max(0, int(earliest * 1e9)) + 1  # rounded up: 0 would disarm it, and too early is for nothing
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(*divmod(nanoseconds, 10**9)))
        if self._libc.timerfd_settime(self._descriptor, TFD_TIMER_ABSTIME, ctypes.byref(spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        self._armed_for = earliest
