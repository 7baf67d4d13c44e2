"""A disk without room when the daemon starts."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker import until
from tests.support.daemon import Daemon, Wired


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB for the state."""
    folder = tmp_path / "state"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mount.returncode:
        pytest.skip("only root can mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


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


async def test_start_waits_for_a_disk_that_is_full(tmp_path: Path, small_disk: Path) -> None:
    """It does not end to be started again and again: it says what it waits for, asks for time, and goes on when there
    is room. What it did before is there; a stop does not have to wait."""
    async with Daemon(tmp_path) as daemon:
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "agent.ask", {"input": "note 1;", "id": "r1"}))[1]["status"] == "done"
        assert await daemon.stop() == 0
        filler = fill(small_disk)
        await daemon.start(ready=False)
        await daemon.noticed("EXTEND_TIMEOUT_USEC=", 2)
        assert daemon.notices[0].startswith("STATUS=waits for the disk")
        assert "event=store_unusable" in daemon.text()
        filler.unlink()
        await daemon.noticed("READY=1")
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "agent.ask", {"input": "note 1;", "id": "r1"}))[1]["output"] == "noted 1"
        assert daemon.rows("diary") == [("n1",)]
        assert await daemon.stop() == 0
        fill(small_disk)
        await daemon.start(ready=False)
        await until(lambda: any(notice.startswith("EXTEND_TIMEOUT_USEC=") for notice in daemon.notices))
        assert await daemon.stop() == 0
        assert "READY=1" not in daemon.notices
        assert "Traceback" not in daemon.text()
