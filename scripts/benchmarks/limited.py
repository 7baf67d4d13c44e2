"""A section of `memory`: two models in a cgroup of 800 MiB that has room for one, asked in turn and all at once.

Before each contestant the files leave the page cache, so that their pages are charged to its cgroup when they come
back. Peaks are of anonymous memory and mapped files, read every 20 ms; the kernel's own peak counts all page cache,
which it fills up to any limit, and only explains. llama.cpp's router keeps as many models as it is told: both, and one.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import board, cgroups, peers, siblings, subject
from benchmarks.calls import CallError, Connection, at_once
from benchmarks.cgroups import Group, NotPossible
from benchmarks.findings import finding, mib, without
from benchmarks.peers import PeerError, Router
from benchmarks.report import Row, say
from benchmarks.smaps import MIB
from benchmarks.streams import PATH
from benchmarks.subject import SubjectError
from edged.engines.llama import sizes

LIMIT_BYTES = 800 * MIB
SHARE = "98%"  # of the limit: the rest is the page cache's, whatever reads a file needs some
CONTEXT = 2048
SAMPLE_S = 0.02
PEER_SLOTS = 4
WAIT_S = 900.0  # for one answer: all the others may come first, with a load before each
REASONS = 3  # of failures, told in a row
QUESTIONS = ("What is a valve?", "What is a pump?", "What is a tank?", "What is a sensor?", "What is a relay?")

Ask = Callable[[str, str], None]  # model, text; raises what FAILURES has


FAILURES = (SubjectError, CallError, OSError, http.client.HTTPException)


@dataclass
class Work:
    """What became of the requests. failed: reasons; peak, cached_peak, budget: bytes; seconds: by kind of work."""

    failed: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kills: int = 0
    peak: int = 0
    cached_peak: int | None = None
    budget: int = 0


def rows(folder: Path, requests: int, peer_bin: Path | None) -> list[Row]:
    """Rows of all contestants; one that says why where the machine cannot limit memory."""
    files = {"first": board.model(), "second": siblings.sibling()}
    try:
        ours = _edged(folder / "edged", files, requests)
    except NotPossible as error:
        return [without("limited", f"not possible here: {error}")]
    theirs = _peers(folder, files, requests, peer_bin)
    about = ", ".join(f"{path.name} {mib(path.stat().st_size)} MiB" for path in files.values())
    peer = {name: work for name, work in theirs.items() if isinstance(work, Work)}
    told = " / ".join(name if isinstance(work, Work) else f"{name}: {work}" for name, work in theirs.items())

    def line(
        what: str, value: Callable[[Work], float | str], unit: str = "", at_most: float | None = None, **more: Any
    ) -> Row:
        beside = " / ".join(str(value(work)) for work in peer.values())
        return finding(f"limited: {what}", value(ours), unit, at_most=at_most, peer=beside, **more)

    lines = [line("kills", lambda work: work.kills, at_most=0, note=f"peer: {told}; {about}")]
    for kind, why in ours.failed.items():
        note = "; ".join(sorted(set(why))[:REASONS])
        lines += [line(f"failed requests {kind}", partial(_failures, kind), at_most=0, n=requests, note=note)]
    limit = f"the budget; the limit is {mib(LIMIT_BYTES)} MiB"
    lines += [
        line("peak of anonymous memory and mapped files", lambda w: mib(w.peak), "MiB", mib(ours.budget), note=limit),
        line("the kernel's peak, page cache included", _peak, "MiB"),
    ]
    return lines + [line(f"all requests {kind}", partial(_seconds, kind), "s", n=requests) for kind in ours.seconds]


def _failures(kind: str, work: Work) -> int:
    return len(work.failed[kind])


def _seconds(kind: str, work: Work) -> float:
    return round(work.seconds[kind], 1)


def _peak(work: Work) -> str | float:
    return "not told" if work.cached_peak is None else mib(work.cached_peak)


def _edged(folder: Path, files: dict[str, Path], requests: int) -> Work:
    models = {name: f'source = "file:{path}"\ncontext = {CONTEXT}\n' for name, path in files.items()}
    subject.write_config(folder, models, budget=SHARE)
    _forget(files)
    with cgroups.limited(LIMIT_BYTES) as group:
        with subject.running(folder, prefix=group.prefix) as daemon:

            def ask(model: str, text: str) -> None:
                with daemon.client(WAIT_S) as client:
                    subject.ask(client, model, text)

            with daemon.client() as client:
                budget = subject.budget(client)
            work = _done("edged", group, ask, list(files), requests)
        work.budget = budget
    return work


def _peers(folder: Path, files: dict[str, Path], requests: int, peer_bin: Path | None) -> dict[str, Work | str]:
    """By how it was started; a text where it was not, or came to nothing."""
    try:
        program = peers.llama_server(peer_bin)
    except PeerError as error:
        return {"llama-server": str(error).splitlines()[-1]}
    if not peers.has_router(program):
        return {program.label: "has no router mode"}
    models_dir = folder / "models"
    models_dir.mkdir()
    for name, path in files.items():
        (models_dir / f"{name}.gguf").symlink_to(path)
    found: dict[str, Work | str] = {}
    for most in (len(files), 1):
        label = f"{program.label} --models-max {most}"
        router = Router(
            models_dir=models_dir,
            models_max=most,
            slots=PEER_SLOTS,
            cells=sizes.context_cells(CONTEXT),
            threads=board.threads(),
        )
        _forget(files)
        try:
            with (
                cgroups.limited(LIMIT_BYTES) as group,
                peers.serving_router(program, router, folder, group.prefix) as peer,
            ):
                found[label] = _done(label, group, _peer_ask(peer.port), list(files), requests)
        except PeerError as error:
            found[label] = str(error).splitlines()[0]
    return found


def _peer_ask(port: int) -> Ask:
    def ask(model: str, text: str) -> None:
        connection = Connection.tcp(port, timeout_s=WAIT_S)
        try:
            connection.post(
                PATH,
                {
                    "model": model,
                    "messages": [{"role": "user", "content": text}],
                    "max_tokens": subject.ANSWER_TOKENS,
                    "temperature": 0,
                },
            )
        finally:
            connection.close()

    return ask


def _done(label: str, group: Group, ask: Ask, models: list[str], requests: int) -> Work:
    """Both kinds of work, and what the cgroup says of them."""

    def one(number: int) -> str | None:
        try:
            ask(models[number % len(models)], f"{QUESTIONS[number % len(QUESTIONS)]} Answer number {number}, briefly.")
        except FAILURES as error:
            return str(error).splitlines()[0] if str(error) else type(error).__name__
        return None

    def in_turn() -> list[str | None]:
        return [one(number) for number in range(requests)]

    def together() -> list[str | None]:
        return at_once([lambda number=number: one(number) for number in range(requests)])

    work = Work()
    with _peak_of(group) as peak:
        for kind, run in (("in turn", in_turn), ("at once", together)):
            say(f"limited: {label}, {requests} requests {kind}")
            began = time.monotonic()
            work.failed[kind] = [why for why in run() if why is not None]
            work.seconds[kind] = time.monotonic() - began
    work.peak, work.kills, work.cached_peak = peak[0], group.kills(), group.peak()
    return work


@contextlib.contextmanager
def _peak_of(group: Group) -> Iterator[list[int]]:
    """The most that is used while the block runs: a list of that one number."""
    peak = [group.used()]
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            peak[0] = max(peak[0], group.used())

    sampling = threading.Thread(target=sample)
    sampling.start()
    try:
        yield peak
    finally:
        stop.set()
        sampling.join()


def _forget(files: dict[str, Path]) -> None:
    """Out of the page cache with them, as far as nobody maps them."""
    for path in files.values():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
