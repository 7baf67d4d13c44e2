"""A stored state is read as it was written, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edged.engines.llama import snapshot_file
from edged.engines.llama.snapshot_file import CHUNK, Damaged, Header, Key, Stopped

KEY = Key("model", "runtime", "context")
STATE = bytes(range(256))


def stored(path: Path, state: bytes = STATE, tokens: tuple[int, ...] = (1, 2, 151_000)) -> Header:
    """Write a state; returns its header."""
    header = Header(KEY, tokens, len(state), 1.5, 1e9, snapshot_file.digest_of(state))
    snapshot_file.write(path, header, memoryview(state), used_at=1e9)
    return header


@pytest.mark.parametrize("length", [0, 1, CHUNK, 2 * CHUNK + 1])
def test_what_is_written_is_read(tmp_path: Path, length: int) -> None:
    """States of any length, with their header, in a file that is its owner's only."""
    path, state = tmp_path / "a.state", os.urandom(length)
    header = stored(path, state)
    assert snapshot_file.read(path) == (header, state)
    assert snapshot_file.read_header(path) == header
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_mtime == 1e9
    assert path.stat().st_size <= snapshot_file.most_bytes(len(header.tokens), length)
    assert [p.name for p in tmp_path.iterdir()] == ["a.state"]


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    """Every byte of the file answers to one of the digests."""
    path = tmp_path / "a.state"
    stored(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(Damaged):
            snapshot_file.read(path)
    path.write_bytes(whole)
    assert snapshot_file.read(path)[1] == STATE


def test_a_file_that_is_too_short_or_too_long_is_found_by_its_header_alone(tmp_path: Path) -> None:
    """An index is made without reading the states."""
    path = tmp_path / "a.state"
    stored(path)
    whole = path.read_bytes()
    for torn in [whole[:at] for at in range(len(whole))] + [whole + b"x"]:
        path.write_bytes(torn)
        with pytest.raises(Damaged):
            snapshot_file.read_header(path)


@pytest.mark.parametrize(
    ("at", "value"), [(0, b"GGUF"), (8, b"\x02"), (12, b"\xff\xff\xff\xff")], ids=["magic", "version", "header length"]
)
def test_another_file_is_refused_before_anything_of_it_is_believed(tmp_path: Path, at: int, value: bytes) -> None:
    """A length of 4 GB is not even tried."""
    path = tmp_path / "a.state"
    stored(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + value + whole[at + len(value) :])
    with pytest.raises(Damaged):
        snapshot_file.read(path)


def test_a_write_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    """Between two chunks."""
    state = bytes(3 * CHUNK)
    header = Header(KEY, (1,), len(state), 1.0, 0.0, snapshot_file.digest_of(state))
    asked = iter([True, True, False])
    with pytest.raises(Stopped):
        snapshot_file.write(tmp_path / "a.state", header, memoryview(state), 0.0, lambda: next(asked))
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_file_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes half of it."""
    path = tmp_path / "a.state"
    before = stored(path)
    real = os.write

    def full(fd: int, data: bytes) -> int:
        real(fd, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        stored(path, b"other")
    monkeypatch.undo()
    assert snapshot_file.read(path) == (before, STATE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.state"]


CRASHING = """
    import os, signal, sys
    from pathlib import Path
    from edged.engines.llama import snapshot_file
    from edged.engines.llama.snapshot_file import Header, Key

    folder, state = Path(sys.argv[1]), bytes(range(256)) * 8192  # two chunks
    header = Header(Key("m", "r", "c"), (1, 2), len(state), 1.0, 0.0, snapshot_file.digest_of(state))

    def crash_at(call):  # the process dies before its n-th system call, or in the middle of it where that writes
        made = 0

        def counted(name, real):
            def wrapped(*args, **kwargs):
                nonlocal made
                made += 1
                if made == call:
                    if name == "write":
                        real(args[0], args[1][: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)
            return wrapped

        for name in ("open", "write", "utime", "fsync", "close", "replace"):
            setattr(os, name, counted(name, getattr(os, name)))

    call = 0
    while True:
        call += 1
        place = folder / f"{call:02}"
        place.mkdir()
        child = os.fork()
        if not child:
            crash_at(call)
            snapshot_file.write(place / "a.state", header, memoryview(state), 0.0)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            print(call)
            break
"""


def test_a_crash_between_any_two_system_calls_leaves_nothing_or_a_whole_file(tmp_path: Path) -> None:
    """A child is killed before, or in the middle of, each of them."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CRASHING), str(tmp_path)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    whole = []
    for place in sorted(tmp_path.iterdir()):
        path = place / "a.state"
        whole.append(path.exists())
        if whole[-1]:
            assert snapshot_file.read(path)[1] == bytes(range(256)) * 8192
    assert len(whole) == int(done.stdout) >= 10
    assert not whole[0]
    assert whole == sorted(whole)  # once it is there it stays there
