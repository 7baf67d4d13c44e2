"""One SQLite file, one thread that writes, one that reads.

Everything queued while the writer was busy goes into one transaction (group commit): under load many requests share
one fsync. A caller says whether it waits for the disk: a `durable` write is on the medium when its await returns, a
lazy one survives the death of the process but may be lost with the power. One that is also `patient` waits a moment for
others to share their transaction, so that it costs the medium no pages of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import apsw

from edged.errors import ConfigError
from edged.store import opening
from edged.store.opening import BUSY_MS, PAGE_BYTES, WAL_BYTES
from edged.store.recovery import salvage
from edged.store.recovery.salvage import Salvaged

log = logging.getLogger("edged.store")
T = TypeVar("T")
Work = Callable[[apsw.Connection], T]
Outcome = tuple[Any, BaseException | None]

GROUP = 512  # most pieces of work in one transaction: bounds how long the first of them waits for its commit
LINGER_S = 0.05  # a patient write waits so long for company: at 20 requests a second and more it always has some
# Synced commits: some at once, so that a request alone never waits, and then so many a second, which is what 200
# requests a second may cost (0.2 each, checkpoints included). Each then waits for 29 ms at most, twice. A group of
# ENOUGH goes at once.
SYNCS_AT_ONCE, SYNCS_A_SECOND = 8, 35.0
ENOUGH = 16
# Where less came meanwhile, several times in a row, there is nothing to be gained: a few clients, each of whom waits
# for an answer before the next question. Then nobody waits for so long, until it is tried again. 200 requests a second
# are 11 in 29 ms.
COMPANY, ALONE_S = 5, 10.0
LONELY = 4  # times: a pause of all clients for a moment must not cost ten seconds in which nothing is shared
FRAME_HEADER = 24  # bytes that the WAL adds to a page; the first four are its number
PAGE_NUMBER_BYTES, LOG_HEADER = 4, 32  # and what the WAL begins with
CHECKPOINT_PAGES = 4000  # 2 MiB of WAL: fewer checkpoints wear flash less, and this much is replayed in milliseconds
READER_MS, READER_S = 50, 1.0  # somebody who reads is waited for so long, so often; our own reads are done sooner
CHECKPOINT_SYNCS = 2  # of the WAL before its pages are copied, of the file behind it

UNUSABLE_FOLDER = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError)


class Written(NamedTuple):
    """What the file has cost the medium since the start: fsyncs, and bytes of the log and of the file."""

    syncs: int = 0
    bytes: int = 0


class _Item(NamedTuple):
    work: Callable[[apsw.Connection], Any]
    durable: bool
    patient: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Database:
    """The owner of a file. `start` before use; after `stop` nothing is taken any more.

    Args:
        mend: puts right what was salvaged of a damaged file (see `salvage`).
        on_damage: the file turned out to be damaged while it was in use; called in the loop. Whoever is told ends: the
            next start salvages it.

    Attributes:
        salvaged: what became of a damaged file at the start.
    """

    def __init__(
        self,
        path: Path,
        migrations: tuple[str, ...],
        *,
        mend: Callable[[apsw.Connection], None] = lambda c: None,
        on_damage: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._path = path
        self._migrations = migrations
        self._mend = mend
        self._on_damage = on_damage
        self.salvaged: Salvaged | None = None
        self._writes: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = False
        self._progress = time.monotonic()
        # Of the WAL, how many of them the last checkpoint had copied, and when the next one is made.
        self._wal_pages, self._copied_pages, self._checkpoint_at = 0, 0, CHECKPOINT_PAGES
        self._tried = 0.0  # the last checkpoint, monotonic
        self.written = Written()

    async def start(self) -> None:
        """Open or create the file and bring its tables up to date.

        Raises:
            ConfigError: the folder cannot be written, or the file is no database or was made by a newer edged.
        """
        try:
            connection, self.salvaged = await asyncio.to_thread(
                opening.open_or_salvage, self._path, self._migrations, self._mend
            )
        except (apsw.CantOpenError, apsw.ReadOnlyError, *UNUSABLE_FOLDER) as error:
            raise ConfigError(str(self._path), "", f"the store cannot be opened: {error}") from None
        reader = await asyncio.to_thread(opening.open_reader, self._path, connection)
        self._threads = [
            threading.Thread(target=self._write_loop, args=(connection,), name="edged.store.writer", daemon=True),
            threading.Thread(target=self._read_loop, args=(reader,), name="edged.store.reader", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    async def stop(self) -> None:
        """Finish what is queued, close both connections. The file is a single one afterwards (no WAL left)."""
        threads, self._threads = self._threads, []  # from here on nothing is taken: what came now would never be run
        # The reader first: only a connection that may write, and is the last one, can put the WAL away.
        for thread, work in zip(reversed(threads), (self._reads, self._writes), strict=False):
            work.put(None)
            await asyncio.to_thread(thread.join)

    async def write(self, work: Work[T], *, durable: bool = True, patient: bool = False) -> T:
        """Run `work` on the writer; returns when its transaction is committed. An exception of `work` undoes its own
        changes only, and is raised here.

        Args:
            durable: it is on the medium then.
            patient: nobody waits for it; it may take LINGER_S longer.
        """
        return await self.post(work, durable=durable, patient=patient)

    def post(self, work: Work[T], *, durable: bool = True, patient: bool = False) -> asyncio.Future[T]:
        """As `write`, for whoever must hear of a commit before anybody hears of a later one: callbacks of the futures
        come in the order of the commits."""
        return cast("asyncio.Future[T]", self._post(self._writes, work, durable, patient=patient))

    async def read(self, work: Work[T]) -> T:
        """Run `work` on the read-only connection."""
        return cast(T, await self._post(self._reads, work, False))

    def progress(self) -> tuple[bool, float]:
        """Whether the writer has work, and when (time.monotonic) it last finished some. No locks, no I/O."""
        return self._busy or not self._writes.empty(), self._progress

    @property
    def overgrown(self) -> int:
        """Bytes of the log beyond what it has by itself: somebody has been reading an old state of the file."""
        return max(0, self._wal_pages * (PAGE_BYTES + FRAME_HEADER) - WAL_BYTES)

    def _post(
        self, where: queue.SimpleQueue[_Item | None], work: Work[Any], durable: bool, *, patient: bool = False
    ) -> asyncio.Future[Any]:
        if not self._threads:
            raise RuntimeError("the store is not running")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if where is self._writes and not self._busy and self._writes.empty():
            self._progress = time.monotonic()  # idle until now: the watchdog counts from here
        where.put(_Item(work, durable, patient, loop, future))
        return future

    def _write_loop(self, connection: apsw.Connection) -> None:
        connection.set_wal_hook(self._committed)
        pace = SyncLimiter(time.monotonic())
        while (items := _take(self._writes, pace)) is not None:
            self._busy = True
            if wanted := sum(item.durable for item in items):
                self._count(syncs=1)
            self._look_for_damage(items, _commit(connection, items))
            if wanted:
                pace.synced(time.monotonic(), wanted)
            late = self.overgrown and time.monotonic() - self._tried > READER_S
            if late or self._wal_pages >= self._checkpoint_at:
                self._checkpoint(connection)
            self._progress = time.monotonic()
            self._busy = False
        connection.close()

    def _committed(self, _: apsw.Connection, __: str, pages: int) -> int:
        """SQLite's hook: the WAL has so many pages now; fewer than before: it began anew, with a sync of its header."""
        if pages < self._wal_pages:
            self._began_anew()
        new, self._wal_pages = pages - self._wal_pages, pages
        self._count(size=new * (PAGE_BYTES + FRAME_HEADER))
        return apsw.SQLITE_OK

    def _began_anew(self) -> None:
        self._wal_pages, self._copied_pages, self._checkpoint_at = 0, 0, CHECKPOINT_PAGES
        self._count(syncs=1)

    def _checkpoint(self, connection: apsw.Connection) -> None:
        """Copy the log into the file. It begins anew with the next commit, unless somebody reads just now; where that
        happened several times in a row the reader is waited for, or the log would grow with each. One who reads for
        hours is not: commits go on, and `overgrown` tells."""
        self._checkpoint_at, self._tried = self._wal_pages + CHECKPOINT_PAGES, time.monotonic()
        with contextlib.suppress(apsw.Error):  # a full disk, or somebody's lock
            _, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._copied(copied)
        if self.overgrown:
            connection.set_busy_timeout(READER_MS)
            with contextlib.suppress(apsw.Error):  # a long read
                _, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
                self._copied(copied)
                self._began_anew()
            connection.set_busy_timeout(BUSY_MS)

    def _copied(self, frames: int) -> None:
        """A checkpoint has copied so many frames of the log by now."""
        if frames > self._copied_pages:
            pages = _pages_of(Path(f"{self._path}-wal"), self._copied_pages, frames)
            self._count(syncs=CHECKPOINT_SYNCS, size=pages * PAGE_BYTES)
        self._copied_pages = frames

    def _count(self, syncs: int = 0, size: int = 0) -> None:
        self.written = Written(self.written.syncs + syncs, self.written.bytes + size)

    def _read_loop(self, connection: apsw.Connection) -> None:
        while (items := _take(self._reads)) is not None:
            outcomes = [_attempt(item.work, connection) for item in items]
            self._look_for_damage(items, outcomes)
            _settle(items, outcomes)
        connection.close()

    def _look_for_damage(self, items: list[_Item], outcomes: list[Outcome]) -> None:
        damage = next((error for _, error in outcomes if isinstance(error, salvage.MET)), None)
        if damage is not None and not items[0].loop.is_closed():
            with contextlib.suppress(OSError):  # then it is looked at because it was not closed
                salvage.marker(self._path).touch()
            items[0].loop.call_soon_threadsafe(self._on_damage, damage)


