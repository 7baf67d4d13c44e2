"""Power cuts. Both databases of a request's life (edged's own, and a tool's) are recorded write by write on one
timeline; then the files are built as a cut at any moment could have left them, and the real code goes on with those.

What was written and not yet synced is kept, dropped or torn at a sector, each write for itself, and a file that was
deleted is there again until its folder was synced. What was acknowledged before the cut has to be there, nothing may be
damaged, and every effect happens exactly once in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from edged.config import Database as DatabaseConfig
from edged.config import SqlTool
from edged.store import audit, conversations, database, journal, lookup, opening, outbox, requests, retention
from edged.store.database import Work
from edged.store.journal import Intent, Result, Step
from edged.store.lifecycle import WAITING
from edged.store.lookup import Row
from edged.store.requests import FreeSlots
from edged.store.schema import MIGRATIONS
from edged.tools.sql.database import SqlDatabase
from edged.types import Address, Ask, AuditEntry, Caller, Delivery, Message, Reply, Request, Status, ToolCall
from edged.wire import new_rid, reply_bytes
from tests.support import old_stores

SECTORS = (512, 4096)  # of disks: what is written is torn between two of them
REQUESTS = 12  # of a recording: some lie open beside each other at every moment
PLACES = FreeSlots(4, 4, 4)
BOOT = "boot"
VFS, BASE = "recording", "unix"
LOOK = SqlTool(description="Look.", database="plant", sql="SELECT count(*) FROM diary")
NOTE = SqlTool(
    description="Note.", database="plant", sql="INSERT INTO diary(text) VALUES (:text)", effect="write",
    parameters={"text": {"type": "string"}},
)  # fmt: skip


class Event(NamedTuple):
    """A write at an offset, a truncation to a size, a sync or the end of a file (at 1: then its folder is synced)."""

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
        folders = self._folders_synced(upto)
        sector = chance.choice(SECTORS)
        files: dict[str, bytearray] = {}
        ghosts: set[str] = set()  # deleted, and there again
        for i, (kind, path, at, data) in enumerate(self.events[:upto]):
            safe = i < synced.get(path, -1)
            if kind == "delete":
                if i <= folders.get(_folder(path), -1) or chance.random() < 0.5:
                    files.pop(path, None)
                else:
                    ghosts.add(path)
                continue
            if path in ghosts:  # made anew
                ghosts.discard(path)
                files.pop(path, None)
            content = files.setdefault(path, bytearray())
            if kind == "write":
                part = data if safe else _survived(data, sector, chance)
                if part:
                    content.extend(b"\0" * (at + len(part) - len(content)))
                    content[at : at + len(part)] = part
            elif kind == "truncate" and (safe or chance.random() < 0.5):
                del content[at:]
        return files

    def _folders_synced(self, upto: int) -> dict[str, int]:
        """Behind which event each folder was last synced. SQLite does so with the first sync of a journal or a log that
        it made, and with some of its deletes."""
        found: dict[str, int] = {}
        known: set[str] = set()
        for i, (kind, path, at, _) in enumerate(self.events[:upto]):
            if kind == "delete":
                known.discard(path)
            if at if kind == "delete" else kind == "sync" and path not in known and path.endswith(("-wal", "-journal")):
                found[_folder(path)] = i
            if kind == "sync":
                known.add(path)
        return found


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _survived(data: bytes, sector: int, chance: random.Random) -> bytes:
    fate = chance.random()
    if fate < 0.4:
        return b""
    return data[: sector * chance.randint(0, max(1, len(data) // sector))] if fate < 0.6 else data


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
        self.recording.events.append(Event("delete", path, int(sync_dir)))
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
    Some are cancelled while they wait, some belong to a conversation and read before they write.

    Args:
        recording: what it is told to; careless: durable commits are not synced, which the judge has to find.
    """

    def __init__(self, folder: Path, *, recording: Recording | None = None, careless: bool = False) -> None:
        self.recording = recording or Recording()
        self._path = folder / "state" / "edged.db"
        self.store = opening.open_file(self._path, MIGRATIONS)
        self.plant = SqlDatabase("plant", DatabaseConfig(path=str(plant_of(folder)), mode="rw"))
        self._careless = careless
        self._decided = 0  # times
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        """End."""
        self.plant._close()
        self.store.close()
        self._loop.close()

    def restart(self) -> None:
        """A clean stop, and a start."""
        self.plant._close()
        self.store.close()
        self.store = opening.open_file(self._path, MIGRATIONS)

    def commit(self, *work: tuple[Work[Any], bool]) -> list[Any]:
        """One transaction of several pieces; each says whether it is durable."""
        items = [
            database._Item(each, durable and not self._careless, False, self._loop, self._loop.create_future())
            for each, durable in work
        ]
        database._commit(self.store, items)
        self._loop.run_until_complete(asyncio.wait([item.future for item in items]))
        return [item.future.result() for item in items]

    def accept(self, number: int, *, wait: bool) -> list[Row]:
        """Take a request in; it is acknowledged. Returns what was claimed with it: nothing, where it is to wait."""
        rid = new_rid()
        ask = Ask(
            request=Request(
                agent="house",
                messages=(Message("user", f"n{number}"),),
                id=f"q{number}",
                conversation=f"c{number}" if number % 3 == 0 else None,
            ),
            caller=Caller("c", "mqtt", frozenset({"house"})),
            address=Address("reply", str(number).encode()),
        )

        def take(c: apsw.Connection) -> list[Row]:
            requests.accept(c, ask, rid, BOOT, 256, 2**30)
            audit.append(c, AuditEntry(what="request.accepted", who="c", rid=rid))
            return [] if wait else requests.claim(c, FreeSlots(1, 1, 1))

        [rows] = self.commit((take, True))
        self.recording.tell("accepted", rid)
        claimed: list[Row] = rows
        return claimed

    def cancel(self) -> None:
        """End one that waits."""
        waiting = lookup.latest(self.store, 1, WAITING)
        for row in waiting:
            reply = reply_bytes(Reply(id=row.id, rid=row.rid, status=Status.CANCELLED))
            settle = functools.partial(requests.settle, rid=row.rid, status=Status.CANCELLED, reply=reply, only=WAITING)
            self.commit((settle, True))
            self.recording.tell("answered", row.rid, reply)

    def work(self, row: Row) -> Iterator[tuple[Work[Any], bool]]:
        """The commits of a request's run; between them its tools act. A resumed one goes on where its journal ends, and
        decides otherwise about what is not in it: a model seldom writes the same again."""
        self._decided += 1
        note = ToolCall("note", {"text": f"{row.request.messages[-1].content} {self._decided}"})
        steps = {step.number: step for step in journal.steps(self.store, row.rid)}
        for done in self.plant._recall(row.rid):
            step = journal.kept(done.step, done.intent, done.result)
            if step.number not in steps or steps[step.number].result is None:
                steps[step.number] = step
                yield _finish(row, step), False
        begun = [step for step in steps.values() if step.result is None]  # of a read only: a write is found, or is not
        made = {step.intent.call.name for step in steps.values()}
        number = max(steps, default=-1) + 1
        if row.conversation and "look" not in made:
            look = Step(number, Intent(ToolCall("look", {}), None), None)
            yield functools.partial(journal.intend, rid=row.rid, number=number, intent=look.intent), False
            begun, number = [look], number + 1
        for step in begun:
            result = Result(self.plant._select(LOOK, {}), True)
            yield _finish(row, Step(step.number, step.intent, result)), False
        held: list[Step] = []
        if "note" not in made:
            intent = Intent(note, None)
            value = self.plant._effect(NOTE, note.arguments, row.rid, number, journal.packed(intent))
            held.append(Step(number, intent, Result(value, True)))
            yield _nothing, False  # others go on meanwhile
        reply = reply_bytes(Reply(id=row.id, rid=row.rid, status=Status.DONE, output="noted"))
        yield functools.partial(self._settle, row=row, reply=reply, held=held), True
        self.recording.tell("answered", row.rid, reply)
        ready = [each for each in outbox.ready(self.store, ("mqtt",), (), 64) if each.rid == row.rid]
        for delivery in ready:
            yield functools.partial(_confirm, delivery=delivery), False

    def _settle(self, c: apsw.Connection, row: Row, reply: bytes, held: list[Step]) -> None:
        for step in held:
            journal.finish(c, row.rid, step)
        requests.settle(c, row.rid, Status.DONE, reply)
        conversations.add_turn(c, row, (Message("assistant", "noted"),), 1e12, private=True)
        audit.append(c, AuditEntry(what="request.ended", who="c", rid=row.rid))

    def run(self, chance: random.Random, count: int) -> None:
        """So many requests, their steps in any order, some of them in one commit."""
        open_: list[Iterator[tuple[Work[Any], bool]]] = []
        number = 0
        while number < count or open_:
            if number < count and (len(open_) < PLACES.all and chance.random() < 0.4):
                wait = number % 5 == 4
                open_ += [self.work(row) for row in self.accept(number, wait=wait)]
                if wait:
                    self.cancel()
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
                self.commit((lambda c: retention.trim(c, 1e9, BOOT, 2**30, ("mqtt",)), False))
            if chance.random() < 0.03:
                self.restart()

    def recover(self) -> None:
        """What the pipeline does after a start, and all of the work that is left."""
        for row in requests.recover(self.store, BOOT).rows:
            self.commit((functools.partial(requests.put_back, rid=row.rid), True))
        while rows := self.commit((lambda c: requests.claim(c, PLACES), False))[0]:
            for row in rows:
                for step in self.work(row):
                    self.commit(step)


