"""The service manager: readiness, status, watchdog, stop, through the sdnotify package. Without systemd nothing
happens.

Protocol: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

import sdnotify

Progress = Callable[[], tuple[bool, float]]


class ServiceManager:
    """Talks to systemd as `run` was started by it."""

    def __init__(self) -> None:
        # without systemd the package would open a socket and drop it unclosed
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None

    def ready(self) -> None:
        """Requests are taken from now on."""
        self._tell("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`. ASCII: the package drops other text without a word."""
        self._tell(f"STATUS={text.encode('ascii', 'replace').decode()}")

    def stopping(self) -> None:
        """The stop has begun."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._tell("WATCHDOG=1")

    def _tell(self, text: str) -> None:
        if self._notifier:
            self._notifier.notify(text)


def under_systemd() -> bool:
    """Whether journald reads our stderr."""
    return "JOURNAL_STREAM" in os.environ


def watchdog_s() -> float | None:
    """Seconds within which systemd wants to hear of us; None where it does not watch this process."""
    usec, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not usec or not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6


def stalled(parts: Iterable[tuple[str, Progress]], limit_s: float) -> list[str]:
    """Names of the parts that have work and have not got on with it for longer than limit_s."""
    now = time.monotonic()
    return [name for name, progress in parts if (state := progress())[0] and now - state[1] > limit_s]
