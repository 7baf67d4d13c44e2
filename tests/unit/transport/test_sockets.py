"""Unix sockets in their place."""

from __future__ import annotations

import os
import socket
import stat
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
        assert os.getgid() in peer.groups


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