def plant_of(folder: Path) -> Path:
    """The tool's database: somewhere else than edged's."""
    return folder / "plant" / "plant.db"


def _nothing(c: apsw.Connection) -> None:
    pass


def _finish(row: Row, step: Step) -> Work[Any]:
    return functools.partial(journal.finish, rid=row.rid, step=step)


def _confirm(c: apsw.Connection, delivery: Delivery) -> None:
    outbox.confirm(c, delivery)


def _make(folder: Path, recording: Recording, chance: random.Random, *, careless: bool) -> None:
    plant_of(folder).parent.mkdir()
    with contextlib.closing(apsw.Connection(str(plant_of(folder)))) as plant:
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
    unjournalled: int = 0  # effects without their intent or their request, or a result without its effect
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
            there = folder / Path(path).relative_to(original)
            there.parent.mkdir(exist_ok=True)
            there.write_bytes(content)
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
    def plant(query: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(apsw.Connection(str(plant_of(folder)))) as c:
            return list(c.execute(query))

    c = life.store
    counts.corrupt += c.pragma("integrity_check") != "ok" or plant("PRAGMA integrity_check") != [("ok",)]
    counts.corrupt += audit.verify(c).problem is not None
    steps = list(c.execute("SELECT rid, step, intent ->> '$.call.name', result FROM steps"))
    done = set(plant("SELECT rid, step FROM edged_effects"))
    known = {(rid, step) for rid, step, _, _ in steps} | set(
        plant("SELECT rid, step FROM edged_effects WHERE intent > ''")
    )
    counts.unjournalled += len(done - known)
    accepted = {rid for (rid,) in c.execute("SELECT rid FROM requests")}
    counts.unjournalled += sum(rid not in accepted for rid, _ in done)
    counts.unjournalled += sum(
        result is not None and name == "note" and (rid, step) not in done for rid, step, name, result in steps
    )
    life.recover()
    for _, what, rid, data in told:
        row = _row(life, rid)
        counts.lost += row is None or (what == "answered" and row.reply != data)
    rows = lookup.latest(c, 1000)
    counts.lost += sum(row.reply is None for row in rows)
    ended = [row for row in rows if row.status == Status.DONE]
    noted = sorted(text.split()[0] for (text,) in plant("SELECT text FROM diary"))
    counts.wrong += noted != sorted(row.request.messages[-1].content for row in ended)
    turns = {rid for (rid,) in c.execute("SELECT rid FROM turns JOIN requests USING (client, conversation)")}
    counts.wrong += turns != {row.rid for row in ended if row.conversation}


def _row(life: Life, rid: str) -> Row | None:
    try:
        return lookup.get(life.store, rid)
    except KeyError:
        return None


# -- upgrades ----------------------------------------------------------------------------------------------------------


def upgrade_cuts(cuts: int, seed: int) -> Counts:
    """Cut so many times while a file of an earlier schema is brought up to date, and open it again."""
    chance = random.Random(seed)  # reproducible, no secret
    counts = Counts()
    schema = 0
    while counts.cuts < cuts:
        schema = schema % len(MIGRATIONS) + 1
        recording = Recording()
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "edged.db"
            with _recorded(recording):
                old_stores.make(path, schema)
                recording.events.append(Event("sync", str(path)))
                recording.first = len(recording.events)
                opening.open_file(path, MIGRATIONS).close()
            for _ in range(min(25, cuts - counts.cuts)):
                upto = chance.randint(recording.first, len(recording.events))
                _look_at_upgrade(recording.files(upto, chance), counts)
                counts.cuts += 1
    return counts


def _look_at_upgrade(files: dict[str, bytearray], counts: Counts) -> None:
    with tempfile.TemporaryDirectory() as name:
        for path, content in files.items():
            (Path(name) / Path(path).name).write_bytes(content)
        try:
            with contextlib.closing(opening.open_file(Path(name) / "edged.db", MIGRATIONS)) as c:
                counts.corrupt += c.pragma("integrity_check") != "ok"
                counts.corrupt += c.pragma("user_version") != len(MIGRATIONS)
                rows = {row.rid: row for row in lookup.latest(c, 1000)}
        except apsw.Error:
            counts.corrupt += 1
            return
    counts.lost += rows.keys() != {f"{state}1" for state in old_stores.STATES}
    counts.lost += sum(row.reply is None for row in rows.values() if row.status == Status.DONE)
