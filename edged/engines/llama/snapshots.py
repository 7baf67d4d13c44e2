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
import hashlib
import logging
import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.engines.llama import snapshot_file
from edged.engines.llama.fingerprint import model_fingerprint
from edged.engines.llama.sequence import MIN_SHARED_TOKENS, common_length
from edged.engines.llama.snapshot_file import SUFFIX, UNFINISHED, VERSION, Buffer, Damaged, Header, Key, Stopped
from edged.engines.llama.snapshot_worth import Worth

__all__ = ["Entry", "Key", "Shelf", "Snapshots", "Stats", "model_fingerprint"]

log = logging.getLogger(__name__)

# States that wait for the card lie in memory: two prefixes of 1,000 tokens of a 1.5B model, on a board with 1 GB.
MOST_QUEUED_BYTES = 64 * 2**20
# Left free on the disk: the store lies there too, and a request that cannot be stored is not accepted.
LEFT_FREE_BYTES = 64 * 2**20
RECORD_S = 86_400.0  # how long the use of a file may be known in memory only
CLOSE_S = 10.0  # a third of what the service manager allows for a stop; an SD card writes 100 MB meanwhile
SHORTEST_S = 1e-6  # what took no time at all took this long: rates stay finite
WORTH_FILE = "worth.json"


class Entry(Struct, frozen=True):
    """A stored state. computed_s: seconds that computing its tokens took on this board; name: its file's."""

    tokens: tuple[int, ...]
    n_bytes: int
    computed_s: float
    name: str


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


