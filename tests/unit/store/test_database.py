"""The store's file: group commit, what a failure undoes, what waits for the medium, what is left when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from edged.errors import ConfigError
from edged.store import database, opening
from edged.store.database import Database
from edged.store.schema import MIGRATIONS
from tests.support.store import claim

TABLE = ("CREATE TABLE t(a UNIQUE)",)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Database]:
    """A store with one table."""
    store = Database(tmp_path / "x.db", TABLE)
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The transactions of every connection that is opened, as the synchronous mode each was committed in."""
    seen: list[str] = []

    def watch(connection: apsw.Connection) -> None:
        mode = ["?"]

        def trace(event: dict[str, Any]) -> None:
            if event["sql"].startswith("PRAGMA synchronous = "):
                mode[0] = event["sql"].rpartition(" ")[2]

        connection.trace_v2(apsw.SQLITE_TRACE_STMT, trace)

        def committed() -> bool:
            seen.append(mode[0])
            return False  # go on

        connection.set_commit_hook(committed)

    monkeypatch.setattr(apsw, "connection_hooks", [watch])
    return seen


def insert(value: object) -> Callable[[apsw.Connection], object]:
    def work(c: apsw.Connection) -> object:
        c.execute("INSERT INTO t VALUES (?)", (value,))
        return value

    return work


def count(c: apsw.Connection) -> int:
    return int(c.execute("SELECT count(*) FROM t").get)


@contextlib.asynccontextmanager
async def held(store: Database) -> AsyncIterator[None]:
    """The writer is busy while the block runs; what is written in it queues up. Counts as one commit of its own."""
    begun, go = threading.Event(), threading.Event()

    def block(_: apsw.Connection) -> None:
        begun.set()
        go.wait(10)

    blocked = asyncio.create_task(store.write(block))
    await asyncio.to_thread(begun.wait, 10)
    try:
        yield
    finally:
        go.set()
        await blocked


async def queued(store: Database, *work: Callable[[apsw.Connection], Any], durable: bool = True) -> list[Any]:
    """Write all of it while the writer is busy: one group. Exceptions are returned."""
    async with held(store):
        tasks = [asyncio.create_task(store.write(w, durable=durable)) for w in work]
        await asyncio.sleep(0)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_writes_that_queue_up_share_one_transaction(commits: list[str], tmp_path: Path) -> None:
    """Under load many requests wait for one fsync."""
    store = Database(tmp_path / "x.db", TABLE)
    await store.start()
    commits.clear()
    assert await queued(store, *map(insert, range(100))) == list(range(100))
    assert commits == ["FULL", "FULL"]  # the first is that of holding the writer
    assert await store.read(count) == 100
    await store.stop()


async def test_group_is_bounded(commits: list[str], tmp_path: Path) -> None:
    """The first of very many does not wait for the last."""
    store = Database(tmp_path / "x.db", TABLE)
    await store.start()
    commits.clear()
    await queued(store, *map(insert, range(database.GROUP + 1)))
    assert len(commits) == 3  # the first is that of holding the writer
    await store.stop()


async def test_failing_piece_undoes_only_itself(opened: Database) -> None:
    """Its neighbours in the transaction are committed, and get their results."""

    def half(c: apsw.Connection) -> None:
        c.execute("INSERT INTO t VALUES (50)")
        raise ValueError("no")

    results = await queued(opened, insert(1), half, insert(2), insert(1), insert(3))
    assert (results[0], results[2], results[4]) == (1, 2, 3)
    assert isinstance(results[1], ValueError)
    assert isinstance(results[3], apsw.ConstraintError)
    assert await opened.read(lambda c: [a for (a,) in c.execute("SELECT a FROM t ORDER BY a")]) == [1, 2, 3]


