"""States of prefixes on a real disk: found when they fit, dropped when they do not, written once."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edged.engines.llama import snapshot_file, snapshot_writer, snapshots
from edged.engines.llama.sequence import MIN_SHARED_TOKENS
from edged.engines.llama.snapshot_worth import Worth
from edged.engines.llama.snapshots import Entry, Key, Snapshots

KEY = Key(model="qwen", runtime="llama.cpp 0.3.36 AVX2", context="f16 f16 unified")
BOUND = 2**20
HOUR = 3600.0


def tokens(n: int = 100, first: int = 0) -> tuple[int, ...]:
    """A prefix."""
    return tuple(range(first, first + n))


def state(n_bytes: int = 1000, byte: int = 7) -> bytes:
    """What a model would have in memory."""
    return bytes([byte]) * n_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


@pytest.fixture
def opened() -> Iterator[list[Snapshots]]:
    """Closed at the end, so that no writer survives its test."""
    all_of_them: list[Snapshots] = []
    yield all_of_them
    for one in all_of_them:
        one.close(5)


@pytest.fixture
def make(folder: Path, opened: list[Snapshots]) -> Callable[..., Snapshots]:
    """A daemon's snapshots; again: the next daemon's."""

    def build(max_bytes: int = BOUND) -> Snapshots:
        for one in opened:
            one.close(5)
        opened.append(Snapshots(folder, max_bytes))
        return opened[-1]

    return build


Make = Callable[..., Snapshots]


def keep(make: Make, *kept: tuple[int, ...], n_bytes: int = 1000, max_bytes: int = BOUND) -> Snapshots:
    """Snapshots that have these on the disk, each written a moment after the one before; 100 tokens took 10 s."""
    owner = make(max_bytes)
    shelf = owner.open(KEY)
    for each in kept:
        assert shelf.write(each, state(n_bytes), len(each) / 10)
    owner.close(5)
    return owner


def only(folder: Path) -> Path:
    [path] = folder.glob("*.state")
    return path


# What fits is found


def test_a_state_survives_a_restart(make: Make, folder: Path) -> None:
    """The next daemon reads what this one wrote, and nobody else may."""
    written = keep(make, tokens()).stats
    assert (written.files, written.written_files) == (1, 1)
    assert written.bytes == written.written_bytes == only(folder).stat().st_size
    owner = make()
    shelf = owner.open(KEY)
    entry = shelf.best((*tokens(), 1, 2, 3))
    assert entry == Entry(tokens(), 1000, 10.0, only(folder).name)
    assert shelf.read(entry) == state()
    shelf.observe(entry, 0.01)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert owner.stats == snapshots.Stats(files=1, bytes=written.bytes, read_files=1, restored=1)


@pytest.mark.parametrize("field", Key.__struct_fields__)
def test_a_state_of_another_key_is_not_seen(make: Make, field: str) -> None:
    """Whatever differs; the file stays, within the bound, for when the other one is loaded again."""
    keep(make, tokens())
    owner = make()
    other = owner.open(msgspec.structs.replace(KEY, **{field: "other"}))
    assert other.best(tokens()) is None
    assert not other.has(tokens())
    assert other.wants(tokens(), 1000, 10.0)
    assert owner.stats.files == 1
    assert owner.open(KEY).has(tokens())


def test_a_state_of_another_format_is_not_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes when its place is needed."""
    keep(make, tokens())
    monkeypatch.setattr(snapshot_file, "VERSION", 2)
    owner = make(2600)
    shelf = owner.open(KEY)
    assert shelf.best(tokens()) is None
    assert shelf.write(tokens(), state(), 10.0)
    owner.close()
    assert owner.stats.files == 1
    monkeypatch.undo()
    assert not make(2600).open(KEY).has(tokens())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (tokens(200), 200),
        (tokens(150), 200),  # 150 of its 200 tokens
        ((*tokens(150), 7, 7), 200),
        ((*tokens(MIN_SHARED_TOKENS - 1), 7), None),
        (tokens(100, first=1), None),
        ((), None),
    ],
)
def test_the_one_that_saves_most_is_offered(make: Make, asked: tuple[int, ...], expected: int | None) -> None:
    """There are states of 100 and of 200 tokens."""
    keep(make, tokens(100), tokens(200))
    found = make().open(KEY).best(asked)
    assert (len(found.tokens) if found else None) == expected


