"""Files that grow while they are downloaded: hashed as they are written, complete or not there, one writer each."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from edged.models.pull.errors import PullFailed

T = TypeVar("T")

CHUNK = 1 << 20  # bytes per read or write: few system calls, and a Pi hashes it in some milliseconds
LOCK_POLL_S = 0.2  # flock cannot be awaited; a person who waits for another pull does not notice more


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Runs `work` in a thread; cancelled, it sets the event and waits until the thread is out.

    Without the waiting a cancelled pull would go on writing into a file whose lock somebody else already holds.
    """
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        raise


class Sink:
    """A file that is appended to and hashed at the same time.

    algorithm: a hashlib name; what is already in the file (of an earlier attempt) is kept up to `keep` bytes.
    """

    def __init__(self, path: Path, algorithm: str) -> None:
        self.path = path
        self.size = 0
        self._algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self._file = path.open("a+b")

    @classmethod
    async def open(cls, path: Path, algorithm: str = "sha256", *, keep: int | None = None) -> Sink:
        """Opens for appending after the first `keep` bytes (None: all that are there), which are hashed again."""
        sink = cls(path, algorithm)
        try:
            await in_thread(lambda stop: sink._rehash(keep, stop))
        except BaseException:
            sink.close()
            raise
        return sink

    def _rehash(self, keep: int | None, stop: threading.Event) -> None:
        if keep is not None:
            self._file.truncate(min(keep, self.path.stat().st_size))
        self._file.seek(0)
        while not stop.is_set() and (chunk := self._file.read(CHUNK)):
            self._hash.update(chunk)
            self.size += len(chunk)

    def write(self, chunk: bytes) -> None:
        """Appends; blocks for as long as the disk does."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """Forgets all that is there."""
        self._file.truncate(0)
        self._hash = hashlib.new(self._algorithm)
        self.size = 0

    def digest(self) -> bytes:
        """Hash of everything in the file."""
        return self._hash.digest()

    def sync(self) -> None:
        """What was written survives a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def publish(part: Path, final: Path) -> None:
    """Gives a finished file its name: readers see the old one or the new one, never half of it."""
    part.chmod(0o644)  # another user's daemon reads the models that this user pulled
    part.replace(final)
    folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the name, not only the bytes
    finally:
        os.close(folder)


def ensure_room(folder: Path, needed: int, what: str) -> None:
    """Raises PullFailed, with the numbers, unless `needed` bytes are free."""
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    if free < needed:
        raise PullFailed(
            f"{what} needs {mib(needed)} in {folder} and {mib(free)} are free: {mib(needed - free)} are missing"
        )


def mib(count: int) -> str:
    """Bytes for people."""
    return f"{count / (1 << 20):.1f} MiB"


async def sha256_of(path: Path, on_bytes: Callable[[int], None]) -> str:
    """Hex digest of a file; `on_bytes` gets the bytes read so far, from another thread."""

    def work(stop: threading.Event) -> str:
        hasher, done = hashlib.sha256(), 0
        with path.open("rb") as file:
            while not stop.is_set() and (chunk := file.read(CHUNK)):
                hasher.update(chunk)
                done += len(chunk)
                on_bytes(done)
        return hasher.hexdigest()

    return await in_thread(work)


@asynccontextmanager
async def exclusive(path: Path, on_wait: Callable[[], None]) -> AsyncIterator[None]:
    """Holds a lock file, which is gone afterwards; calls `on_wait` once when another process has it."""
    fd = await _locked(path, on_wait)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is dropped: nobody may lock a file that has no name any more
        os.close(fd)


async def _locked(path: Path, on_wait: Callable[[], None]) -> int:
    waiting = False
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(fd, path):
                return fd
        except BlockingIOError:
            if not waiting:
                waiting = True
                on_wait()
        os.close(fd)
        await asyncio.sleep(LOCK_POLL_S if waiting else 0)


def _is_still(fd: int, path: Path) -> bool:
    """Whether the locked file is the one with the name: its former holder may have removed it in between."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