def _pages_of(log: Path, first: int, end: int) -> int:
    """How many pages of the file these frames of its log are: of each a checkpoint copies the newest version only.

    https://sqlite.org/walformat.html
    """
    try:
        with log.open("rb") as frames:
            read = functools.partial(os.pread, frames.fileno(), PAGE_NUMBER_BYTES)
            places = (LOG_HEADER + n * (PAGE_BYTES + FRAME_HEADER) for n in range(first, end))
            return len({read(place) for place in places})
    except OSError:  # it can be read, or the checkpoint would have failed; then no page is taken for another's version
        return end - first


class SyncLimiter:
    """When the next synced commit may be: a token bucket, while waiting brings others together."""

    def __init__(self, now: float) -> None:
        self._tokens, self._at = float(SYNCS_AT_ONCE), now
        self._alone_until = now
        self._waits = False  # for most of the time between two
        self._lonely = 0  # times in a row

    def wait_s(self, now: float) -> float:
        """Seconds until the next one may be."""
        self._fill(now)
        wait_s = 0.0 if now < self._alone_until else max(0.0, 1.0 - self._tokens) / SYNCS_A_SECOND
        self._waits = wait_s > 1 / SYNCS_A_SECOND / 2
        return wait_s

    def synced(self, now: float, count: int) -> None:
        """There was one, of so many pieces that wanted it."""
        self._fill(now)
        if self._waits:
            self._lonely = self._lonely + 1 if count < COMPANY else 0
            if self._lonely >= LONELY:
                self._lonely, self._alone_until = 0, now + ALONE_S
        self._tokens = max(0.0, self._tokens - 1.0)

    def _fill(self, now: float) -> None:
        self._tokens = min(float(SYNCS_AT_ONCE), self._tokens + (now - self._at) * SYNCS_A_SECOND)
        self._at = now


