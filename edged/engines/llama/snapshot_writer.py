"""The thread that writes states to the disk, so that no step of a model waits for a card."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

# States that wait for the card lie in memory: two prefixes of 1,000 tokens of a 1.5B model, on a board with 1 GB.
MOST_QUEUED_BYTES = 64 * 2**20


@dataclass(slots=True)
class Job:
    """Something for the writer. n_bytes: memory that it holds meanwhile, for the state of this name."""

    run: Callable[[], None]
    n_bytes: int = 0
    name: str = ""


class Writer:
    """A bounded queue and its thread, which begins with the first job.

    Args:
        lock: guards this and whatever its owner shares with the jobs; never held while the disk is waited for.
    """

    def __init__(self, lock: threading.Condition) -> None:
        self._lock = lock
        self._jobs: deque[Job] = deque()
        self._queued_bytes = 0
        self._thread: threading.Thread | None = None
        self._end_at: float | None = None  # time.monotonic(); set: nothing new is taken

    @property
    def ends(self) -> bool:
        """Whether nothing is taken any more."""
        return self._end_at is not None

    def post(self, job: Job) -> None:
        """Queue a job; under the lock. What comes after the end is dropped."""
        if self.ends:
            return
        self._jobs.append(job)
        self._queued_bytes += job.n_bytes
        if self._thread is None:  # a daemon thread: if the disk never answers, the process must still be able to end
            self._thread = threading.Thread(target=self._run, name="edged.snapshots", daemon=True)
            self._thread.start()
        self._lock.notify_all()

    def wait_for_room(self, n_bytes: int, wait_s: float) -> bool:
        """Whether the queue takes so many bytes more; under the lock, which is let go of meanwhile."""
        return self._lock.wait_for(lambda: self.ends or self._has_room(n_bytes), wait_s) and not self.ends

    def drop_states(self) -> list[Job]:
        """Take the jobs that hold memory out of the queue; under the lock."""
        dropped = [job for job in self._jobs if job.n_bytes]
        self._jobs = deque(job for job in self._jobs if not job.n_bytes)
        self._queued_bytes -= sum(job.n_bytes for job in dropped)
        self._lock.notify_all()
        return dropped

    def close(self, timeout_s: float) -> bool:
        """Take nothing any more, and wait for what is queued; False where that takes too long."""
        with self._lock:
            if self._end_at is None:
                self._end_at = time.monotonic() + timeout_s
            self._lock.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s + 1)  # it looks at the clock between two chunks
        return thread is None or not thread.is_alive()

    def goes_on(self) -> bool:
        """Whether there is time to write more."""
        return self._end_at is None or time.monotonic() < self._end_at

    def _has_room(self, n_bytes: int) -> bool:
        return self._queued_bytes == 0 or self._queued_bytes + n_bytes <= MOST_QUEUED_BYTES

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # of this thread alone: a model's threads wait for the slowest of them
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._jobs or self.ends)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            try:
                job.run()
            except Exception:  # whatever it is, a prefix can be computed
                log.exception("a state of a model could not be stored", extra={"event": "snapshot_failed"})
            with self._lock:
                self._queued_bytes -= job.n_bytes
                self._lock.notify_all()
