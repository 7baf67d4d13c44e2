"""A section of `memory`: memory gets scarce while one model is busy and another is idle.

First told, through a FIFO as $MEMORY_PRESSURE_WATCH: a byte, and further ones as the kernel goes on to send them while
the pressure lasts. Then for real: in a cgroup a process takes memory until tasks wait for it; the signal then is the
kernel's own count of stalls, by the threshold that systemd sets for services.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import cgroups, subject
from benchmarks.cgroups import Group, NotPossible
from benchmarks.findings import finding, mib, without
from benchmarks.report import Row, say
from benchmarks.smaps import MIB
from benchmarks.subject import Events, Subject, SubjectError
from edged.client import EdgedCallError

GONE_S = 1.0
WATCH_S = 10.0  # for the daemon to open the FIFO, and for an idle model to go
AGAIN_S = 0.25  # between two signals
BACK_S = 120.0  # until an unloaded model must answer again: refusals meanwhile are edged's right, and counted
REQUEST_S = 600.0
CONTEXT = 2048
# An answer that lasts while all this happens; the schema does not let the model end sooner.
LONG = {"type": "string", "minLength": 3000, "maxLength": 3100}
LONG_TOKENS = 1200
LIMIT_BYTES = 1200 * MIB  # both models fit, and there is something to take
STEP_BYTES = 32 * MIB  # taken at a time
STEP_S = 0.1
LEFT_BYTES = 24 * MIB  # of the limit, never taken: without swap the kernel would kill the daemon, not warn it
STALLS = Path("/proc/pressure/memory")
STALL_S, WINDOW_S = 0.2, 2.0  # systemd's MemoryPressureThresholdSec= and its window
HOG = """
import sys
held = []
for line in sys.stdin:
    held.append(b"x" * int(line))
    print(len(held), flush=True)
