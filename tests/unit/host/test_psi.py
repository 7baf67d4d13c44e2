"""The kinds of files by which pressure is told, with real ones: FIFO, socket, ordinary file, urgent data, PSI."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest

from edged.host.psi import BOARD, Signal, Unwatchable, from_manager, own_group, trigger

SOON_S = 10.0  # a test that waits longer has failed


async def heard(signal: Signal) -> None:
    """Wait for the next one."""
    async with asyncio.timeout(SOON_S):
        await signal.next()


async def silent(signal: Signal) -> bool:
    """Whether nothing is there to be heard."""
    for _ in range(10):
        await asyncio.sleep(0)
    return not signal._heard.is_set()


def open_files() -> set[Path]:
    """Descriptors of this process."""
    return set(Path("/proc/self/fd").iterdir())


async def opened(path: Path, text: bytes = b"") -> Signal:
    """The manager's signal, which is there."""
    signal = await from_manager(path, text)
    assert signal is not None
    return signal


async def test_fifo_is_read_and_what_is_in_it_discarded(tmp_path: Path) -> None:
    """Any data is one signal, however much; writers that come and go are no end. Nothing is written into it."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    signal = await opened(path, b"not for a FIFO")
    try:
        assert await silent(signal)
        for data in (b"x", b"y" * 50_000):
            writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            os.write(writer, data)
            os.close(writer)
            await heard(signal)
            assert await silent(signal)
    finally:
        signal.close()


async def test_socket_is_told_the_text_and_then_heard(tmp_path: Path) -> None:
    """When the manager goes away, that is an end."""
    with socket.socket(socket.AF_UNIX) as manager:
        manager.bind(str(tmp_path / "socket"))
        manager.listen()
        signal = await opened(tmp_path / "socket", b"some 1 2")
        try:
            connection, _ = manager.accept()
            with connection:
                assert connection.recv(100) == b"some 1 2"
                assert await silent(signal)
                connection.send(b"now")
                await heard(signal)
                assert await silent(signal)
            with pytest.raises(Unwatchable, match="closed at the other end"):
                await heard(signal)
        finally:
            signal.close()


async def test_socket_that_nobody_serves_cannot_be_watched(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "socket"))
    with pytest.raises(Unwatchable, match="Connection refused"):
        await from_manager(tmp_path / "socket", b"")


async def test_off_is_nothing_to_watch() -> None:
    assert await from_manager(Path("/dev/null"), b"") is None


async def test_ordinary_file_gets_the_text_and_cannot_be_watched(tmp_path: Path) -> None:
    """Only a file of the kernel's tells by urgent data; every descriptor is closed again."""
    path = tmp_path / "memory.pressure"
    path.touch()
    before = open_files()
    with pytest.raises(Unwatchable, match="cannot be watched"):
        await from_manager(path, b"some 200000 2000000")
    assert path.read_bytes() == b"some 200000 2000000"
    assert open_files() == before


@pytest.mark.parametrize("what", ["missing", "folder"])
async def test_what_is_no_such_file_is_said(tmp_path: Path, what: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(Unwatchable, match="No such file" if what == "missing" else "neither a file"):
        await from_manager(tmp_path / what, b"")


async def test_urgent_data_is_a_signal_each_time_it_comes() -> None:
    """As a trigger of PSI tells, here by a socket; ordinary data is none, and nothing is read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
        signal = Signal("a test", ours, urgent=True)
        with theirs, contextlib.closing(signal):
            theirs.send(b"ordinary")
            assert await silent(signal)
            for _ in range(2):
                theirs.send(b"!", socket.MSG_OOB)
                await heard(signal)
                assert await silent(signal)
                assert ours.recv(1, socket.MSG_OOB) == b"!"
            assert ours.recv(100).startswith(b"ordinary")


async def test_trigger_of_the_board_opens() -> None:
    """With the window that those without rights get, too."""
    try:
        signal = trigger(BOARD, "PSI of the board")
    except Unwatchable as error:
        pytest.skip(str(error))  # no PSI, or a kernel before 6.5 and no rights
    try:
        assert await silent(signal)
    finally:
        signal.close()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.EBUSY])
async def test_trigger_that_the_kernel_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """No rights, no such windows, PSI switched off."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "memory"
    path.touch()
    monkeypatch.setattr(os, "write", refuse)
    before = open_files()
    with pytest.raises(Unwatchable, match=os.strerror(number)):
        trigger(path, "PSI")
    assert open_files() == before
    with pytest.raises(Unwatchable, match="No such file"):
        trigger(tmp_path / "none", "PSI")


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ("0::/system.slice/edged.service\n", "system.slice/edged.service/memory.pressure"),
        ("4:memory:/x\n0::/\n", None),  # the board's
        ("0::/other\n", None),
        ("4:memory:/x\n", None),
        (None, None),
    ],
)
def test_own_group(tmp_path: Path, own: str | None, found: str | None) -> None:
    for folder in (tmp_path, tmp_path / "system.slice" / "edged.service"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.pressure").touch()
    if own is not None:
        (tmp_path / "own").write_text(own)
    expected = None if found is None else tmp_path / found
    assert own_group(tmp_path, tmp_path / "own") == expected


def test_own_group_of_a_container(tmp_path: Path) -> None:
    """It sees its group as the root."""
    for name in ("memory.pressure", "cgroup.type"):
        (tmp_path / name).touch()
    (tmp_path / "own").write_text("0::/\n")
    assert own_group(tmp_path, tmp_path / "own") == tmp_path / "memory.pressure"
