"""How far a pull is, on stderr: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from edged.models import pull
from edged.models.pull import Progress

SLOWEST_RATE = 10_000  # bytes per second; below it nothing flows, and the time left would be days
SECONDS_BETWEEN_LINES = 3.0  # without a terminal: shows life, and does not fill a log


@contextmanager
def shown_progress() -> Iterator[pull.Report]:
    """A live bar on a terminal, else a line every few seconds; both on stderr."""
    if not sys.stderr.isatty():
        yield Lines(time.monotonic).report
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield Bars(bar).report


class Lines:
    """Progress for logs."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()

    def report(self, progress: Progress) -> None:
        if progress.note:
            print(f"{progress.file}: {progress.note}", file=sys.stderr, flush=True)
        elif self._clock() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = self._clock()
            print(f"{progress.file}: {amount(progress)}", file=sys.stderr, flush=True)


class Bars:
    """Progress for people: one bar a file, notes above the bars."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def report(self, progress: Progress) -> None:
        if progress.note:
            self._bar.console.print(f"{progress.file}: {progress.note}", markup=False, highlight=False)
            return
        if progress.file not in self._tasks:
            self._tasks[progress.file] = self._bar.add_task(progress.file, total=progress.total, text="")
        self._bar.update(self._tasks[progress.file], completed=progress.done, text=amount(progress))


def amount(progress: Progress) -> str:
    """ "120 of 491 MB, 8.1 MB/s, 46 s left", as far as it is known."""
    if progress.total is None:
        return f"{progress.done / 1e6:.0f} MB, {progress.rate / 1e6:.1f} MB/s"
    text = f"{progress.done / 1e6:.0f} of {progress.total / 1e6:.0f} MB"
    if progress.rate < SLOWEST_RATE:
        return text
    left_s = (progress.total - progress.done) / progress.rate
    left = f"{left_s:.0f} s" if left_s < 120 else f"{left_s / 60:.0f} min"
    return f"{text}, {progress.rate / 1e6:.1f} MB/s, {left} left"
