"""A damaged store: whatever part of it is, work goes on, and what could be read is there."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from edged.store import audit, journal, lookup, opening, requests
from edged.store.database import Database
from edged.store.journal import Intent, Result, Step
from edged.store.recovery import mend, salvage
from edged.store.schema import MIGRATIONS
from edged.types import AuditEntry, Status, ToolCall
from tests.support.store import ANY, answer, ask, claim

DONE, WAITING = 60, 6


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with finished requests, their journals and replies, and some that wait; not closed cleanly."""
    path = tmp_path_factory.mktemp("good") / "edged.db"
    c = opening.open_file(path, MIGRATIONS)
    for number in range(DONE):
        requests.accept(c, ask(f"text {number}", id=f"q{number}"), f"rid{number:04}", "boot", 10_000, 2**30)
        row = claim(c)
        intent = Intent(ToolCall("note", {"text": "x" * 200}), None)
        journal.finish(c, row.rid, Step(0, intent, Result({"changes": 1}, True)))
        requests.settle(c, row.rid, Status.DONE, answer(row.rid) + b" " * 600)
        audit.append(c, AuditEntry(what="request.ended", who="c", rid=row.rid))
    for number in range(WAITING):
        requests.accept(c, ask(f"later {number}", id=f"w{number}"), f"wait{number:04}", "boot", 10_000, 2**30)
    c.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    c.close()
    return path


def damaged(good: Path, folder: Path, harm: Callable[[bytearray], None]) -> Path:
    path = folder / "edged.db"
    content = bytearray(good.read_bytes())
    harm(content)
    path.write_bytes(content)
    salvage.marker(path).touch()  # as whoever found it so leaves it
    return path


def page(number: int, seed: int = 1) -> Callable[[bytearray], None]:
    def harm(content: bytearray) -> None:
        at = (number - 1) * opening.PAGE_BYTES
        content[at : at + opening.PAGE_BYTES] = random.Random(seed).randbytes(opening.PAGE_BYTES)

    return harm


def cut(content: bytearray) -> None:
    del content[len(content) // 2 :]


async def opened(path: Path) -> tuple[Database, list[str]]:
    store = Database(path, MIGRATIONS, mend=mend.mend)
    await store.start()
    rids = await store.read(lambda c: [row.rid for row in lookup.latest(c, 1000)])
    return store, rids


async def test_store_that_is_whole_is_not_touched(good: Path, tmp_path: Path) -> None:
    """Though it was not closed: the look finds nothing."""
    store, rids = await opened(damaged(good, tmp_path, lambda content: None))
    assert store.salvaged is None
    assert len(rids) == DONE + WAITING
    assert sorted(path.name for path in tmp_path.glob("*damaged*")) == []
    assert not salvage.marker(tmp_path / "edged.db").exists()
    await store.stop()


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "each"])
async def test_whatever_page_is_damaged_the_rest_lives_on(step: int, good: Path, tmp_path: Path) -> None:
    """One page in turn. The old file stays as it was, a request is known or gone, and nothing can be done twice: one
    that was finished is never in the queue again."""
    pages = good.stat().st_size // opening.PAGE_BYTES
    kept = []
    for number in (*range(3, 24), *range(24, pages + 1, step)):  # first the tables', then rows
        folder = tmp_path / str(number)
        folder.mkdir()
        path = damaged(good, folder, page(number))
        before = path.read_bytes()
        store, rids = await opened(path)
        kept.append(len(rids))
        if store.salvaged is not None:
            aside = Path(store.salvaged.aside)
            assert aside.read_bytes()[opening.PAGE_BYTES :] == before[opening.PAGE_BYTES :]
        waiting = {row.rid for row in await store.write(lambda c: requests.claim(c, ANY))}
        assert all(rid.startswith("wait") for rid in waiting)
        whole = await store.read(lambda c: (c.pragma("integrity_check"), audit.verify(c).problem))
        assert whole == ("ok", None)
        again = await store.write(lambda c: requests.accept(c, ask("new", id="new"), "new", "boot", 100, 2**30))
        assert not again.known
        await store.stop()
        shutil.rmtree(folder)
    assert min(kept) >= DONE + WAITING - 8  # what was on it


@pytest.mark.parametrize("size", [512, 4096, 16384])
async def test_file_without_its_beginning_keeps_what_lies_behind(size: int, good: Path, tmp_path: Path) -> None:
    """A block that was erased: header, list of tables and their first pages are gone."""

    def erase(content: bytearray) -> None:
        content[:size] = b"\xff" * size

    store, rids = await opened(damaged(good, tmp_path, erase))
    assert store.salvaged is not None
    assert len(rids) >= DONE + WAITING - size // 100
    steps = await store.read(lambda c: c.execute("SELECT count(*) FROM steps").get)
    assert steps >= DONE - size // 100
    await store.stop()


async def test_log_of_a_file_without_its_header_is_read(good: Path, tmp_path: Path) -> None:
    """What was acknowledged last is in the log only; and where that has the header, too, nothing is wrong."""
    path = tmp_path / "edged.db"
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(good, whole / "edged.db")
    with contextlib.closing(opening.open_file(whole / "edged.db", MIGRATIONS)) as c:
        requests.accept(c, ask("last", id="last"), "last", "boot", 10_000, 2**30)
        shutil.copy(whole / "edged.db", path)
        shutil.copy(whole / "edged.db-wal", tmp_path / "edged.db-wal")
    with path.open("r+b") as file:
        file.write(bytes(100))
    store, rids = await opened(path)
    assert "last" in rids
    assert len(rids) == DONE + WAITING + 1
    await store.stop()


