"""A disk without room when the daemon starts for the first time."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, Wired


def run(*command: str) -> int:
    """The exit status of a program."""
    return subprocess.run(command, check=False, capture_output=True).returncode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB for the state."""
    folder = tmp_path / "state"
    folder.mkdir()
    if run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)):
        pytest.skip("only root can mount")
    yield folder
    run("umount", str(folder))


def fill(disk: Path) -> Path:
    """Take all room that there is."""
    path = disk / "fill"
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    for size in (4096, 1):
        with contextlib.suppress(OSError):
            while True:
                os.write(file, b"x" * size)
    os.close(file)
    return path


async def test_first_start_waits_for_a_disk_that_is_full(tmp_path: Path, small_disk: Path) -> None:
    """It does not end to be started again and again: it says what it waits for, asks for time, and goes on when there
    is room. A stop does not have to wait."""
    filler = fill(small_disk)
    daemon = Daemon(tmp_path)
    try:
        for _ in range(2):
            await daemon.start(ready=False)
            await daemon.noticed("EXTEND_TIMEOUT_USEC=", 2)
            assert daemon.notices[0].startswith("STATUS=waits for the disk")
            assert "event=store_unusable" in daemon.text()
            assert await daemon.stop() == 0
            assert "READY=1" not in daemon.notices
        await daemon.start(ready=False)
        await daemon.noticed("EXTEND_TIMEOUT_USEC=")
        filler.unlink()
        await daemon.noticed("READY=1")
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "agent.ask", {"input": "note 1;"}))[1]["output"] == "noted 1"
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.text()
    finally:
        await daemon.__aexit__()