async def test_disk_that_fills_up_fails_the_whole_group_and_the_next_one_works(opened: Database) -> None:
    """Nobody is told of a commit that did not happen."""
    await opened.write(lambda c: c.execute(f"PRAGMA max_page_count = {c.pragma('page_count') + 2}"))
    results = await queued(opened, insert(1), insert("x" * 100_000), insert(2))
    failed = [r for r in results if isinstance(r, apsw.FullError)]
    present = await opened.read(lambda c: [a for (a,) in c.execute("SELECT a FROM t WHERE a < 10 ORDER BY a")])
    assert failed
    assert present == [r for r in results if not isinstance(r, BaseException)]
    await opened.write(insert(9))
    assert await opened.read(count) == len(present) + 1


async def test_group_with_one_durable_write_waits_for_the_medium(commits: list[str], tmp_path: Path) -> None:
    """Lazy ones ride along; alone they do not wait."""
    store = Database(tmp_path / "x.db", TABLE)
    await store.start()
    commits.clear()
    await store.write(insert(1), durable=False)
    await store.write(insert(2), durable=True)
    await store.write(insert(3), durable=False)
    async with held(store):
        tasks = [asyncio.create_task(store.write(insert(i), durable=i == 5)) for i in (4, 5, 6)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert commits == ["NORMAL", "FULL", "NORMAL", "FULL", "FULL"]  # the last but one is that of holding the writer
    await store.stop()


class CountingVFS(apsw.VFS):
    """Counts syncs."""

    def __init__(self) -> None:
        self.syncs = 0
        super().__init__("counting", "", iVersion=1)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        return CountingFile(self, name, flags)


class CountingFile(apsw.VFSFile):
    def __init__(self, vfs: CountingVFS, name: Any, flags: list[int]) -> None:
        self._vfs = vfs
        super().__init__("", name, flags)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        self._vfs.syncs += 1
        super().xSync(flags)


@pytest.fixture
def vfs() -> Iterator[CountingVFS]:
    counting = CountingVFS()
    yield counting
    counting.unregister()


async def test_lazy_commit_syncs_nothing_and_a_durable_one_syncs_once(tmp_path: Path, vfs: CountingVFS) -> None:
    """What the table of commits in the design promises, at the file; a durable one syncs what lazy ones left."""
    connection = apsw.Connection(str(tmp_path / "x.db"), vfs="counting")
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # the VFS has no shared memory for WAL
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(TABLE[0])
    loop = asyncio.get_running_loop()
    counted: list[int] = []
    for durable, number in ((False, 1), (False, 5), (True, 1), (True, 5), (False, 1)):
        items = [
            database._Item(insert(f"{len(counted)}.{i}"), durable, False, loop, loop.create_future())
            for i in range(number)
        ]
        before = vfs.syncs
        database._commit(connection, items)
        counted.append(vfs.syncs - before)
        await asyncio.gather(*(item.future for item in items))
    connection.close()
    assert counted == [0, 0, 1, 1, 0]


async def test_cancelled_writer_is_committed_all_the_same(opened: Database) -> None:
    """What was handed over happens; only the waiting ends."""
    async with held(opened):
        task = asyncio.create_task(opened.write(insert(1)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await opened.write(lambda c: None)  # whatever came before it is committed
    assert await opened.read(count) == 1


async def test_read_goes_on_while_the_writer_is_busy_and_cannot_write(opened: Database) -> None:
    """A long list holds up no commit, and no commit a list."""
    async with held(opened):
        assert await asyncio.wait_for(opened.read(count), 5) == 0
    with pytest.raises(apsw.ReadOnlyError):
        await opened.read(insert(1))


async def test_progress_tells_work_and_when_it_last_got_on(opened: Database) -> None:
    """The watchdog's question; time that passed idle does not count as being stuck."""
    assert opened.progress()[0] is False
    before = time.monotonic()
    async with held(opened):
        busy, since = opened.progress()
        assert busy
        assert since >= before
    assert opened.progress()[1] >= since


async def test_stop_finishes_what_is_queued_and_leaves_one_file(tmp_path: Path) -> None:
    """No WAL is left, whichever thread had the longer work."""
    store = Database(tmp_path / "x.db", TABLE)
    await store.start()
    reading = threading.Event()

    def slow(c: apsw.Connection) -> int:
        reading.set()
        time.sleep(0.1)  # the reader is still at it when the writer has nothing left to do
        return count(c)

    read = asyncio.create_task(store.read(slow))
    await asyncio.to_thread(reading.wait, 10)
    writes = [asyncio.create_task(store.write(insert(i))) for i in range(10)]
    await asyncio.sleep(0)
    await store.stop()
    await asyncio.gather(read, *writes)
    assert [p.name for p in tmp_path.iterdir()] == ["x.db"]


async def test_work_handed_in_after_stop_began_is_refused_and_never_hangs(opened: Database) -> None:
    """Whoever comes too late is told at once."""
    async with held(opened):
        stopping = asyncio.create_task(opened.stop())
        await asyncio.sleep(0)
        for attempt in (opened.write(insert(1)), opened.read(count)):
            with pytest.raises(RuntimeError, match="not running"):
                await asyncio.wait_for(attempt, 5)
    await stopping
    await opened.stop()  # twice is once


async def test_start_brings_an_older_file_up_to_date_and_refuses_a_newer_one(tmp_path: Path) -> None:
    """Data survives; a downgrade is a config error that names the file."""
    path = tmp_path / "x.db"
    two = (*TABLE, "ALTER TABLE t ADD COLUMN b DEFAULT 5; CREATE TABLE u(c)")
    for migrations in (TABLE, two, two):
        store = Database(path, migrations)
        await store.start()
        await store.write(insert(len(migrations)), durable=False) if migrations is TABLE else None
        await store.stop()
    with pytest.raises(ConfigError, match=r"x\.db: made by a newer edged \(schema 2, this one knows 1\)"):
        await Database(path, TABLE).start()
    later = Database(path, two)
    await later.start()
    assert await later.read(lambda c: c.execute("SELECT a, b FROM t").fetchall()) == [(1, 5)]
    await later.stop()


async def test_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """All of an entry or nothing."""
    path = tmp_path / "x.db"
    store = Database(path, TABLE)
    await store.start()
    await store.stop()
    with pytest.raises(apsw.SQLError):
        await Database(path, (*TABLE, "CREATE TABLE u(c); CREATE NONSENSE")).start()
    again = Database(path, TABLE)
    await again.start()
    names = await again.read(lambda c: [n for (n,) in c.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")])
    assert names == ["t"]
    await again.stop()


async def test_start_where_no_file_can_be_is_a_config_error(tmp_path: Path) -> None:
    """The message names the file."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x.db", tmp_path / "folder"):
        with pytest.raises(ConfigError, match=str(path)):
            await Database(path, TABLE).start()


async def test_schema_of_the_store_is_strict_and_repeatable(tmp_path: Path) -> None:
    """The real migrations on a real file, twice."""
    for _ in range(2):
        store = Database(tmp_path / "edged.db", MIGRATIONS)
        await store.start()
        version, problems = await store.read(lambda c: (c.pragma("user_version"), c.pragma("integrity_check")))
        await store.stop()
        assert (version, problems) == (len(MIGRATIONS), "ok")


async def test_store_of_an_earlier_version_keeps_its_requests(tmp_path: Path) -> None:
    """A board that was updated goes on with what it had: answered, waiting and in a conversation."""
    path = tmp_path / "edged.db"
    with contextlib.closing(apsw.Connection(str(path))) as old:
        old.execute(MIGRATIONS[0])
        old.execute(
            "INSERT INTO requests(rid, client, digest, transport, agent, conversation, priority, body, boot,"
            " accepted_wall, accepted_boot, state)"
            " VALUES ('r1', 'c', x'00', 'mqtt', 'house', 'k', 0, ?, 'b', 1.0, 1.0, 'received')",
            (b'{"agent":"house","messages":[{"role":"user","content":"hi"}]}',),
        )
        old.pragma("user_version", 1)
    store = Database(path, MIGRATIONS)
    await store.start()
    row = await store.write(claim)
    assert (row.rid, row.conversation, row.findings) == ("r1", "k", ())
    await store.stop()


# -- how often the medium is asked to write everything down -----------------------------------------------------------


def test_synced_commits_are_bounded_a_second_after_some_at_once() -> None:
    """A request alone never waits; so many a second for ever do."""
    pace = database.SyncLimiter(0.0)
    for _ in range(database.SYNCS_AT_ONCE):
        assert pace.wait_s(0.0) == 0.0
        pace.synced(0.0, 100)
    assert pace.wait_s(0.0) == pytest.approx(1 / database.SYNCS_A_SECOND)
    now = synced = 0.0
    while now < 10.0:
        now += pace.wait_s(now) or 1e-9
        pace.synced(now, 100)
        synced += 1
    assert synced == pytest.approx(10 * database.SYNCS_A_SECOND, abs=2)


def test_nobody_waits_where_waiting_brings_no_company() -> None:
    """One client that asks, waits for the answer and asks again: its own rate is the bound. It is tried again later."""
    pace = database.SyncLimiter(0.0)
    for _ in range(database.SYNCS_AT_ONCE):
        pace.synced(0.0, 1)
    now = 0.0
    for _ in range(database.LONELY):
        waited = pace.wait_s(now)
        assert waited > 0.0
        now += waited
        pace.synced(now, database.COMPANY - 1)
    assert pace.wait_s(now) == 0.0
    pace.synced(now, 1)
    assert pace.wait_s(now + 0.9 * database.ALONE_S) == 0.0
    later = now + 1.1 * database.ALONE_S
    for _ in range(database.SYNCS_AT_ONCE):
        pace.synced(later, 1)
    assert pace.wait_s(later) > 0.0


def test_one_lonely_wait_among_many_changes_nothing() -> None:
    """Requests do not come evenly."""
    pace, now = database.SyncLimiter(0.0), 0.0
    for _ in range(database.SYNCS_AT_ONCE):
        pace.synced(now, 1)
    for count in (11, 2, 11, 1, 11, 4, 11):
        now += pace.wait_s(now)
        pace.synced(now, count)
        assert pace.wait_s(now) > 0.0


async def test_patient_write_shares_the_transaction_of_the_next_one(commits: list[str], opened: Database) -> None:
    """And is done without one, a moment later."""
    await opened.read(count)
    commits.clear()
    patient = asyncio.create_task(opened.write(insert(1), durable=False, patient=True))
    await asyncio.sleep(0)
    await opened.write(insert(2))
    await patient
    assert commits == ["FULL"]
    await opened.write(insert(3), durable=False, patient=True)
    assert commits == ["FULL", "NORMAL"]


async def test_what_is_written_is_counted(tmp_path: Path) -> None:
    """As the files show it: frames of the log and their pages, one sync a durable commit, and two a checkpoint."""
    store = Database(tmp_path / "x.db", TABLE)
    await store.start()
    log = tmp_path / "x.db-wal"
    begun = store.written
    for number in range(5):
        await store.write(insert(number))
    assert store.written.syncs - begun.syncs == 5
    frames = (log.stat().st_size - 32) // (opening.PAGE_BYTES + database.FRAME_HEADER)
    assert store.written.bytes <= frames * (opening.PAGE_BYTES + database.FRAME_HEADER)
    assert store.written.bytes >= 5 * (opening.PAGE_BYTES + database.FRAME_HEADER)
    before = store.written
    large = "x" * (database.CHECKPOINT_PAGES * opening.PAGE_BYTES // 2)  # and once more in the index
    await store.write(insert(large))
    await store.write(lambda _: None, durable=False)  # the checkpoint is behind the commit
    assert store.written.syncs - before.syncs == 1 + database.CHECKPOINT_SYNCS
    assert store.written.bytes - before.bytes > 2 * len(large)
    await store.stop()


async def test_page_that_was_written_often_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the files show it: pages of the file that a checkpoint changed."""
    monkeypatch.setattr(database, "CHECKPOINT_PAGES", 100)
    store, path, frame = (
        Database(tmp_path / "x.db", TABLE),
        tmp_path / "x.db",
        opening.PAGE_BYTES + database.FRAME_HEADER,
    )
    await store.start()
    await store.write(insert("x" * 5000))
    await store.write(insert(1))
    old, begun, log = path.read_bytes(), store.written.bytes, tmp_path / "x.db-wal"
    first = log.stat().st_size
    while path.read_bytes() == old:
        await store.write(lambda c: c.execute("UPDATE t SET a = a + 1 WHERE typeof(a) = 'integer'").fetchall())
        await store.write(lambda _: None, durable=False)  # the checkpoint is behind the commit
    new = path.read_bytes()
    pages = range(0, len(new), opening.PAGE_BYTES)
    changed = sum(new[at : at + opening.PAGE_BYTES] != old[at : at + opening.PAGE_BYTES] for at in pages)
    logged = (log.stat().st_size - first) // frame * frame
    assert store.written.bytes - begun == logged + changed * opening.PAGE_BYTES
    assert logged // frame > 2 * changed
    await store.stop()


async def test_log_begins_anew_though_somebody_reads_all_the_time(tmp_path: Path) -> None:
    """It does not grow with every commit for ever."""
    store = Database(tmp_path / "x.db", TABLE)
    await store.start()
    reading = True

    async def read() -> None:
        while reading:
            await store.read(count)

    readers = [asyncio.create_task(read()) for _ in range(4)]
    for number in range(40):
        await store.write(insert(f"{number}" + "x" * 2**18))
    reading = False
    await asyncio.gather(*readers)
    assert (tmp_path / "x.db-wal").stat().st_size < 4 * opening.WAL_BYTES
    await store.stop()


async def test_file_of_larger_pages_works_where_it_cannot_be_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has it open, or the disk has no room: nothing that a start should fail of."""
    monkeypatch.setattr(opening, "BUSY_MS", 1)
    path = tmp_path / "x.db"
    with contextlib.closing(apsw.Connection(str(path))) as old:
        old.execute("PRAGMA page_size = 4096; PRAGMA journal_mode = WAL").fetchall()
        old.execute(TABLE[0])
        old.pragma("user_version", 1)
        old.execute("BEGIN")
        old.execute("SELECT * FROM t").fetchall()
        connection = await asyncio.to_thread(opening.open_file, path, TABLE)
        assert connection.pragma("page_size") == 4096
        assert connection.pragma("journal_mode") == "wal"
        connection.execute("INSERT INTO t VALUES (1)")
        connection.close()


async def test_somebody_who_reads_for_hours_holds_up_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that was left open: the log grows and tells so; when it is closed the log begins anew."""
    monkeypatch.setattr(database, "READER_S", 0.0)
    waits: list[int] = []
    store = Database(tmp_path / "x.db", TABLE)
    await store.start()
    await store.write(insert(0))
    shell = apsw.Connection(str(tmp_path / "x.db"), flags=apsw.SQLITE_OPEN_READONLY)
    shell.execute("BEGIN")
    shell.execute("SELECT * FROM t").fetchall()

    async def fill() -> None:
        for number in range(40):
            await store.write(insert(f"{number} {waits} " + "x" * 2**17))

    await asyncio.wait_for(fill(), 60)  # it took ten seconds for each
    assert store.overgrown > 0
    shell.close()
    await store.write(insert("last"))
    await store.write(insert("the log begins anew"))
    assert store.overgrown == 0
    assert (tmp_path / "x.db-wal").stat().st_size <= opening.WAL_BYTES
    await store.stop()


async def test_file_of_larger_pages_is_written_anew_at_the_start(tmp_path: Path) -> None:
    """An upgrade; its rows stay."""
    path = tmp_path / "x.db"
    with contextlib.closing(apsw.Connection(str(path))) as old:
        old.execute("PRAGMA page_size = 4096; PRAGMA journal_mode = WAL")
        old.execute(TABLE[0])
        old.execute("INSERT INTO t VALUES (7)")
        old.pragma("user_version", 1)
    store = Database(path, TABLE)
    await store.start()
    assert await store.read(lambda c: (c.pragma("page_size"), c.pragma("journal_mode"))) == (opening.PAGE_BYTES, "wal")
    assert await store.read(count) == 1
    await store.stop()