def test_of_two_that_share_as_much_the_smaller_is_offered(make: Make) -> None:
    """It is read faster."""
    owner = make()
    shelf = owner.open(KEY)
    for n in (300, 100, 200):
        shelf.write(tokens(n), state(1000 * n), n / 10)
    owner.close()
    for asked in (tokens(100), (*tokens(MIN_SHARED_TOKENS), 7)):
        found = make().open(KEY).best(asked)
        assert found is not None
        assert found.tokens == tokens(100)


def test_a_model_that_cannot_cut_is_offered_whole_states_only(make: Make) -> None:
    """Recurrent layers have no first half."""
    keep(make, tokens(100), tokens(200))
    shelf = make().open(KEY)
    found = shelf.best(tokens(150), cuts=False)
    assert found is not None
    assert len(found.tokens) == 100
    assert shelf.best(tokens(99), cuts=False) is None


def test_what_is_computed_already_counts_for_nothing(make: Make) -> None:
    """A prefix in memory that shares as much is better."""
    keep(make, tokens(100))
    shelf = make().open(KEY)
    assert shelf.best(tokens(100), already=100) is None
    assert shelf.best(tokens(100), already=50) is not None


# What is damaged is dropped


def test_a_torn_file_is_dropped_when_the_model_is_loaded(
    make: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A card that lost its end."""
    keep(make, tokens())
    os.truncate(only(folder), 900)
    owner = make()
    shelf = owner.open(KEY)
    assert shelf.best(tokens()) is None
    assert (owner.stats.files, owner.stats.refused) == (0, 1)
    assert not list(folder.glob("*.state"))
    assert len(caplog.records) == 1
    assert shelf.write(tokens(), state(), 10.0)
    owner.close()
    assert make().open(KEY).has(tokens())


def test_a_flipped_bit_in_the_state_is_found_when_it_is_read(
    make: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is never loaded; it is told once, and computed and written again."""
    keep(make, tokens())
    whole = bytearray(only(folder).read_bytes())
    whole[-1] ^= 4
    only(folder).write_bytes(whole)
    owner = make()
    shelf = owner.open(KEY)
    entry = shelf.best(tokens())
    assert entry is not None
    assert shelf.read(entry) is None
    assert shelf.read(entry) is None
    assert (owner.stats.files, owner.stats.refused, owner.stats.read_files) == (0, 1, 0)
    assert shelf.best(tokens()) is None
    assert not shelf.has(tokens())
    assert len(caplog.records) == 1


def test_a_file_under_another_ones_name_is_not_believed(make: Make, folder: Path) -> None:
    """Its bits are whole, and it is the wrong state."""
    keep(make, tokens(100), tokens(100, first=500))
    first, second = sorted(folder.glob("*.state"))
    first.write_bytes(second.read_bytes())
    owner = make()
    owner.open(KEY)
    assert (owner.stats.files, owner.stats.refused) == (1, 1)


def test_a_file_that_was_replaced_after_its_header_was_read_is_not_believed(make: Make, folder: Path) -> None:
    """The same, later."""
    keep(make, tokens(100), tokens(100, first=500))
    owner = make()
    shelf = owner.open(KEY)
    first, second = sorted(folder.glob("*.state"))
    first.write_bytes(second.read_bytes())
    entries = [e for e in (shelf.best(tokens(100)), shelf.best(tokens(100, first=500))) if e]
    assert sum(shelf.read(e) is None for e in entries) == 1
    assert owner.stats.refused == 1


def test_a_file_that_somebody_removed_is_gone_and_nothing_else(make: Make, folder: Path) -> None:
    """Nothing was damaged."""
    keep(make, tokens())
    owner = make()
    shelf = owner.open(KEY)
    entry = shelf.best(tokens())
    assert entry is not None
    only(folder).unlink()
    assert shelf.read(entry) is None
    assert (owner.stats.files, owner.stats.refused) == (0, 0)
    assert shelf.wants(tokens(), 1000, 10.0)


def test_a_state_the_runtime_does_not_take_is_dropped(make: Make, folder: Path) -> None:
    """Whole, and still wrong."""
    keep(make, tokens())
    owner = make()
    shelf = owner.open(KEY)
    entry = shelf.best(tokens())
    assert entry is not None
    assert shelf.read(entry) is not None
    shelf.refuse(entry, "llama.cpp took 0 bytes of it")
    assert (owner.stats.files, owner.stats.refused, owner.stats.restored) == (0, 1, 0)
    assert not list(folder.glob("*.state"))


def test_leftovers_of_a_crash_are_removed_and_strangers_are_left_alone(make: Make, folder: Path) -> None:
    """What is not ours does not count either."""
    keep(make, tokens())
    (folder / "abc.part").write_bytes(state())
    (folder / "README").write_text("mine")
    owner = make(only(folder).stat().st_size)
    owner.start()
    assert owner.stats.files == 1
    assert sorted(p.suffix for p in folder.iterdir()) == ["", ".state"]


# What is written


def test_nothing_is_written_twice(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is stored nor what is on its way."""
    owner = make()
    shelf = owner.open(KEY)
    go, real = threading.Event(), snapshot_file.write

    def slow(*args: object) -> int:
        go.wait(10)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot_file, "write", slow)
    assert not shelf.has(tokens())
    assert shelf.write(tokens(), state(), 10.0)
    assert shelf.has(tokens())
    assert not shelf.write(tokens(), state(), 10.0)
    go.set()
    owner.close()
    assert shelf.has(tokens())
    assert owner.stats.written_files == 1
    again = make()
    assert not again.open(KEY).write(tokens(), state(), 10.0)
    again.close()
    assert again.stats.written_bytes == 0


def test_what_was_used_longest_ago_goes_first(make: Make) -> None:
    """Use is known after a restart; the bound is kept."""
    first, second, third = tokens(), tokens(first=500), tokens(first=1000)
    keep(make, first, second, n_bytes=1000, max_bytes=4000)
    owner = make(4000)
    shelf = owner.open(KEY)
    entry = shelf.best(first)
    assert entry is not None
    shelf.read(entry)
    owner.close()
    owner = make(4000)
    shelf = owner.open(KEY)
    shelf.write(third, state(), 10.0)
    owner.close()
    assert [shelf.has(each) for each in (first, second, third)] == [True, False, True]
    assert (owner.stats.files, owner.stats.dropped) == (2, 1)
    assert owner.stats.bytes <= 4000


def test_a_smaller_bound_is_kept_from_the_start(make: Make, folder: Path) -> None:
    """0 keeps nothing, and makes no folder."""
    keep(make, tokens(), tokens(first=500))
    owner = make(2000)
    owner.start()
    assert (owner.stats.files, owner.stats.dropped) == (1, 1)
    off = make(0)
    shelf = off.open(KEY)
    assert shelf.best(tokens(first=500)) is None
    assert not shelf.write(tokens(), b"", 10.0)
    assert not list(folder.glob("*.state"))


def test_snapshots_that_are_off_make_no_folder(make: Make, folder: Path) -> None:
    """Nor does one that was never used."""
    make()
    assert not folder.exists()
    off = make(0)
    off.start()
    off.close()
    assert not folder.exists()


def test_what_is_larger_than_the_bound_is_not_written(make: Make) -> None:
    """It would push out everything, and then itself."""
    owner = keep(make, tokens(), max_bytes=3000)
    shelf = owner.open(KEY)
    assert shelf.has(tokens())
    owner = make(3000)
    shelf = owner.open(KEY)
    assert not shelf.write(tokens(first=500), state(2900), 10.0)
    owner.close()
    assert (owner.stats.files, owner.stats.written_files) == (1, 0)


def test_a_clock_that_begins_anew_does_not_make_the_newest_the_oldest(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board without a battery wakes up in 1970."""
    keep(make, tokens(), max_bytes=3000)
    monkeypatch.setattr(time, "time", lambda: 5.0)
    owner = make(3000)
    shelf = owner.open(KEY)
    shelf.write(tokens(first=500), state(1400), 10.0)
    owner.close()
    assert [shelf.has(tokens()), shelf.has(tokens(first=500))] == [False, True]


def test_using_a_file_writes_nothing_until_the_end_or_the_next_day(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its modification time says when it was used; nothing else is touched."""
    keep(make, tokens())
    written_at = only(folder).stat().st_mtime
    owner = make()
    shelf = owner.open(KEY)
    entry = shelf.best(tokens())
    assert entry is not None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + HOUR)
    shelf.read(entry)
    assert shelf.has(tokens())
    assert only(folder).stat().st_mtime == written_at
    monkeypatch.setattr(time, "time", lambda: now + 30 * HOUR)
    shelf.read(entry)
    wait_until(lambda: only(folder).stat().st_mtime == pytest.approx(now + 30 * HOUR))
    monkeypatch.setattr(time, "time", lambda: now + 31 * HOUR)
    shelf.read(entry)
    owner.close()
    assert only(folder).stat().st_mtime == pytest.approx(now + 31 * HOUR)
    assert owner.stats.written_bytes == 0


def test_a_full_disk_is_told_once_and_leaves_things_as_they_are(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And its end is told."""
    caplog.set_level(logging.INFO)
    keep(make, tokens())
    owner = make()
    shelf = owner.open(KEY)
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 500:
            real(fd, data[:500])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    for first in (500, 600):
        assert shelf.write(tokens(first=first), state(), 10.0)
        wait_until(lambda first=first: not shelf.has(tokens(first=first)))  # type: ignore[misc]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "No space left" in told[0]
    assert [p.suffix for p in folder.iterdir()] == [".state"]
    monkeypatch.undo()
    assert shelf.write(tokens(first=500), state(), 10.0)
    owner.close()
    assert (owner.stats.files, owner.stats.written_files) == (2, 1)
    assert "again" in caplog.records[-1].getMessage()


def test_the_disk_is_never_filled_to_the_brim(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store needs room too; not a byte is written for the attempt."""
    owner = make()
    shelf = owner.open(KEY)
    real = os.statvfs(folder)
    blocks = (snapshots.LEFT_FREE_BYTES + 500) // real.f_frsize
    values = list(real)
    values[4] = blocks  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    monkeypatch.setattr(snapshot_file, "write", lambda *args: pytest.fail("was written"))
    shelf.write(tokens(), state(100_000), 10.0)
    owner.close()
    assert owner.stats.files == 0


def test_a_read_only_disk_can_be_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old states are used, new ones are not kept, nothing fails."""
    keep(make, tokens())
    real = os.open

    def read_only(path: str, flags: int, *args: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *args)

    def no_time(*args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "utime", no_time)
    owner = make()
    shelf = owner.open(KEY)
    entry = shelf.best(tokens())
    assert entry is not None
    assert shelf.read(entry) == state()
    assert shelf.write(tokens(first=500), state(), 10.0)
    owner.close()
    assert (owner.stats.files, owner.stats.written_files) == (1, 0)


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Prefixes are computed, as without."""
    (tmp_path / "file").write_text("")
    owner = Snapshots(tmp_path / "file" / "snapshots", BOUND)
    shelf = owner.open(KEY)
    assert shelf.best(tokens()) is None
    shelf.write(tokens(), state(), 10.0)
    owner.close()
    assert owner.stats.files == 0
    assert caplog.records


# The writer


def test_close_waits_for_what_is_queued(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop is the moment at which most is written."""
    real = snapshot_file.write

    def slow(*args: object) -> int:
        time.sleep(0.05)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot_file, "write", slow)
    owner = keep(make, *(tokens(first=1000 * i) for i in range(4)))
    assert owner.stats.written_files == 4


def test_close_does_not_wait_for_ever(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not written by then is given up, between two chunks; nothing of it is left."""
    real = os.write

    def slow(fd: int, data: bytes) -> int:
        time.sleep(0.1)
        return real(fd, data)

    monkeypatch.setattr(os, "write", slow)
    owner = make(2**30)
    shelf = owner.open(KEY)
    assert shelf.write(tokens(), state(40 * 2**20), 10.0)
    assert shelf.write(tokens(first=500), state(), 10.0)
    began = time.monotonic()
    owner.close(0.3)
    assert time.monotonic() - began < 2
    assert owner.stats.files == 0
    assert not list(folder.iterdir())
    assert not shelf.write(tokens(first=500), state(), 10.0)


def test_what_waits_for_the_disk_can_be_dropped(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is needed: what is being written is finished, the rest is forgotten and may be stored another time."""
    begun, go, real = threading.Event(), threading.Event(), snapshot_file.write

    def slow(*args: object) -> int:
        begun.set()
        go.wait(10)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot_file, "write", slow)
    owner = make()
    shelf = owner.open(KEY)
    for n in range(3):
        assert shelf.write(tokens(first=1000 * n), state(), 10.0)
    assert begun.wait(10)
    assert owner.forget_queued() == 2000
    assert [shelf.has(tokens(first=1000 * n)) for n in range(3)] == [True, False, False]
    assert shelf.write(tokens(first=2000), state(), 10.0)
    assert owner.forget_queued() == 1000
    go.set()
    owner.close(5)
    assert owner.stats.written_files == 1
    assert owner.forget_queued() == 0


def test_what_waits_for_the_disk_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in memory; whoever can wait does."""
    go, real = threading.Event(), snapshot_file.write

    def slow(*args: object) -> int:
        go.wait(10)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot_file, "write", slow)
    monkeypatch.setattr(snapshot_writer, "MOST_QUEUED_BYTES", 2500)
    owner = make()
    shelf = owner.open(KEY)
    assert shelf.write(tokens(first=0), state(), 10.0)
    assert shelf.write(tokens(first=500), state(), 10.0)
    assert not shelf.write(tokens(first=1000), state(), 10.0)
    assert not shelf.has(tokens(first=1000))
    threading.Timer(0.1, go.set).start()
    assert shelf.write(tokens(first=1000), state(), 10.0, wait_s=5)
    owner.close()
    assert owner.stats.written_files == 3


def test_reading_and_evicting_at_once_is_safe(make: Make) -> None:
    """A file may go while it is looked for: then it is computed."""
    owner = make(6000)
    shelf = owner.open(KEY)
    end, i = time.monotonic() + 10, 0
    while owner.stats.written_files < 40 and time.monotonic() < end:
        i += 1
        shelf.write(tokens(first=100 * (i % 9)), state(), 10.0, wait_s=5)
        for j in range(9):
            entry = shelf.best(tokens(first=100 * j))
            if entry is not None:
                assert shelf.read(entry) in (None, state())
    owner.close()
    assert owner.stats.refused == 0
    assert owner.stats.read_files > 40
    assert owner.stats.dropped >= 36
    assert 0 < owner.stats.bytes <= 6000


# What is worth it


@pytest.fixture
def slow_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was measured: 100 bytes a second, so that 1,000 bytes take 10 s; nothing is in the page cache."""
    folder.mkdir()
    (folder / snapshots.WORTH_FILE).write_bytes(msgspec.json.encode(Worth(medium=100.0)))
    monkeypatch.setattr(snapshot_file, "in_page_cache", lambda path: False)


@pytest.mark.usefixtures("slow_card")
@pytest.mark.parametrize(
    ("asked", "tokens_per_s", "offered"),
    [
        (100, None, True),  # computed in 20 s when it was written
        (40, None, False),  # 40 of 100 tokens: 8 s
        (100, 20.0, False),  # 5 s now
        (40, 2.0, True),  # 20 s now
    ],
)
def test_a_state_is_offered_only_where_reading_beats_computing(
    make: Make, asked: int, tokens_per_s: float | None, offered: bool
) -> None:
    """As measured on this board."""
    owner = make()
    shelf = owner.open(KEY)
    assert shelf.write(tokens(100), state(), 20.0)
    owner.close()
    found = make().open(KEY).best(tokens(asked), tokens_per_s)
    assert (found is not None) is offered


@pytest.mark.usefixtures("slow_card")
def test_a_state_is_written_only_where_reading_will_beat_computing(make: Make) -> None:
    """Flash is not worn for what nobody will read."""
    owner = make()
    shelf = owner.open(KEY)
    assert not shelf.wants(tokens(), 1000, 9.0)
    assert not shelf.write(tokens(), state(), 9.0)
    assert shelf.wants(tokens(), 1000, 11.0)


@pytest.mark.usefixtures("slow_card")
def test_what_a_read_took_is_known_after_a_restart(make: Make, folder: Path) -> None:
    """This one takes no 10 s."""
    keep(make, tokens(), n_bytes=900)
    owner = make()
    shelf = owner.open(KEY)
    for _ in range(10):
        entry = shelf.best(tokens(), 1.0)
        assert entry is not None
        shelf.read(entry)
    owner.close()
    known = msgspec.json.decode((folder / snapshots.WORTH_FILE).read_bytes(), type=Worth)
    assert known.medium > 10_000
    assert make().open(KEY).best(tokens(), 500.0) is not None


def test_a_state_that_was_slower_than_computing_is_given_up(make: Make, folder: Path) -> None:
    """Its place is freed, and it is not written and read and given up again at every restart; only when computing has
    become a lot slower it is tried again."""
    keep(make, tokens(100))
    owner = make()
    shelf = owner.open(KEY)
    entry = shelf.best(tokens(100))
    assert entry is not None
    assert shelf.read(entry) is not None
    shelf.observe(entry, 5.0)  # computing took 10 s
    assert shelf.has(tokens(100))
    shelf.observe(entry, 5.0, tokens_per_s=25.0)  # it would take 4 s now
    assert (owner.stats.files, owner.stats.dropped, owner.stats.restored) == (0, 1, 2)
    assert not list(folder.glob("*.state"))
    assert not shelf.wants(tokens(100), 1000, 4.0)
    shelf = make().open(KEY)
    assert not shelf.wants(tokens(100), 1000, 4.0)
    assert shelf.wants(tokens(99), 1000, 4.0)
    assert shelf.wants(tokens(100), 1000, 9.0)


def test_what_was_learned_may_be_damaged(make: Make, folder: Path) -> None:
    """Then the first guesses count."""
    keep(make, tokens())
    (folder / snapshots.WORTH_FILE).write_text('{"medium": 0}')
    assert make().open(KEY).best(tokens()) is not None


def test_the_page_cache_is_told_from_the_medium(tmp_path: Path) -> None:
    """What was just written is in memory; what is missing is not."""
    path = tmp_path / "file"
    path.write_bytes(state(100_000))
    try:
        with path.open("rb") as file:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError:
        pytest.skip("this file system does not say what it has in memory")
    assert snapshot_file.in_page_cache(path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert not snapshot_file.in_page_cache(path)
    assert not snapshot_file.in_page_cache(tmp_path / "none")


def wait_until(true: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Poll; the writer has no event to wait for."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)
