"""States of prefixes on the disk: computed once on this board, and not again after an unload, a restart, a reboot.

The engine thread looks up and reads; one thread of its own writes, so that no step waits for a card. Everything that
goes wrong here costs a computation and nothing else: a damaged file is dropped, a full disk leaves things as they are.

What is kept is bounded (`max_bytes`); what was used longest ago goes first. Flash wears by writing, so nothing is
written twice, nothing is written that reading would not beat, and using a file writes nothing: when it was used is in
its modification time, set at the end and otherwise once a day (a board that is switched off has no end).

A file: `snapshot_file`. What is worth reading: `snapshot_worth`. Which model it is: `fingerprint`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.engines.llama import snapshot_file
from edged.engines.llama.fingerprint import model_fingerprint
from edged.engines.llama.snapshot_file import (
    SUFFIX,
    UNFINISHED,
    Damaged,
    Header,
    Key,
    Stopped,
    check_name,
    key_digest,
)
from edged.engines.llama.snapshot_shelf import SHORTEST_S, Entry, Shelf
from edged.engines.llama.snapshot_worth import Worth
from edged.engines.llama.snapshot_writer import Job, Writer

__all__ = ["Entry", "Key", "Shelf", "Snapshots", "Stats", "model_fingerprint"]

log = logging.getLogger(__name__)

# Left free on the disk: the store lies there too, and a request that cannot be stored is not accepted.
LEFT_FREE_BYTES = 64 * 2**20
RECORD_S = 86_400.0  # how long the use of a file may be known in memory only
CLOSE_S = 10.0  # a third of what the service manager allows for a stop; an SD card writes 100 MB meanwhile
WORTH_FILE = "worth.json"


class Stats(Struct, frozen=True):
    """What is there, and what happened since the start.

    files, bytes: on the disk now, of all models and versions.
    written_files, written_bytes: given to the disk.
    read_files: read whole and right; restored: of these, taken in by a model.
    refused: damaged, or the runtime would not take them.
    dropped: removed for their number of bytes, or because computing is faster.
    """

    files: int = 0
    bytes: int = 0
    written_files: int = 0
    written_bytes: int = 0
    read_files: int = 0
    restored: int = 0
    refused: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _File:
    """A file in the folder. Times in seconds since the epoch; they are compared with each other only."""

    size: int
    used_at: float
    recorded_at: float
    entry: Entry | None = None


class Snapshots:
    """The folder. Making one touches nothing: `start`, or the first `open`, does.

    Args:
        folder: made with mode 0700; nobody else writes into it.
        max_bytes: of all files together. While one is written the folder has that much more. 0: nothing is kept.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._folder = folder
        self._lock = threading.Condition()  # guards all below; never held while the disk is waited for
        self._files: dict[str, _File] = {}
        self._pending: set[str] = set()  # names that are being written
        self._writer = Writer(self._lock)
        self._starting = threading.Lock()
        self._started = False
        self._worth = Worth()
        self._worth_on_disk = Worth()
        self._trouble: str | None = None  # why the last write failed, as it was logged
        self._counted = Stats()

    def start(self) -> None:
        """Look through the folder: remove what a crash left, and what is too much. Blocks; never raises."""
        with self._starting:  # whoever comes second waits: an index in the making has nothing in it
            if not self._started:
                self._start()
                self._started = True

    def _start(self) -> None:
        try:
            if self.max_bytes:
                _make_private(self._folder)
            files = self._look_through()
        except FileNotFoundError:  # there never was one, and nothing is to be kept
            return
        except OSError as error:
            self._say(f"{self._folder} cannot be used: {error.strerror}")
            return
        worth = self._read_worth()
        with self._lock:
            self._files, self._worth, self._worth_on_disk = files, worth, worth.copy()
        self._evict()

    def open(self, key: Key) -> Shelf:
        """The states that fit a loaded model: reads their headers."""
        self.start()
        prefix = key_digest(key)
        with self._lock:
            names = [name for name, file in self._files.items() if name.startswith(prefix) and file.entry is None]
        for name in names:
            self._index(name, key)
        return Shelf(self, key, prefix)

    def forget_queued(self) -> int:
        """Drop the states that wait in memory to be written; they are computed again after a restart. Returns their
        bytes."""
        with self._lock:
            dropped = self._writer.drop_states()
            self._pending.difference_update(job.name for job in dropped)
        return sum(job.n_bytes for job in dropped)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Take nothing any more; return when what is queued is written, or that takes too long. Nothing is left to do
        the second time."""
        if not self._writer.close(timeout_s):
            log.warning("%s: the disk does not answer; what was not written yet is lost", self._folder)
            return
        with self._lock:
            used = [name for name, file in self._files.items() if file.used_at > file.recorded_at]
        for name in used:
            self._record_use(name)
        self._write_worth()

    @property
    def stats(self) -> Stats:
        """What is there and what happened; from any thread."""
        with self._lock:
            return msgspec.structs.replace(
                self._counted, files=len(self._files), bytes=sum(file.size for file in self._files.values())
            )

    # What a shelf does. The engine thread calls these.

    def candidates(self, prefix: str) -> list[Entry]:
        with self._lock:
            return [f.entry for name, f in self._files.items() if f.entry is not None and name.startswith(prefix)]

    def expected_s(self, entry: Entry, *, cached: bool) -> float:
        with self._lock:
            return self._worth.read_s(entry.n_bytes, cached=cached)

    def is_cached(self, entry: Entry) -> bool:
        return snapshot_file.in_page_cache(self._folder / entry.name)

    def turned_down(self, *, cached: bool) -> None:
        with self._lock:
            self._worth.forgive(cached=cached)

    def read(self, entry: Entry, key: Key) -> tuple[bytes, float] | None:
        """The state, and the seconds that took."""
        path = self._folder / entry.name
        cached, began = self.is_cached(entry), time.monotonic()
        try:
            header, state = snapshot_file.read(path)
            check_name(entry.name, key, header)
        except (OSError, Damaged) as error:
            self._cannot_read(entry.name, error)
            return None
        seconds = time.monotonic() - began
        with self._lock:
            self._worth.learn_read(entry.n_bytes, seconds, cached=cached)
            self._count(read_files=1)
            if self._worth.differs(self._worth_on_disk):
                self._writer.post(Job(self._write_worth))
        self.use(entry.name)
        return state, seconds

    def has(self, name: str) -> bool:
        with self._lock:
            return name in self._files or name in self._pending

    def use(self, name: str) -> None:
        with self._lock:
            file = self._files.get(name)
            if file is None:
                return
            file.used_at = self._now()
            if file.used_at - file.recorded_at >= RECORD_S:
                self._writer.post(Job(lambda: self._record_use(name)))

    def wants(self, name: str, n_tokens: int, n_bytes: int, computed_s: float) -> bool:
        with self._lock:
            if self._writer.ends or snapshot_file.most_bytes(n_tokens, n_bytes) > self.max_bytes:
                return False
            barred = self._worth.is_barred(name, n_tokens / max(computed_s, SHORTEST_S))
            if name in self._files or name in self._pending or barred:
                return False
            # After a reboot it comes from the medium, whatever the page cache does for it until then.
            if self._worth.read_s(n_bytes, cached=False) < computed_s:
                return True
            self._worth.forgive(cached=False)
            return False

    def write(self, name: str, header: Callable[[], Header], state: memoryview, wait_s: float) -> bool:
        n_bytes = state.nbytes
        with self._lock:
            if not self._writer.wait_for_room(n_bytes, wait_s):
                return False
            self._pending.add(name)
            self._writer.post(Job(lambda: self._store(name, header, state), n_bytes, name))
            return True

    def restored(self, entry: Entry, seconds: float) -> None:
        with self._lock:
            self._worth.learn_restore(entry.n_bytes, seconds)
            self._count(restored=1)

    def give_up(self, entry: Entry, tokens_per_s: float) -> None:
        """Computing is faster: free its place, and remember that after a restart."""
        with self._lock:
            self._worth.bar(entry.name, tokens_per_s)
            self._writer.post(Job(self._write_worth))
        self._remove(entry.name, dropped=1)

    def refuse(self, name: str, why: str) -> None:
        log.warning("%s is dropped and will be computed anew: %s", self._folder / name, why)
        self._remove(name, refused=1)

    # The index

    def _look_through(self) -> dict[str, _File]:
        found: dict[str, _File] = {}
        for path in self._folder.iterdir():
            if path.suffix == UNFINISHED:
                with contextlib.suppress(OSError):  # a read-only disk can still be read
                    path.unlink()
            elif path.suffix == SUFFIX and path.is_file():
                state = path.stat()
                found[path.name] = _File(state.st_size, state.st_mtime, state.st_mtime)
        return found

    def _index(self, name: str, key: Key) -> None:
        """Read the header of a file whose name says it fits."""
        try:
            header = snapshot_file.read_header(self._folder / name)
            check_name(name, key, header)
        except (OSError, Damaged) as error:
            self._cannot_read(name, error)
            return
        entry = Entry(header.tokens, header.n_bytes, header.computed_s, name)
        with self._lock:
            if name in self._files:
                self._files[name].entry = entry

    def _cannot_read(self, name: str, error: OSError | Damaged) -> None:
        """What is damaged goes; what is gone, or is not for us to read, is forgotten and may be written anew."""
        if isinstance(error, Damaged) or error.errno == errno.EIO:
            self.refuse(name, str(error))
            return
        if not isinstance(error, FileNotFoundError):
            log.warning("%s cannot be read and is not used: %s", self._folder / name, error.strerror)
        with self._lock:
            self._files.pop(name, None)

    def _remove(self, name: str, **counted: int) -> None:
        """Out of the index and off the disk, unless that is read-only. Nobody writes the name meanwhile: this is the
        writer, or the thread that would ask it to."""
        with self._lock:
            if self._files.pop(name, None) is not None:
                self._count(**counted)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()

    def _evict(self) -> None:
        """Remove what was used longest ago until the bound is kept."""
        while True:
            with self._lock:
                if sum(file.size for file in self._files.values()) <= self.max_bytes:
                    return
                oldest = min(self._files, key=lambda name: self._files[name].used_at)
            self._remove(oldest, dropped=1)

    def _now(self) -> float:
        """Later than every use that is known, whatever the clock says: a board without a battery begins in 1970."""
        latest = max((file.used_at for file in self._files.values()), default=0.0)
        return max(time.time(), latest + 0.001)

    def _count(self, **more: int) -> None:
        now = {name: getattr(self._counted, name) + count for name, count in more.items()}
        self._counted = msgspec.structs.replace(self._counted, **now)

    # The writer

    def _store(self, name: str, header: Callable[[], Header], state: memoryview) -> None:
        try:
            self._ensure_free(state.nbytes)
            with self._lock:
                used_at = self._now()
            made = header()
            written = snapshot_file.write(self._folder / name, made, state, used_at, self._writer.goes_on)
        except OSError as error:
            self._say(f"{self._folder} takes no states of models: {error.strerror}")
        except Stopped:
            pass
        else:
            self._say(None)
            entry = Entry(made.tokens, made.n_bytes, made.computed_s, name)
            with self._lock:
                self._files[name] = _File(written, used_at, used_at, entry)
                self._count(written_files=1, written_bytes=written)
            self._evict()
        finally:
            with self._lock:
                self._pending.discard(name)

    def _ensure_free(self, n_bytes: int) -> None:
        """OSError where it would fill the disk, before anything is written."""
        state = os.statvfs(self._folder)
        if state.f_bavail * state.f_frsize < n_bytes + LEFT_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _record_use(self, name: str) -> None:
        with self._lock:
            file = self._files.get(name)
            if file is None:
                return
            used_at = file.recorded_at = file.used_at
        with contextlib.suppress(OSError):
            os.utime(self._folder / name, (used_at, used_at))

    def _say(self, trouble: str | None) -> None:
        """Log a trouble once, and its end."""
        if trouble and trouble != self._trouble:
            log.warning("%s; prefixes are computed anew after a restart", trouble)
        elif self._trouble and not trouble:
            log.info("%s takes states of models again", self._folder)
        self._trouble = trouble

    # What was learned

    def _read_worth(self) -> Worth:
        try:
            return msgspec.json.decode((self._folder / WORTH_FILE).read_bytes(), type=Worth)
        except (OSError, ValueError, RecursionError):  # gone, or damaged in any way
            return Worth()

    def _write_worth(self) -> None:
        with self._lock:
            if not self._started or not self._worth.differs(self._worth_on_disk):
                return
            encoded = msgspec.json.encode(self._worth)
            self._worth_on_disk = self._worth.copy()
        path = self._folder / WORTH_FILE
        with contextlib.suppress(OSError):
            unfinished = path.with_suffix(UNFINISHED)
            unfinished.write_bytes(encoded)  # no fsync: half of it, or none, means the first guesses
            unfinished.replace(path)


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:  # a copy of it, say; the system texts of all agents are in there
        folder.chmod(0o700)
