"""Power cuts. Both databases of a request's life (edged's own, and a tool's) are recorded write by write on one
timeline; then the files are built as a cut at any moment could have left them, and the real code goes on with those.

What was written and not yet synced is kept, dropped or torn at a sector, each write for itself. What was acknowledged
before the cut has to be there, nothing may be damaged, and every effect happens exactly once in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from edged.config import Database as DatabaseConfig
from edged.config import SqlTool
from edged.store import database, deliveries, journal, requests
from edged.store.database import Work
from edged.store.journal import Intent, Result
from edged.store.requests import Places, Row
from edged.store.schema import MIGRATIONS
from edged.tools.sql import SqlDatabase
from edged.types import Address, Ask, Caller, Message, Reply, Request, Status, ToolCall
from edged.wire import new_rid, reply_bytes

SECTOR = 512
REQUESTS = 12  # of a recording: some lie open beside each other at every moment
PLACES = Places(4, 4)
BOOT = "boot"
VFS, BASE = "recording", "unix"
NOTE = SqlTool(
    description="Note.", database="plant", sql="INSERT INTO diary(text) VALUES (:text)", effect="write",
    parameters={"text": {"type": "string"}},
)  # fmt: skip


class Event(NamedTuple):
    """A write at an offset, a truncation to a size, a sync or the end of a file."""

    kind: str
    path: str
    at: int = 0
    data: bytes = b""


@dataclass
class Recording:
    """What reached the files, in order, and what was acknowledged when: (events before it, what, rid, bytes)."""

    events: list[Event] = field(default_factory=list)
    told: list[tuple[int, str, str, bytes]] = field(default_factory=list)
    first: int = 0  # events before this one made the empty databases

    def tell(self, what: str, rid: str, data: bytes = b"") -> None:
        """Somebody was told."""
        self.told.append((len(self.events), what, rid, data))

    def files(self, upto: int, chance: random.Random) -> dict[str, bytearray]:
        """The files after a cut behind so many events."""
        synced = {event.path: i for i, event in enumerate(self.events[:upto]) if event.kind == "sync"}
        files: dict[str, bytearray] = {}
        for i, (kind, path, at, data) in enumerate(self.events[:upto]):
            safe = i < synced.get(path, -1)
            if kind == "delete":
                files.pop(path, None)
                continue
            content = files.setdefault(path, bytearray())
            if kind == "write":
                part = data if safe else _survived(data, chance)
                if part:
                    content.extend(b"\0" * (at + len(part) - len(content)))
                    content[at : at + len(part)] = part
            elif kind == "truncate" and (safe or chance.random() < 0.5):
                del content[at:]
        return files


def _survived(data: bytes, chance: random.Random) -> bytes:
    fate = chance.random()
    if fate < 0.4:
        return b""
    return data[: SECTOR * chance.randint(0, max(1, len(data) // SECTOR))] if fate < 0.6 else data


class RecordingVFS(apsw.VFS):
    """SQLite's way to files, with an ear. It has no shared memory, so a WAL needs the exclusive locking mode."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        super().__init__(VFS, BASE, makedefault=True, iVersion=1)

    def xOpen(self, name: Any, flags: list[int]) -> RecordingFile:  # noqa: N802  # SQLite's name
        """See sqlite3_vfs."""
        return RecordingFile(self.recording, name, flags)

    def xDelete(self, path: str, sync_dir: bool) -> None:  # noqa: N802
        """See sqlite3_vfs."""
        self.recording.events.append(Event("delete", path))
        super().xDelete(path, sync_dir)