def _take(source: queue.SimpleQueue[_Item | None], pace: SyncLimiter | None = None) -> list[_Item] | None:
    """Wait for work, then take all there is; None when the end was queued (what came before it goes first). Patient
    work alone waits a moment for company, and what is to be synced for its turn."""
    first = source.get()
    if first is None:
        return None
    items = [first]
    began = time.monotonic()
    wait_s = pace.wait_s(began) if pace else 0.0
    patient, durable = first.patient, int(first.durable)
    while len(items) < GROUP:
        until = began + (LINGER_S if patient else wait_s if 0 < durable < ENOUGH else 0.0)
        try:
            left = until - time.monotonic()
            item = source.get(timeout=left) if left > 0 else source.get_nowait()
        except queue.Empty:
            break
        if item is None:
            source.put(None)  # seen again by the next call
            break
        items.append(item)
        patient, durable = patient and item.patient, durable + item.durable
    return items


def _commit(connection: apsw.Connection, items: list[_Item]) -> list[Outcome]:
    """One transaction of all of it, synced if one of them wants that."""
    outcomes: list[Outcome] = []
    durable = any(item.durable for item in items)
    try:
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        for item in items:
            outcomes.append(_attempt(functools.partial(_nested, item.work), connection))
            if not connection.in_transaction:  # SQLite undid all of it: the disk is full, or failed
                raise outcomes[-1][1] or apsw.IOError("the transaction was undone")
        connection.execute("COMMIT")
    except Exception as error:  # of SQLite, or of the last piece of work when SQLite undid everything
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        outcomes = [(None, error)] * len(items)
    _settle(items, outcomes)
    return outcomes


def _nested(work: Work[T], connection: apsw.Connection) -> T:
    """Run a piece of work in a savepoint: what it did is undone when it raises, the others' work is not."""
    connection.execute("SAVEPOINT piece")
    try:
        value = work(connection)
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK TO piece")
            connection.execute("RELEASE piece")
        raise
    connection.execute("RELEASE piece")
    return value


def _attempt(work: Work[Any], connection: apsw.Connection) -> Outcome:
    try:
        return work(connection), None
    except Exception as error:  # handed to whoever asked for the work
        return None, error


def _settle(items: list[_Item], outcomes: list[Outcome]) -> None:
    """Hand results to their loop, one wake-up for the whole group."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any, BaseException | None]]] = {}
    for item, (value, error) in zip(items, outcomes, strict=True):
        by_loop.setdefault(item.loop, []).append((item.future, value, error))
    for loop, results in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, results)


def _resolve(results: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for future, value, error in results:
        if future.done():  # the caller was cancelled; its work is committed all the same
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
