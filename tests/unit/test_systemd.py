"""What the service manager hears, over a real notify socket."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged import systemd
from edged.systemd import ServiceManager


@pytest.fixture
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


@contextlib.contextmanager
def a_manager() -> Iterator[ServiceManager]:
    """A manager whose socket is closed at the end; a daemon's lives as long as the process."""
    manager = ServiceManager()
    yield manager
    if manager._notifier:
        manager._notifier.socket.close()


@pytest.mark.parametrize(
    ("say", "heard"),
    [
        (lambda m: m.ready(), b"READY=1"),
        (lambda m: m.stopping(), b"STOPPING=1"),
        (lambda m: m.alive(), b"WATCHDOG=1"),
        (lambda m: m.status("2 agents"), b"STATUS=2 agents"),
        (lambda m: m.status("Gewächshaus"), b"STATUS=Gew?chshaus"),
    ],
    ids=["ready", "stopping", "alive", "status", "status-not-ascii"],
)
def test_manager_tells_systemd(notified: socket.socket, say: Callable[[ServiceManager], None], heard: bytes) -> None:
    """One datagram each, as sd_notify(3) has it."""
    with a_manager() as manager:
        say(manager)
    assert notified.recv(1000) == heard


def test_manager_without_systemd_says_nothing_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell is no service manager."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with a_manager() as manager:
        manager.ready()
        manager.status("x")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("500000", "own", 0.5),
        ("30000000", "1", None),
        (None, None, None),
        ("", None, None),
        ("x", None, None),
    ],
)
def test_watchdog_is_systemds_period_for_this_process(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float | None
) -> None:
    """A period meant for another process is not ours."""
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert systemd.watchdog_s() == seconds


@pytest.mark.parametrize("set_", [True, False])
def test_under_systemd_is_known_by_the_journals_stream(monkeypatch: pytest.MonkeyPatch, set_: bool) -> None:
    """JOURNAL_STREAM is set for what writes to the journal."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if set_:
        monkeypatch.setenv("JOURNAL_STREAM", "8:123")
    assert systemd.under_systemd() is set_


def test_stalled_names_only_parts_that_have_work_and_do_not_get_on() -> None:
    """An idle part may be old; a busy one that moved just now is alive."""
    now = time.monotonic()
    parts = [
        ("idle", lambda: (False, now - 1000)),
        ("moving", lambda: (True, now)),
        ("stuck", lambda: (True, now - 1000)),
    ]
    assert systemd.stalled(parts, 100) == ["stuck"]