class RecordingFile(apsw.VFSFile):
    """A file whose writes are recorded."""

    def __init__(self, recording: Recording, name: Any, flags: list[int]) -> None:
        self._recording, self._path = recording, name.filename() if hasattr(name, "filename") else str(name)
        super().__init__(BASE, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        """See sqlite3_io_methods."""
        self._recording.events.append(Event("write", self._path, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        """See sqlite3_io_methods."""
        self._recording.events.append(Event("truncate", self._path, size))
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        """See sqlite3_io_methods."""
        super().xSync(flags)
        self._recording.events.append(Event("sync", self._path))


@contextlib.contextmanager
def _recorded(recording: Recording) -> Iterator[None]:
    """All databases that are opened in this block are recorded."""
    before = apsw.connection_hooks[:]
    vfs = RecordingVFS(recording)

    def exclusive(connection: apsw.Connection) -> None:
        if connection.filename.endswith("edged.db"):
            connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()

    apsw.connection_hooks.append(exclusive)
    try:
        yield
    finally:
        apsw.connection_hooks[:] = before
        vfs.unregister()


# -- the life of requests ----------------------------------------------------------------------------------------------


class Life:
    """Requests from acceptance to delivery on real databases, step by step, with the commits that the pipeline makes.

    Args:
        recording: what it is told to; careless: durable commits are not synced, which the judge has to find.
    """

    def __init__(self, folder: Path, *, recording: Recording | None = None, careless: bool = False) -> None:
        self.recording = recording or Recording()
        self.store = database._open(folder / "edged.db", MIGRATIONS)
        self.plant = SqlDatabase("plant", DatabaseConfig(path=str(folder / "plant.db"), mode="rw"))
        self._careless = careless
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        """End without a checkpoint, as a process that is gone."""
        for connection in (self.plant._reader, self.plant._writer):
            if connection is not None:
                connection.close()
        self.store.close()
        self._loop.close()

    def commit(self, *work: tuple[Work[Any], bool]) -> list[Any]:
        """One transaction of several pieces; each says whether it is durable."""
        items = [
            database._Item(each, durable and not self._careless, False, self._loop, self._loop.create_future())
            for each, durable in work
        ]
        database._commit(self.store, items)
        self._loop.run_until_complete(asyncio.wait([item.future for item in items]))
        return [item.future.result() for item in items]

    def accept(self, number: int) -> list[Row]:
        """Take a request in; it is acknowledged. Returns what was claimed with it."""
        rid = new_rid()
        ask = Ask(
            request=Request(agent="house", messages=(Message("user", f"n{number}"),), id=f"q{number}"),
            caller=Caller("c", "mqtt", frozenset({"house"})),
            address=Address("reply", str(number).encode()),
        )

        def take(c: apsw.Connection) -> list[Row]:
            requests.accept(c, ask, rid, BOOT, 256, 2**30)
            return requests.claim(c, Places(1, 1))

        [rows] = self.commit((take, True))
        self.recording.tell("accepted", rid)
        claimed: list[Row] = rows
        return claimed

    def work(self, row: Row) -> Iterator[tuple[Work[Any], bool]]:
        """The commits of a request's run; between them its tool acts. A resumed one goes on where its journal ends."""
        call = ToolCall("note", {"text": row.request.messages[-1].content})
        known = {step.number: step for step in journal.steps(self.store, row.rid)}
        if 0 not in known:
            yield lambda c: journal.intend(c, row.rid, 0, Intent(call, None)), True
        if 0 not in known or known[0].result is None:
            value = self.plant._effect(NOTE, call.arguments, row.rid, 0)
            yield lambda c: journal.finish(c, row.rid, 0, Result(value, True)), False
        reply = reply_bytes(Reply(id=row.id, rid=row.rid, status=Status.DONE, output="noted"))
        yield lambda c: requests.settle(c, row.rid, Status.DONE, reply), True
        self.recording.tell("answered", row.rid, reply)
        ready = [each for each in deliveries.ready(self.store, ("mqtt",), (), 64) if each.rid == row.rid]
        for delivery in ready:
            yield lambda c: deliveries.confirm(c, delivery.id), False  # noqa: B023  # run before the next one

    def run(self, chance: random.Random, count: int) -> None:
        """So many requests, their steps in any order, some of them in one commit."""
        open_: list[Iterator[tuple[Work[Any], bool]]] = []
        number = 0
        while number < count or open_:
            if number < count and (len(open_) < PLACES.all and chance.random() < 0.4):
                open_ += [self.work(row) for row in self.accept(number)]
                number += 1
                continue
            chosen = chance.sample(open_, min(len(open_), chance.randint(1, 3)))
            steps = [(each, next(each, None)) for each in chosen]
            if pieces := [step for _, step in steps if step is not None]:
                self.commit(*pieces)
            open_ = [each for each in open_ if not any(each is ended and step is None for ended, step in steps)]
            if chance.random() < 0.1:
                self.store.wal_checkpoint()
            if chance.random() < 0.1:
                self.commit((lambda c: requests.trim(c, 1e9, BOOT, 2**30), False))

    def recover(self) -> None:
        """What the pipeline does after a start, and all of the work that is left."""
        for row in requests.recover(self.store, BOOT):
            self.commit((lambda c: requests.requeue(c, row.rid), True))  # noqa: B023  # run before the next one
        while rows := self.commit((lambda c: requests.claim(c, PLACES), False))[0]:
            for row in rows:
                for step in self.work(row):
                    self.commit(step)


def _make(folder: Path, recording: Recording, chance: random.Random, *, careless: bool) -> None:
    with contextlib.closing(apsw.Connection(str(folder / "plant.db"))) as plant:
        plant.execute("CREATE TABLE diary(id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    with contextlib.closing(Life(folder, recording=recording, careless=careless)) as life:
        life.plant._open_writer(1.0)  # its own table is there before anything is asked
        recording.first = len(recording.events)
        life.run(chance, REQUESTS)


# -- the judge ---------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What was found after so many cuts."""

    cuts: int = 0
    corrupt: int = 0
    lost: int = 0  # acknowledged requests, or replies, that are gone or differ
    unjournalled: int = 0  # effects without their intent, or a result without its effect
    wrong: int = 0  # effects that did not happen exactly once in the end

    @property
    def kept(self) -> bool:
        """Whether the promise was kept."""
        return not (self.corrupt or self.lost or self.unjournalled or self.wrong)


def power_cuts(cuts: int, seed: int, *, careless: bool = False) -> Counts:
    """Cut so many times, and look.

    Args:
        careless: durable commits are not synced: what the judge must find.
    """
    chance = random.Random(seed)  # reproducible, no secret
    counts = Counts()
    while counts.cuts < cuts:
        recording = Recording()
        with tempfile.TemporaryDirectory() as name:
            with _recorded(recording):
                _make(Path(name), recording, chance, careless=careless)
            for _ in range(min(50, cuts - counts.cuts)):
                upto = chance.randint(recording.first, len(recording.events))
                _look(recording, upto, recording.files(upto, chance), Path(name), counts)
                counts.cuts += 1
    return counts


def _look(recording: Recording, upto: int, files: dict[str, bytearray], original: Path, counts: Counts) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in files.items():
            (folder / Path(path).relative_to(original)).write_bytes(content)
        try:
            life = Life(folder)
        except apsw.Error:
            counts.corrupt += 1
            return
        with contextlib.closing(life):
            try:
                _judge(life, [told for told in recording.told if told[0] <= upto], folder, counts)
            except apsw.Error:
                counts.corrupt += 1


def _judge(life: Life, told: list[tuple[int, str, str, bytes]], folder: Path, counts: Counts) -> None:
    def diary(query: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(apsw.Connection(str(folder / "plant.db"))) as plant:
            return list(plant.execute(query))

    counts.corrupt += life.store.pragma("integrity_check") != "ok" or diary("PRAGMA integrity_check") != [("ok",)]
    intended = dict(life.store.execute("SELECT rid, result FROM steps"))
    done = {rid for (rid,) in diary("SELECT rid FROM edged_effects")}
    counts.unjournalled += len(done - intended.keys())
    counts.unjournalled += sum(result is not None and rid not in done for rid, result in intended.items())
    life.recover()
    for _, what, rid, data in told:
        rows = [row for row in [_row(life, rid)] if row is not None]
        counts.lost += not rows or (what == "answered" and rows[0].reply != data)
    wanted = sorted(row.request.messages[-1].content for row in requests.latest(life.store, 1000))
    counts.wrong += sorted(text for (text,) in diary("SELECT text FROM diary")) != wanted
    counts.lost += sum(row.reply is None for row in requests.latest(life.store, 1000))


def _row(life: Life, rid: str) -> Row | None:
    try:
        return requests.get(life.store, rid)
    except KeyError:
        return None