"""


@dataclass
class Busy:
    """A long request in a thread; `why` is the reason where it failed."""

    thread: threading.Thread | None = None
    begun: threading.Event = field(default_factory=threading.Event)
    ended_at: float = 0.0
    why: str = ""


def rows(folder: Path, idle: str, busy: str) -> list[Row]:
    """Rows of both.

    Args:
        idle, busy: models of the catalog.
    """
    models = {"idle": subject.catalog_model(idle, CONTEXT), "busy": subject.catalog_model(busy, CONTEXT)}
    found = _told(folder / "told", models)
    try:
        return found + _real(folder / "real", models)
    except NotPossible as error:
        return [*found, without("pressure: real", f"not possible here: {error}")]


# -- told --------------------------------------------------------------------------------------------------------------


def _told(folder: Path, models: dict[str, str]) -> list[Row]:
    say("pressure: signals through a FIFO")
    subject.write_config(folder, models)
    fifo = folder / "pressure"
    os.mkfifo(fifo)
    with (
        subject.running(folder, MEMORY_PRESSURE_WATCH=str(fifo)) as daemon,
        _writing(fifo) as signals,
        _at_work(daemon) as (events, busy),
    ):
        began = time.monotonic()
        sent = 0
        gone = None
        while gone is None and time.monotonic() - began < WATCH_S:
            os.write(signals, b"x")
            sent += 1
            gone = events.first(_idle_gone, AGAIN_S, since=began)
        told = f"{sent} signals; {', '.join(events.since(began)) or 'no event'}"
        return _rows("signal", gone and gone[0] - began, told, daemon, busy, began)


@contextlib.contextmanager
def _writing(fifo: Path) -> Iterator[int]:
    """Its end for signals; SubjectError where nobody listens."""
    until = time.monotonic() + WATCH_S
    while True:
        try:
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:
            if time.monotonic() > until:
                raise SubjectError("the daemon does not watch the FIFO of $MEMORY_PRESSURE_WATCH") from None
            time.sleep(subject.POLL_S)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# -- real --------------------------------------------------------------------------------------------------------------


def _real(folder: Path, models: dict[str, str]) -> list[Row]:
    if not STALLS.exists():
        raise NotPossible(f"the kernel has no {STALLS}")
    say("pressure: a process takes memory")
    subject.write_config(folder, models)
    with (
        cgroups.limited(LIMIT_BYTES) as group,
        subject.running(folder, prefix=group.prefix) as daemon,
        _at_work(daemon) as (events, busy),
        _hog(group) as hog,
    ):
        began = time.monotonic()
        signal, gone, taken = _squeeze(group, hog, events, began)
        told = f"{mib(taken)} MiB taken, {group.kills()} kills; {', '.join(events.since(began)) or 'no event'}"
        if signal is None:
            signal = time.monotonic() if gone is None else gone
            told = f"before stalls of {STALL_S} s in {WINDOW_S} s; {told}"
        _end(hog)
        return _rows("stalls", None if gone is None else max(0.0, gone - signal), told, daemon, busy, signal)


def _squeeze(
    group: Group, hog: subprocess.Popen[str], events: Events, began: float
) -> tuple[float | None, float | None, int]:
    """Take memory until the idle model is gone; (when the stalls passed the threshold, when it was gone, bytes)."""
    signal, taken = None, 0
    stalls = [(began, _stalled_s())]
    while True:
        gone = events.first(_idle_gone, STEP_S, since=began)
        now = time.monotonic()
        stalls = [(at, total) for at, total in stalls if now - at <= WINDOW_S] + [(now, _stalled_s())]
        if signal is None and stalls[-1][1] - stalls[0][1] >= STALL_S:
            signal = now
        if gone is not None or now - (signal or now) > WATCH_S or now - began > BACK_S:
            return signal, gone and gone[0], taken
        if group.anonymous() + STEP_BYTES + LEFT_BYTES < group.limit:
            taken += STEP_BYTES
            _take(hog)


def _stalled_s() -> float:
    """Seconds in which some task has waited for memory since the start of the board."""
    some = STALLS.read_text(encoding="utf-8").splitlines()[0]
    return int(some.rsplit("total=", 1)[1]) / 1e6


@contextlib.contextmanager
def _hog(group: Group) -> Iterator[subprocess.Popen[str]]:
    """A process in the cgroup that takes so much for each line, and says so."""
    command = [*group.prefix, sys.executable, "-c", HOG]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        _end(process)


def _take(hog: subprocess.Popen[str]) -> None:
    assert hog.stdin is not None
    assert hog.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # the kernel took it: that is counted as a kill
        hog.stdin.write(f"{STEP_BYTES}\n")
        hog.stdin.flush()
        hog.stdout.readline()


def _end(hog: subprocess.Popen[str]) -> None:
    hog.kill()
    hog.wait()


# -- both --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _at_work(daemon: Subject) -> Iterator[tuple[Events, Busy]]:
    """One model loaded and idle, the other in the middle of a long answer."""
    with daemon.client() as client:
        subject.ask(client, "idle")
        subject.ask(client, "busy")
        if not subject.resident(client, "idle"):
            raise SubjectError("the two models do not fit into the budget together, so none can be idle: --model")
    events, busy = Events(daemon), Busy()

    def work() -> None:
        try:
            with daemon.client() as client:
                subject.ask(
                    client,
                    "busy",
                    "Tell of the sea.",
                    LONG_TOKENS,
                    response_schema=LONG,
                    on_text=lambda _: busy.begun.set(),
                )
        except SubjectError as error:
            busy.why = str(error)
        busy.ended_at = time.monotonic()
        busy.begun.set()

    busy.thread = threading.Thread(target=work)
    busy.thread.start()
    busy.begun.wait(REQUEST_S)
    try:
        yield events, busy
    finally:
        busy.thread.join()


def _idle_gone(event: dict[str, Any]) -> bool:
    return event["event"] == "model_unloaded" and event["model"] == "idle"


def _rows(name: str, gone_s: float | None, told: str, daemon: Subject, busy: Busy, signal: float) -> list[Row]:
    """What came of it: `gone_s` is None where the idle model stayed."""
    assert busy.thread is not None
    back_s, refusals, why = _back(daemon)
    busy.thread.join()
    outlived = busy.ended_at > signal + (gone_s or 0.0)
    return [
        finding(
            f"pressure, {name}: until the idle model is gone",
            "it stayed" if gone_s is None else round(gone_s, 3),
            "s",
            at_most=GONE_S,
            note=told,
        ),
        finding(
            f"pressure, {name}: busy requests that failed",
            int(bool(busy.why)),
            at_most=0,
            n=1,
            note=busy.why or ("" if outlived else "it had ended before: nothing is shown by it"),
        ),
        finding(
            f"pressure, {name}: until the model that went answers again",
            why or round(back_s, 3),
            "s",
            at_most=BACK_S,
            note=f"after {refusals} refusals",
        ),
    ]


def _back(daemon: Subject) -> tuple[float, int, str]:
    """(seconds until it answered, refusals before, why it never did)."""
    began, refusals = time.monotonic(), 0
    with daemon.client() as client:
        while True:
            try:
                reply = client.ask(subject.QUESTION, agent="ask-idle", max_tokens=subject.ANSWER_TOKENS)
                why = "" if reply["status"] == "done" else str(reply["error"])
            except EdgedCallError as error:
                why = str(error)
            taken = time.monotonic() - began
            if not why or taken > BACK_S:
                return taken, refusals, why
            refusals += 1
            time.sleep(AGAIN_S)
