"""Listening sockets: passed or made, kept, closed; and what they must agree with."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edged import config
from edged.config import Config
from edged.daemon.listeners import Listeners
from edged.errors import ConfigError


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    """As the daemon has them."""
    path = tmp_path / "edged.toml"
    path.write_text(f'[node]\nstate_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}/run"\n')
    return config.load(str(path))


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    """None yet."""
    listeners = Listeners()
    yield listeners
    listeners.close()


def free_port() -> int:
    """A port that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def connects(address: Any) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET) as client:
        try:
            client.connect(str(address) if isinstance(address, Path) else address)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def test_made_socket_has_mode_and_group_and_goes_at_the_end(settings: Config, listeners: Listeners) -> None:
    """The folder is made too."""
    path = settings.socket_path
    listeners.open(settings, [path], None)
    assert connects(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.stat().st_gid == os.getgid()
    listeners.close()
    assert not path.exists()


def test_opened_again_keeps_its_socket_and_takes_the_new_mode(settings: Config, listeners: Listeners) -> None:
    """A reload: no moment without a listener, and the same file."""
    path = settings.socket_path
    listeners.open(settings, [path], None)
    [first], inode = listeners.sockets(path), path.stat().st_ino
    listeners.open(replace(settings, ipc=replace(settings.ipc, mode="0600")), [path], None)
    listeners.keep_only([path])
    assert listeners.sockets(path) == [first]
    assert (path.stat().st_ino, stat.S_IMODE(path.stat().st_mode)) == (inode, 0o600)


def test_socket_whose_file_was_deleted_is_made_again(settings: Config, listeners: Listeners) -> None:
    """And one whose place another program has taken is left to it: a mode or an end would be somebody else's file."""
    path = settings.socket_path
    listeners.open(settings, [path], None)
    path.unlink()
    listeners.open(settings, [path], None)
    assert connects(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        path.chmod(0o600)
        foreign.listen()
        with pytest.raises(ConfigError, match="another process is listening here already"):
            listeners.open(settings, [path], None)
        listeners.close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_folder_that_became_read_only_keeps_nothing_from_ending(
    settings: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """The files stay, and the next start takes the place of a dead socket."""
    path, other = settings.socket_path, settings.socket_path.with_name("other.sock")
    path.parent.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path.parent], check=False, capture_output=True).returncode:
        pytest.skip("only root can mount")
    try:
        listeners = Listeners()
        listeners.open(settings, [path, other], None)
        subprocess.run(["mount", "-o", "remount,ro", path.parent], check=True)
        listeners.close()
        assert not connects(path)
        assert [record.event for record in caplog.records] == ["socket_left"] * 2  # type: ignore[attr-defined]
        subprocess.run(["mount", "-o", "remount,rw", path.parent], check=True)
        listeners.open(settings, [path], None)
        assert connects(path)
        listeners.close()
    finally:
        subprocess.run(["umount", path.parent], check=True)


def test_deleted_socket_of_the_service_manager_does_not_stop_a_reload(
    settings: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the service manager can make it again; the log says how."""
    path = settings.socket_path
    path.parent.mkdir(parents=True)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    unix.listen()
    listeners = Listeners([unix])
    listeners.open(settings, [path], None)
    path.unlink()
    listeners.open(settings, [path], None)
    assert listeners.sockets(path) == [unix]
    assert "systemctl restart edged.socket" in caplog.text
    listeners.close()


def test_tcp_is_listened_on_by_host_and_port(settings: Config, listeners: Listeners) -> None:
    """A name stands for all of its addresses."""
    address = ("localhost", free_port())
    listeners.open(settings, [address], None)
    assert connects(("127.0.0.1", address[1]))
    assert len(listeners.sockets(address)) == len({end.getsockname()[0] for end in listeners.sockets(address)})


def test_one_that_cannot_be_made_undoes_the_others(settings: Config, listeners: Listeners) -> None:
    """Nothing has changed; what was open before goes on."""
    path, new = settings.socket_path, settings.socket_path.with_name("new.sock")
    listeners.open(settings, [path], None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address: tuple[str, int] = taken.getsockname()
        with pytest.raises(ConfigError, match=f"{address[1]}: cannot be listened on: Address already in use"):
            listeners.open(settings, [path, new, address], None)
    assert not new.exists()
    assert connects(path)
    with pytest.raises(ConfigError, match="no such host"):
        listeners.open(settings, [("no.such.host.invalid", 80)], None)


def test_what_nobody_wants_any_more_is_closed(settings: Config, listeners: Listeners) -> None:
    """Its file goes with it."""
    path, other, address = (
        settings.socket_path,
        settings.socket_path.with_name("other.sock"),
        ("127.0.0.1", free_port()),
    )
    listeners.open(settings, [path, other, address], None)
    listeners.keep_only([path])
    assert connects(path)
    assert not other.exists()
    assert not connects(address)


def test_passed_sockets_are_known_by_their_names(
    settings: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are used as they are, never removed; what does not listen, or nobody wants, is closed with a warning."""
    path = tmp_path / "run" / "edged.sock"
    path.parent.mkdir()
    unix, tcp, deaf = socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0)), socket.socket()
    unix.bind(str(path))
    unix.listen()
    address: tuple[str, int] = tcp.getsockname()
    listeners = Listeners([unix, tcp, deaf])
    assert deaf.fileno() == -1
    listeners.open(settings, [path, address], None)
    assert (listeners.sockets(path), listeners.sockets(address)) == ([unix], [tcp])
    listeners.keep_only([path])
    assert tcp.fileno() == -1
    assert "no listening stream socket" in caplog.text
    assert f"{address} passed by systemd is closed: no listener of the configuration wants it" in caplog.text
    with pytest.raises(ConfigError, match="systemctl restart edged"):
        listeners.open(settings, [address], None)
    listeners.close()
    assert path.exists()
    assert unix.fileno() == -1


@pytest.mark.parametrize(("mode", "key"), [("0600", "ipc.mode"), ("0666", "ipc.mode"), ("0660", None), ("660", None)])
def test_configured_mode_must_be_that_of_a_passed_socket(tmp_path: Path, mode: str, key: str | None) -> None:
    """An explicit one; without it the unit's counts."""
    file = tmp_path / "edged.toml"
    file.write_text(f'[node]\nstate_dir = "/s"\nruntime_dir = "{tmp_path}"\n[ipc]\nmode = "{mode}"\n')
    settings = config.load(str(file))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(settings.socket_path))
    settings.socket_path.chmod(0o660)
    unix.listen()
    listeners = Listeners([unix])
    if key is None:
        listeners.open(settings, [settings.socket_path], None)
    else:
        with pytest.raises(ConfigError, match=r"systemd made .* with mode 0660") as wrong:
            listeners.open(settings, [settings.socket_path], None)
        assert (wrong.value.key, wrong.value.source) == (key, str(file))
    listeners.close()