@dataclass(slots=True)
class _Job:
    """Something for the writer. n_bytes: memory that it holds meanwhile, for the state of this name."""

    run: Callable[[], None]
    n_bytes: int = 0
    name: str = ""


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
        self._jobs: deque[_Job] = deque()
        self._queued_bytes = 0
        self._writer: threading.Thread | None = None
        self._starting = threading.Lock()
        self._started = False
        self._end_at: float | None = None  # time.monotonic(); set: nothing new is taken
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
        prefix = _key_digest(key)
        with self._lock:
            names = [name for name, file in self._files.items() if name.startswith(prefix) and file.entry is None]
        for name in names:
            self._index(name, key)
        return Shelf(self, key, prefix)

    def forget_queued(self) -> int:
        """Drop the states that wait in memory to be written; they are computed again after a restart. Returns their
        bytes."""
        with self._lock:
            dropped = [job for job in self._jobs if job.n_bytes]
            self._jobs = deque(job for job in self._jobs if not job.n_bytes)
            freed = sum(job.n_bytes for job in dropped)
            self._queued_bytes -= freed
            self._pending.difference_update(job.name for job in dropped)
            self._lock.notify_all()
        return freed

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Take nothing any more; return when what is queued is written, or that takes too long. Nothing is left to do
        the second time."""
        with self._lock:
            if self._end_at is None:
                self._end_at = time.monotonic() + timeout_s
            self._lock.notify_all()
            writer = self._writer
        if writer is not None:
            writer.join(timeout_s + 1)  # it looks at the clock between two chunks
            if writer.is_alive():
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

    def _candidates(self, prefix: str) -> list[Entry]:
        with self._lock:
            return [f.entry for name, f in self._files.items() if f.entry is not None and name.startswith(prefix)]

    def _expected_s(self, entry: Entry, *, cached: bool) -> float:
        with self._lock:
            return self._worth.read_s(entry.n_bytes, cached=cached)

    def _is_cached(self, entry: Entry) -> bool:
        return snapshot_file.in_page_cache(self._folder / entry.name)

    def _turned_down(self, *, cached: bool) -> None:
        with self._lock:
            self._worth.forgive(cached=cached)

    def _read(self, entry: Entry, key: Key) -> tuple[bytes, float] | None:
        """The state, and the seconds that took."""
        path = self._folder / entry.name
        cached, began = self._is_cached(entry), time.monotonic()
        try:
            header, state = snapshot_file.read(path)
            _check_name(entry.name, key, header)
        except (OSError, Damaged) as error:
            self._cannot_read(entry.name, error)
            return None
        seconds = time.monotonic() - began
        with self._lock:
            self._worth.learn_read(entry.n_bytes, seconds, cached=cached)
            self._count(read_files=1)
            if self._worth.differs(self._worth_on_disk):
                self._post(_Job(self._write_worth))
        self._use(entry.name)
        return state, seconds

    def _has(self, name: str) -> bool:
        with self._lock:
            return name in self._files or name in self._pending

    def _use(self, name: str) -> None:
        with self._lock:
            file = self._files.get(name)
            if file is None:
                return
            file.used_at = self._now()
            if file.used_at - file.recorded_at >= RECORD_S:
                self._post(_Job(lambda: self._record_use(name)))

    def _wants(self, name: str, n_tokens: int, n_bytes: int, computed_s: float) -> bool:
        with self._lock:
            if self._end_at is not None or snapshot_file.most_bytes(n_tokens, n_bytes) > self.max_bytes:
                return False
            barred = self._worth.is_barred(name, n_tokens / max(computed_s, SHORTEST_S))
            if name in self._files or name in self._pending or barred:
                return False
            # After a reboot it comes from the medium, whatever the page cache does for it until then.
            if self._worth.read_s(n_bytes, cached=False) < computed_s:
                return True
            self._worth.forgive(cached=False)
            return False

    def _write(self, name: str, header: Callable[[], Header], state: memoryview, wait_s: float) -> bool:
        n_bytes = state.nbytes
        with self._lock:
            room = self._lock.wait_for(lambda: self._end_at is not None or self._has_room(n_bytes), wait_s)
            if not room or self._end_at is not None:
                return False
            self._pending.add(name)
            self._post(_Job(lambda: self._store(name, header, state), n_bytes, name))
            return True

    def _restored(self, entry: Entry, seconds: float) -> None:
        with self._lock:
            self._worth.learn_restore(entry.n_bytes, seconds)
            self._count(restored=1)

    def _give_up(self, entry: Entry, tokens_per_s: float) -> None:
        """Computing is faster: free its place, and remember that after a restart."""
        with self._lock:
            self._worth.bar(entry.name, tokens_per_s)
            self._post(_Job(self._write_worth))
        self._remove(entry.name, dropped=1)

    def _refuse(self, name: str, why: str) -> None:
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
            _check_name(name, key, header)
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
            self._refuse(name, str(error))
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

    def _has_room(self, n_bytes: int) -> bool:
        return self._queued_bytes == 0 or self._queued_bytes + n_bytes <= MOST_QUEUED_BYTES

    def _post(self, job: _Job) -> None:
        """Under the lock."""
        if self._end_at is not None:
            return
        self._jobs.append(job)
        self._queued_bytes += job.n_bytes
        if self._writer is None:  # a daemon thread: if the disk never answers, the process must still be able to end
            self._writer = threading.Thread(target=self._run, name="edged.snapshots", daemon=True)
            self._writer.start()
        self._lock.notify_all()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # of this thread alone: a model's threads wait for the slowest of them
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._jobs or self._end_at is not None)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            try:
                job.run()
            except Exception:  # whatever it is, a prefix can be computed
                log.exception("%s: a state could not be stored", self._folder)
            with self._lock:
                self._queued_bytes -= job.n_bytes
                self._lock.notify_all()

    def _goes_on(self) -> bool:
        return self._end_at is None or time.monotonic() < self._end_at

    def _store(self, name: str, header: Callable[[], Header], state: memoryview) -> None:
        try:
            self._ensure_free(state.nbytes)
            with self._lock:
                used_at = self._now()
            made = header()
            written = snapshot_file.write(self._folder / name, made, state, used_at, self._goes_on)
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


class Shelf:
    """The states of one loaded model. The engine thread's."""

    def __init__(self, owner: Snapshots, key: Key, prefix: str) -> None:
        self._owner = owner
        self._key = key
        self._prefix = prefix
        self._read_s: dict[str, float] = {}

    def best(
        self, tokens: Sequence[int], tokens_per_s: float | None = None, *, cuts: bool = True, already: int = 0
    ) -> Entry | None:
        """The state that saves most time for a prompt that begins with `tokens`; None where computing is expected to
        be as fast. What they share is `common_length(tokens, entry.tokens)`.

        Args:
            tokens_per_s: how fast prompts are computed now; None: as fast as when each state was written.
            cuts: the model's memory can keep the first part of a state; False: only whole states are offered.
            already: so many of the first tokens are computed already.
        """
        best, most = None, 0.0
        for entry in self._owner._candidates(self._prefix):
            shared = common_length(entry.tokens, tokens)
            if shared < MIN_SHARED_TOKENS or shared <= already or (shared < len(entry.tokens) and not cuts):
                continue
            rate = tokens_per_s or _rate(entry.tokens, entry.computed_s)
            cached = self._owner._is_cached(entry)
            saved = (shared - already) / rate - self._owner._expected_s(entry, cached=cached)
            if saved > most:
                best, most = entry, saved
            elif saved <= 0:
                self._owner._turned_down(cached=cached)
        return best

    def read(self, entry: Entry) -> bytes | None:
        """The state, every bit of it as it was written; None where it is gone or damaged (it is dropped then)."""
        done = self._owner._read(entry, self._key)
        if done is None:
            return None
        state, self._read_s[entry.name] = done
        return state

    def observe(self, entry: Entry, seconds: float, tokens_per_s: float | None = None) -> None:
        """A state was read and the model took it in, in so many seconds altogether. Where computing the whole of it
        is as fast, it is dropped, and not stored again before computing has become a lot slower."""
        self._owner._restored(entry, seconds - self._read_s.pop(entry.name, 0.0))
        rate = tokens_per_s or _rate(entry.tokens, entry.computed_s)
        if seconds >= len(entry.tokens) / rate:
            log.info("a state of %d tokens took %.2f s to read; computing is faster", len(entry.tokens), seconds)
            self._owner._give_up(entry, rate)

    def refuse(self, entry: Entry, why: str) -> None:
        """The model would not take the state in: it is dropped."""
        self._read_s.pop(entry.name, None)
        self._owner._refuse(entry.name, why)

    def has(self, tokens: Sequence[int]) -> bool:
        """Whether exactly these tokens are stored, or are being written. Counts as a use: they are worth keeping."""
        name = _name(self._key, tokens)
        self._owner._use(name)
        return self._owner._has(name)

    def wants(self, tokens: Sequence[int], n_bytes: int, computed_s: float) -> bool:
        """Whether `write` would take a state of so many bytes: ask before making a copy of it. Counts as a use of one
        that is stored already, as `has` does."""
        name = _name(self._key, tokens)
        self._owner._use(name)
        return self._owner._wants(name, len(tokens), n_bytes, computed_s)

    def write(self, tokens: Sequence[int], state: Buffer, computed_s: float, wait_s: float = 0.0) -> bool:
        """Store a state, soon: the writer does it. Nobody may change `state` any more.

        Args:
            computed_s: seconds that computing the tokens took.
            wait_s: how long to wait where so much is queued already that there is no room for it.

        Returns:
            False: not wanted (see `wants`), or no room in the queue.
        """
        view = memoryview(state).cast("B")
        if not self.wants(tokens, view.nbytes, computed_s):
            return False
        kept, name = tuple(tokens), _name(self._key, tokens)

        def header() -> Header:  # made by the writer: the digest takes a while
            return Header(self._key, kept, view.nbytes, computed_s, time.time(), snapshot_file.digest_of(view))

        return self._owner._write(name, header, view, wait_s)


def _rate(tokens: Sequence[int], computed_s: float) -> float:
    """Tokens/s."""
    return max(len(tokens), 1) / max(computed_s, SHORTEST_S)


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:  # a copy of it, say; the system texts of all agents are in there
        folder.chmod(0o700)


def _key_digest(key: Key) -> str:
    return hashlib.sha256(msgspec.msgpack.encode((VERSION, key))).hexdigest()[:16]


def _name(key: Key, tokens: Sequence[int]) -> str:
    """The file's name: another format, key or list of tokens has another one, so what does not fit is not even seen."""
    return f"{_key_digest(key)}-{hashlib.sha256(array('i', tokens).tobytes()).hexdigest()[:32]}{SUFFIX}"


def _check_name(name: str, key: Key, header: Header) -> None:
    """Digests in names are short, and files can be renamed."""
    if header.key != key or name != _name(key, header.tokens):
        raise Damaged("it holds something else than its name says")
