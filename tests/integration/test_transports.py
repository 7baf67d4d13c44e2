"""A transport that edged does not know, in the real daemon: one file and one line are all that it takes."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from edged.daemon import lifecycle
from tests.support.broker import until
from tests.support.daemon import ROOT, Daemon, Wired

MEMBER = {"EDGED_TEST_MEMBERS": str(ROOT / "tests" / "support" / "folder_transport.py")}


def with_folder(tmp_path: Path, **environment: str) -> Daemon:
    """A daemon with that transport."""
    folder = {"EDGED_TEST_FOLDER": str(tmp_path / "folder")}
    return Daemon(tmp_path, environment={**MEMBER, **folder, **environment})


def put(tmp_path: Path, name: str, text: str) -> None:
    """A request; whole when it is seen."""
    made = tmp_path / name
    made.write_text(text)
    made.rename(tmp_path / "folder" / "in" / name)


async def reply(tmp_path: Path, name: str) -> Any:
    """The reply to a request, once it is there."""
    path = tmp_path / "folder" / "out" / name
    await until(lambda: path.exists() and path.read_bytes())
    return json.loads(path.read_bytes())


async def test_transport_from_outside_takes_requests_in_and_gets_their_replies(tmp_path: Path) -> None:
    """It is started, watched and shown by `status` as the others are."""
    async with with_folder(tmp_path) as daemon, Wired(daemon.socket) as client:
        put(tmp_path, "r1", "open the north valve")
        answered = await reply(tmp_path, "r1")
        assert (answered["id"], answered["status"]) == ("r1", "done")
        assert daemon.rows("valve_commands") == [("north", "open")]
        assert (await client.call(1, "status"))[1]["folder"] == {"waiting": 0}
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.text()


async def test_reply_reaches_the_transport_after_a_restart(tmp_path: Path) -> None:
    """The outcome was stored, and the daemon died before anybody had it."""
    daemon = with_folder(tmp_path)
    try:
        await daemon.start("settle.committed")
        put(tmp_path, "r1", "open the north valve")
        assert await daemon.ended() == -9
        assert not (tmp_path / "folder" / "out" / "r1").exists()
        await daemon.start()
        assert (await reply(tmp_path, "r1"))["status"] == "done"
        assert daemon.rows("valve_commands") == [("north", "open")]
        assert await daemon.stop() == 0
    finally:
        await daemon.__aexit__()


@pytest.mark.parametrize("how", ["raises", "hangs", "blocks"])
async def test_part_that_does_not_stop_keeps_no_other_from_stopping(tmp_path: Path, how: str) -> None:
    """Sockets are gone, replies are stored, the database is a single file; the log names the part, and the exit status
    says that something was wrong."""
    async with with_folder(tmp_path, EDGED_TEST_FOLDER_STOP=how) as daemon:
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "agent.ask", {"input": "note 1;"}))[1]["status"] == "done"
        began = time.monotonic()
        assert await daemon.stop() == 70
        assert time.monotonic() - began < lifecycle.TRANSPORT_S + 5
        assert "event=stop_failed step=folder" in daemon.text()
        assert not daemon.socket.exists()
        state = tmp_path / "state"
        assert [path.name for path in state.glob("edged.db*")] == ["edged.db"]
        with sqlite3.connect(state / "edged.db") as store:
            bodies = [json.loads(body) for (body,) in store.execute("SELECT body FROM audit ORDER BY seq")]
        assert bodies[-1]["what"] == "daemon.stopping"


async def test_part_that_dies_ends_the_daemon_whole(tmp_path: Path) -> None:
    """The service manager starts it again, and what was taken in is done."""
    daemon = with_folder(tmp_path)
    try:
        await daemon.start()
        (tmp_path / "folder" / "in").rmdir()  # its task raises
        assert await daemon.ended() == 70
        assert "event=daemon_failed" in daemon.text()
        await daemon.start()
        put(tmp_path, "r1", "how full is it?")
        assert (await reply(tmp_path, "r1"))["status"] == "done"
        assert await daemon.stop() == 0
    finally:
        await daemon.__aexit__()
