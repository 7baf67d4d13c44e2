"""Unix sockets in their place."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edged.errors import ConfigError
from edged.transport import sockets


def make(path: Path) -> socket.socket:
    """One as a transport makes it."""
    return sockets.listen(path, 0o640, os.getgid())


def test_socket_has_its_mode_and_folder_and_knows_who_connects(tmp_path: Path) -> None:
    """The folder is made where it is missing."""
    path = tmp_path / "run" / "edged" / "http.sock"
    with make(path) as made:
        there = path.stat()
        assert (stat.S_IMODE(there.st_mode), there.st_gid) == (0o640, os.getgid())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            with made.accept()[0] as accepted:
                peer = sockets.peer(accepted)
        assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
        assert set(peer.groups or ()) == {os.getgid(), *os.getgroups()}


# Connects with supplementary groups that no user database knows of, as SupplementaryGroups= of a unit gives them.
IN_GROUPS = """
import os, socket, sys
os.setgroups(range(5000, 5000 + int(sys.argv[2])))
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.recv(1)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give itself groups")
@pytest.mark.parametrize("count", [0, 1, 256, 257, 3000])
def test_groups_are_those_of_the_process_that_connects_however_many(tmp_path: Path, count: int) -> None:
    """As the kernel knows them: also more than fit into the first answer."""
    path = tmp_path / "http.sock"
    with make(path) as made:
        child = subprocess.Popen([sys.executable, "-c", IN_GROUPS, str(path), str(count)])
        with made.accept()[0] as accepted:
            peer = sockets.peer(accepted)
        assert child.wait(10) == 0
    assert (peer.uid, peer.groups) == (0, [os.getgid(), *range(5000, 5000 + count)])


async def test_a_kernel_that_does_not_tell_leaves_it_to_the_user_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked in a thread: it may be behind a network."""
    monkeypatch.setattr(sockets, "SO_PEERGROUPS", 9999)  # an option that no kernel has
    path, asked_in = tmp_path / "http.sock", []
    by_name = sockets._groups_by_name

    def slowly(uid: int, gid: int) -> list[int]:
        asked_in.append(threading.current_thread())
        return by_name(uid, gid)

    monkeypatch.setattr(sockets, "_groups_by_name", slowly)
    with make(path) as made, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        with made.accept()[0] as accepted:
            peer = sockets.peer(accepted)
    assert peer.groups is None
    known = await sockets.with_groups(peer)
    assert os.getgid() in (known.groups or ())
    assert asked_in[0] is not threading.main_thread()


def test_dead_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    """What a killed daemon leaves is taken over, what a running one has is left to it."""
    path = tmp_path / "http.sock"
    with make(path):
        with pytest.raises(ConfigError, match="listening here already"):
            make(path)
        assert path.exists()
    assert path.exists()
    with make(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_what_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    """A wrong path in the configuration must not cost anybody a file."""
    database = tmp_path / "plant.db"
    database.write_text("precious")
    for path in (database, tmp_path):
        with pytest.raises(ConfigError, match="no socket"):
            make(path)
    assert database.read_text() == "precious"
    with pytest.raises(ConfigError, match="cannot be made"):
        make(database / "http.sock")


def test_path_that_the_kernel_cannot_take_is_a_configuration_error(tmp_path: Path) -> None:
    """A socket's path has 107 bytes at most."""
    with pytest.raises(ConfigError, match="too long"):
        make(tmp_path / ("x" * 108))