async def test_rows_that_were_deleted_do_not_come_back(good: Path, tmp_path: Path) -> None:
    """Their pages are free, and still hold them."""
    path = damaged(good, tmp_path, lambda content: None)
    with contextlib.closing(apsw.Connection(str(path))) as c:
        c.execute("PRAGMA foreign_keys = ON")
        c.execute("DELETE FROM requests WHERE seq <= 30")
        root = c.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'requests'").get
        left = {rid for (rid,) in c.execute("SELECT rid FROM requests")}
        c.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    content = bytearray(path.read_bytes())
    page(root)(content)
    path.write_bytes(content)
    store, rids = await opened(path)
    assert store.salvaged is not None
    assert len(rids) > len(left) - 8
    assert set(rids) <= left
    await store.stop()


async def test_row_that_cannot_be_read_is_ended_and_holds_up_nobody(good: Path, tmp_path: Path) -> None:
    """Bits that fell over where no page shows it: work would stop at it for ever."""
    path = damaged(good, tmp_path, lambda content: None)
    with contextlib.closing(apsw.Connection(str(path))) as c:
        c.execute("UPDATE requests SET body = x'00' WHERE rid = 'wait0000'")
        c.execute("UPDATE requests SET state = 'rexeived' WHERE rid = 'wait0001'")
        c.execute("UPDATE requests SET body = x'00' WHERE rid = 'rid0003'")
        mend.mend(c)
    store, rids = await opened(path)
    assert len(rids) == DONE + WAITING
    claimed = {row.rid for row in await store.write(lambda c: requests.claim(c, ANY))}
    assert claimed == {f"wait{number:04}" for number in range(2, WAITING)}
    for name in ("wait0000", "wait0001"):
        row = await store.read(lambda c: lookup.get(c, name))  # noqa: B023  # awaited in this turn
        assert row.status == "failed"
        assert row.reply is not None
    known = await store.read(lambda c: lookup.get(c, "rid0003"))
    assert known.reply is not None
    assert known.status == "done"
    await store.stop()


async def test_log_goes_along_with_a_file_that_is_set_aside(good: Path, tmp_path: Path) -> None:
    """Also where the power goes between the two: the next start takes it along."""
    path = damaged(good, tmp_path, page(5))
    aside = salvage.set_aside(path)
    salvage.marker(path).write_text(aside.name)
    path.with_name("edged.db-wal").write_bytes(b"log")  # as if it had not been renamed yet
    assert salvage.is_under_way(path)
    assert salvage.set_aside(path) == aside
    assert aside.with_name(aside.name + "-wal").read_bytes() == b"log"
    assert not path.with_name("edged.db-wal").exists()


@pytest.mark.parametrize(
    "harm",
    [cut, page(1), lambda content: content.__setitem__(slice(0, 100), bytes(100)), lambda content: content.clear()],
)
async def test_file_that_is_hardly_one_any_more_is_set_aside(
    harm: Callable[[bytearray], None], good: Path, tmp_path: Path
) -> None:
    """Cut off, without its header, empty: work begins anew with what there is."""
    store, _ = await opened(damaged(good, tmp_path, harm))
    accepted = await store.write(lambda c: requests.accept(c, ask("new", id="n"), "new", "boot", 100, 2**30))
    assert not accepted.known
    await store.stop()


async def test_finished_request_whose_reply_is_lost_stays_known_and_says_so(good: Path, tmp_path: Path) -> None:
    """Asked again it is not done again."""
    path = damaged(good, tmp_path, lambda content: None)
    with contextlib.closing(apsw.Connection(str(path))) as c:
        c.execute("DELETE FROM replies WHERE seq = 3").fetchall()
        mend.mend(c)
    store, _ = await opened(path)
    accepted = await store.write(lambda c: requests.accept(c, ask("text 2", id="q2"), "new", "boot", 100, 2**30))
    assert accepted.known
    assert accepted.reply is not None
    assert mend.LOST.encode() in accepted.reply
    await store.stop()


async def test_salvage_that_was_cut_off_goes_on_at_the_next_start(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power goes between setting aside and the new file."""
    path = damaged(good, tmp_path, page(5))

    def power_cut(*_: Any) -> dict[str, int]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(salvage, "copy", power_cut)
        with pytest.raises(KeyboardInterrupt):
            opening.open_or_salvage(path, MIGRATIONS, mend.mend)
    assert not path.exists()
    store, rids = await opened(path)
    assert store.salvaged is not None
    assert len(rids) > DONE
    assert len([name for name in tmp_path.iterdir() if "damaged" in name.name and name.suffix != ".new"]) >= 1
    await store.stop()


async def test_damage_that_is_met_while_it_works_is_told(tmp_path: Path) -> None:
    """Whoever is told ends the daemon, and the next start looks at the file."""
    told: list[BaseException] = []
    path = tmp_path / "x.db"
    store = Database(path, ("CREATE TABLE t(a)",), on_damage=told.append)
    await store.start()
    await store.write(lambda c: c.execute("INSERT INTO t VALUES (zeroblob(6000000))"))
    await store.write(lambda c: None, durable=False)  # the log was copied into the file behind that commit
    with path.open("r+b") as file:
        file.seek(2 * opening.PAGE_BYTES)
        file.write(random.Random(1).randbytes(path.stat().st_size - 2 * opening.PAGE_BYTES))
    with pytest.raises(salvage.DAMAGE):
        await store.read(lambda c: c.execute("SELECT length(a || '') FROM t").fetchall())
    await store.write(lambda c: None, durable=False)
    assert told
    assert salvage.marker(path).exists()
    await store.stop()
