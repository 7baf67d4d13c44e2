"""What the service manager hears, over a real notify socket."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.host import systemd
from edged.host.systemd import ServiceManager

ROOT = Path(__file__).parents[3]


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


def test_manager_that_does_not_read_stops_nobody(notified: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue holds a few datagrams; what finds no place is lost, and the daemon goes on. The alarm ends a hang."""
    monkeypatch.setattr(systemd, "PATIENCE_S", 0.01)
    signal.alarm(30)
    with a_manager() as manager:
        for number in range(2000):
            manager.status(f"line {number}")
            manager.alive()
        manager.ready()
    signal.alarm(0)
    assert notified.recv(1000) == b"STATUS=line 0"


def test_manager_without_systemd_says_nothing_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell is no service manager."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with a_manager() as manager:
        manager.ready()
        manager.status("x")


def test_status_begins_with_the_trouble_until_there_is_none(notified: socket.socket) -> None:
    """Whoever looks an hour later still sees it."""
    with a_manager() as manager:
        manager.trouble = "not reloaded"
        manager.status("idle")
        manager.trouble = ""
        manager.status("idle")
    assert [notified.recv(1000) for _ in range(2)] == [b"STATUS=not reloaded; idle", b"STATUS=idle"]


def test_manager_tells_a_reload_with_the_time_it_began_in_one_datagram(notified: socket.socket) -> None:
    """What Type=notify-reload wants: the two belong together."""
    before = time.monotonic_ns() // 1000
    with a_manager() as manager:
        manager.reloading()
    state, mark = notified.recv(1000).decode().split("\n")
    assert state == "RELOADING=1"
    assert mark.startswith("MONOTONIC_USEC=")
    assert before <= int(mark.partition("=")[2]) <= time.monotonic_ns() // 1000


# Takes descriptors as systemd passes them, and says what it and a child of its own find then.
TAKER = """
import json, os, socket, subprocess, sys
for place, number in enumerate([int(n) for n in sys.argv[2:]], start=3):
    os.dup2(number, place)
pid = {"own": str(os.getpid()), "other": "1", "none": ""}[sys.argv[1]]
os.environ |= {"LISTEN_PID": pid, "LISTEN_FDS": str(len(sys.argv) - 2), "LISTEN_FDNAMES": "a:b"}
from edged.host import systemd
found = systemd.listen_fds()
again = systemd.listen_fds()
child = "import os; print([v for v in os.environ if v.startswith('LISTEN_')], sorted(os.listdir('/proc/self/fd')))"
said = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, close_fds=False).stdout
names = [end.getsockname() for end in found]
print(json.dumps([names, len(again), said, [os.get_inheritable(end.fileno()) for end in found]]))
"""


def taken(pid: str, *passed: int) -> tuple[list[object], int, str, list[bool]]:
    """What a process finds to which these descriptors are passed, from number 10 on so that none is in the way."""
    copies = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in passed]
    command = [sys.executable, "-c", TAKER, pid, *map(str, copies)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, pass_fds=copies, cwd=ROOT, check=True)
    finally:
        for copy in copies:
            os.close(copy)
    names, again, said, inheritable = json.loads(done.stdout)
    return names, again, said, inheritable


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[list[socket.socket]]:
    """One Unix and one TCP socket that listen."""
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        unix.bind(str(tmp_path / "edged.sock"))
        unix.listen()
        yield [unix, tcp]


def test_listen_fds_are_the_passed_sockets_once_and_no_childs(listening: list[socket.socket]) -> None:
    """In order, known by their names; a child process finds neither the variables nor the descriptors."""
    names, again, said, inheritable = taken("own", *(end.fileno() for end in listening))
    assert names == [listening[0].getsockname(), list(listening[1].getsockname())]
    assert again == 0
    assert inheritable == [False, False]
    assert said.startswith("[] ")
    assert "'3'" in said, "the child's own descriptor for the folder"
    assert "'4'" not in said


@pytest.mark.parametrize("pid", ["other", "none"])
def test_listen_fds_of_another_process_are_not_ours(listening: list[socket.socket], pid: str) -> None:
    """As where a shell between systemd and us kept them; the variables go all the same."""
    names, _, said, _ = taken(pid, listening[0].fileno())
    assert names == []
    assert said.startswith("[] ")


def test_listen_fds_without_systemd_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables, no sockets."""
    for name in ("LISTEN_PID", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    assert systemd.listen_fds() == []


def test_listen_fds_leave_out_what_is_no_socket(listening: list[socket.socket]) -> None:
    """A file, say: the sockets beside it are served."""
    with open(os.devnull, encoding="utf-8") as file:  # noqa: PTH123  # a descriptor is wanted
        names, *_ = taken("own", file.fileno(), listening[0].fileno())
    assert names == [listening[0].getsockname()]


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


@pytest.mark.parametrize(
    ("watch", "write", "told"),
    [
        (None, None, None),
        ("", None, None),
        ("/run/pressure", None, (Path("/run/pressure"), b"")),
        ("/dev/null", "", (Path("/dev/null"), b"")),
        ("/sys/fs/cgroup/x/memory.pressure", "c29tZSAyMDAwMDAgMjAwMDAwMAA=", (..., b"some 200000 2000000\0")),
        ("/run/pressure", "no base64!", None),
        ("/run/pressure", "ü", None),
    ],
)
def test_memory_pressure_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, watch: str | None, write: str | None, told: Any
) -> None:
    """What is to be written there is base64."""
    for name, value in (("MEMORY_PRESSURE_WATCH", watch), ("MEMORY_PRESSURE_WRITE", write)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    found = systemd.memory_pressure()
    assert found == (told if told is None or told[0] is not ... else (Path(watch or ""), told[1]))
