"""Sockets that the daemon is started with, as systemd passes them: served, never unlinked, and who calls while there is
no daemon waits for the next one."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, Wired

NOBODY = 65534  # the uid without rights on every Linux
GAMES = 60  # a group every Debian has
ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a socket away and become somebody else")

# Says how many agents' worth of rights a stranger in the group has: connects as nobody with the group of argv[2].
MEMBER = """
import os, socket, sys, msgpack
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall(msgpack.packb([0, 1, "agent.ask", [{"input": "how full is it?"}]]))
error, reply = msgpack.unpackb(connection.recv(65536))[2:]
print(error["code"] if error else reply["status"])
"""


@pytest.fixture
def passed(tmp_path: Path) -> Iterator[socket.socket]:
    """As edged.socket makes it."""
    (tmp_path / "run").mkdir()
    with listening(tmp_path / "run" / "edged.sock") as end:
        yield end


def listening(path: Path) -> socket.socket:
    """A socket of mode 0660."""
    end = socket.socket(socket.AF_UNIX)
    end.bind(str(path))
    path.chmod(0o660)
    end.listen(16)
    return end


async def test_passed_socket_is_served_and_stays_when_the_daemon_stops(tmp_path: Path, passed: socket.socket) -> None:
    """The file is systemd's."""
    before = (tmp_path / "run" / "edged.sock").stat()
    async with Daemon(tmp_path, passed=[passed]) as daemon:
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "agent.ask", {"input": "how full is it?"}))[1]["status"] == "done"
        assert await daemon.stop() == 0
        after = daemon.socket.stat()
        assert (after.st_ino, after.st_mode, after.st_gid) == (before.st_ino, before.st_mode, before.st_gid)
        assert "Traceback" not in daemon.text()


async def test_who_connects_while_there_is_no_daemon_is_served_by_the_next_one(
    tmp_path: Path, passed: socket.socket
) -> None:
    """After a stop, and after a kill."""
    async with Daemon(tmp_path, passed=[passed]) as daemon:
        for end in (daemon.stop, daemon.kill):
            await end()
            async with Wired(daemon.socket) as client:
                client.send([0, 1, "agent.ask", [{"input": "how full is it?"}]])
                await daemon.start()
                assert (await client.answer(1))[1]["status"] == "done"


async def test_who_connects_amid_the_stop_is_not_refused_but_served_by_the_next_start(
    tmp_path: Path, passed: socket.socket
) -> None:
    """The stopping daemon takes nobody in any more."""
    async with Daemon(tmp_path, passed=[passed]) as daemon, Wired(daemon.socket) as busy:
        busy.send([0, 1, "agent.ask", [{"input": "never ends", "id": "e"}]])
        await busy.running()
        stopping = asyncio.create_task(daemon.stop())
        await daemon.noticed("STOPPING=1")
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"input": "note 1;"}]])
            assert await stopping == 0
            await daemon.start()
            assert (await client.answer(1))[1]["output"] == "noted 1"


async def test_reload_keeps_a_passed_socket(tmp_path: Path, passed: socket.socket) -> None:
    """And goes by the group it really has."""
    async with Daemon(tmp_path, passed=[passed]) as daemon:
        daemon.drop_in('[agents.garden]\nmodel = "small"\ntools = ["note"]\n')
        await daemon.reload()
        async with Wired(daemon.socket) as client:
            reply = (await client.call(1, "agent.ask", {"input": "note 1;", "agent": "garden"}))[1]
            assert reply["status"] == "done"
        daemon.drop_in('[ipc]\nmode = "0666"\n', "60.toml")
        await daemon.reload()
        assert "ipc.mode" in daemon.text()
        assert await daemon.stop() == 0


@ROOT_ONLY
async def test_group_of_a_passed_socket_decides_who_may_use_it(tmp_path: Path, passed: socket.socket) -> None:
    """Whatever group the daemon itself would have chosen."""
    for folder in (tmp_path, *tmp_path.parents[:-2]):  # pytest keeps others out of its folders
        folder.chmod(0o755)
    os.chown(tmp_path / "run" / "edged.sock", -1, GAMES)
    async with Daemon(tmp_path, passed=[passed]) as daemon:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MEMBER, str(daemon.socket), str(GAMES), stdout=subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(child.communicate(), 10)
        assert out.decode().strip() == "done"


@pytest.mark.parametrize(
    ("ipc", "told"),
    [
        ('mode = "0600"', ("ipc.mode: '0600'", "mode 0660")),
        pytest.param('group = "games"', ("ipc.group: 'games'", "group root"), marks=ROOT_ONLY),
    ],
)
async def test_ipc_that_contradicts_the_unit_is_a_configuration_error(
    tmp_path: Path, passed: socket.socket, ipc: str, told: tuple[str, str]
) -> None:
    """It names the key, and what systemd made."""
    daemon = Daemon(tmp_path, passed=[passed], config=f"[ipc]\n{ipc}\n")
    await daemon.start(ready=False)
    assert await daemon.ended() == 78
    assert all(words in daemon.text() for words in told), daemon.text()
    assert not daemon.notices
    await daemon.__aexit__()


async def test_ipc_that_repeats_the_unit_is_fine(tmp_path: Path, passed: socket.socket) -> None:
    """Also where the mode is written without its zero."""
    async with Daemon(tmp_path, passed=[passed], config='[ipc]\nmode = "660"\n') as daemon:
        assert await daemon.stop() == 0


async def test_passed_socket_that_nobody_wants_is_closed_and_the_own_one_is_made(tmp_path: Path) -> None:
    """With a warning; its peers hear it at once."""
    (tmp_path / "run").mkdir()
    other = tmp_path / "run" / "other.sock"
    with listening(other) as end:
        async with Daemon(tmp_path, passed=[end]) as daemon:
            end.close()  # systemd would keep its own
            assert f"socket {other} passed by systemd is closed" in daemon.text()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_unix_connection(str(other))
            async with Wired(daemon.socket) as client:
                assert (await client.call(1, "status"))[0] is None
            assert await daemon.stop() == 0
            assert not daemon.socket.exists()
            assert other.exists()
