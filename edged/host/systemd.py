"""The service manager: readiness, status, watchdog, reload, stop, through the sdnotify package; and the sockets it
passes. Without systemd nothing happens.

Protocol: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3), and systemd's "Memory Pressure Handling".
"""

from __future__ import annotations

import base64
import logging
import os
import re
import resource
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import sdnotify

log = logging.getLogger("edged.host.systemd")

LISTEN_FDS_START = 3  # sd_listen_fds(3): the first descriptor passed

NUMBER = re.compile(r"[0-9]{1,19}")  # in a variable: digits of 64 bits

PATIENCE_S = 1.0  # systemd reads within milliseconds; longer the loop must not stand still

Progress = Callable[[], tuple[bool, float]]


class ServiceManager:
    """Talks to systemd as `run` was started by it."""

    def __init__(self) -> None:
        self.trouble = ""  # stands in front of every status until it is emptied: what a person has to look at
        # without systemd the package would open a socket and drop it unclosed
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None

    def ready(self) -> None:
        """Requests are taken from now on."""
        self._tell("READY=1", patience_s=PATIENCE_S)

    def status(self, text: str) -> None:
        """One line for `systemctl status`. ASCII: the package drops other text without a word."""
        line = f"{self.trouble}; {text}" if self.trouble else text
        self._tell(f"STATUS={line.encode('ascii', 'replace').decode()}")

    def starting(self, *, within_s: float) -> None:
        """The start takes longer than usual, and goes on: this much more time is wanted from now on."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it, however it went. The time makes it Type=notify-reload as well."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", patience_s=PATIENCE_S)

    def stopping(self) -> None:
        """The stop has begun."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._tell("WATCHDOG=1")

    def _tell(self, text: str, *, patience_s: float = 0.0) -> None:
        """A manager that does not read its mail must not stop the event loop: what finds no place in its queue is lost.
        The next status or beat comes soon; only what comes once is waited for a little."""
        if self._notifier:
            self._notifier.socket.settimeout(patience_s)
            self._notifier.notify(text)


def under_systemd() -> bool:
    """Whether journald reads our stderr."""
    return "JOURNAL_STREAM" in os.environ


def listen_fds() -> list[socket.socket]:
    """The sockets passed to this process. Only the first call gets them: afterwards no child finds them, neither in its
    environment nor among its descriptors."""
    pid, count, _ = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not NUMBER.fullmatch(count):
        return []
    end, most = LISTEN_FDS_START + int(count), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if end > most:
        log.warning(
            "LISTEN_FDS=%s is not believed: this process may have %d descriptors",
            count,
            most,
            extra={"event": "socket_refused"},
        )
        return []
    passed = []
    for descriptor in range(LISTEN_FDS_START, end):
        try:
            os.set_inheritable(descriptor, False)
            passed.append(socket.socket(fileno=descriptor))
        except OSError as error:  # a FIFO, say; it is nobody else's, and closed with the process
            log.warning(
                "descriptor %d passed by systemd is no socket: %s",
                descriptor,
                error.strerror,
                extra={"event": "socket_refused"},
            )
    return passed


def watchdog_s() -> float | None:
    """Seconds within which systemd wants to hear of us; None where it does not watch this process."""
    usec, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not usec or not NUMBER.fullmatch(usec) or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6 or None


# Variables by which the service manager tells the daemon about itself: sockets, watchdog, secrets. A
# child that spoke on NOTIFY_SOCKET would speak for the daemon.
PRIVATE = ("NOTIFY_", "WATCHDOG_", "MEMORY_PRESSURE_", "CREDENTIALS_", "LISTEN_", "FDSTORE", "JOURNAL_STREAM")


def child_environment() -> dict[str, str]:
    """This process's environment without what is meant for it alone, and with UTF-8 as Python's encoding of everything,
    whatever the locale: what a child prints and opens is read as UTF-8 here."""
    shared = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    shared.pop("PYTHONIOENCODING", None)  # it would go before PYTHONUTF8
    return shared | {"PYTHONUTF8": "1"}


def memory_pressure() -> tuple[Path, bytes] | None:
    """Where the service manager tells of memory pressure, and what is to be written there first; None: it does not."""
    watch, write = os.environ.get("MEMORY_PRESSURE_WATCH"), os.environ.get("MEMORY_PRESSURE_WRITE", "")
    if not watch:
        return None
    try:
        return Path(watch), base64.b64decode(write, validate=True)
    except ValueError as error:
        log.warning(
            "MEMORY_PRESSURE_WRITE is no base64, so %s is not watched: %s",
            watch,
            error,
            extra={"event": "memory_pressure_unwatched"},
        )
        return None


def stalled(parts: Iterable[tuple[str, Progress]], limit_s: float) -> list[str]:
    """Names of the parts that have work and have not got on with it for longer than limit_s."""
    now = time.monotonic()
    return [name for name, progress in parts if (state := progress())[0] and now - state[1] > limit_s]
