"""How a command finds the configuration, the folder of the weights and the daemon, and connects to the latter."""

from __future__ import annotations

import grp
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edged import config
from edged.cli.outcome import Stop, reporting_errors
from edged.client import DEFAULT_SOCKET, Client
from edged.config import Config
from edged.errors import ConfigError
from edged.host.users import own_name


def load_config(config_file: Path | None) -> Config:
    """The configuration, from --config or from where the daemon looks for it. ConfigError where it is wrong."""
    return config.load(str(config_file) if config_file else None)


def load_config_if_any(config_file: Path | None) -> Config | None:
    """As `load_config`; None where --config was not given and there is no file in the usual place."""
    if config_file is None and not config.find(None).exists():
        return None
    return load_config(config_file)


def socket_path(given: Path | None, config_file: Path | None) -> tuple[str, str | None]:
    """(path of the daemon's socket, why the configuration could not be asked for it or None).

    What was typed goes before the environment: --socket, the socket of --config, $EDGED_SOCKET, the socket of the
    configuration in the usual place, the service's socket.

    Raises:
        ConfigError: the file of --config is wrong.
    """
    if given is not None:
        return str(given), None
    if config_file is not None:
        return str(load_config(config_file).socket_path), None
    if named := os.environ.get("EDGED_SOCKET"):
        return named, None
    try:
        settings = load_config_if_any(None)
    except (ConfigError, OSError) as error:  # OSError: a folder that this user may not look into
        return DEFAULT_SOCKET, str(error)
    return (str(settings.socket_path) if settings else DEFAULT_SOCKET), None


def models_dir(given: Path | None, config_file: Path | None) -> Path:
    """The folder of the weights. What was typed goes before the environment: --models-dir, the folder of --config,
    $EDGED_MODELS_DIR, the folder of the configuration in the usual place, the user's cache folder.

    Raises:
        ConfigError: the configuration that is to name it is wrong.
        Stop: there is no such folder to name, because the user has no home.
    """
    named = None if config_file else os.environ.get("EDGED_MODELS_DIR")
    if given is not None or named:
        return _at_home(lambda: Path(given or named or "").expanduser().absolute())
    settings = load_config_if_any(config_file)
    return settings.models_dir if settings else _at_home(cache_dir) / "models"


def cache_dir() -> Path:
    """edged's folder among the user's caches. RuntimeError for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged"


def _at_home(find: Callable[[], Path]) -> Path:
    try:
        return find()
    except RuntimeError:  # neither $HOME nor an entry among the users
        raise Stop("usage", f"{own_name()} has no home folder: name a folder with --models-dir") from None


@contextmanager
def daemon(socket: Path | None, config_file: Path | None, as_json: bool) -> Iterator[Client]:
    """A connection to the daemon. A failure ends the command with a sentence and the contract's exit code."""
    with reporting_errors(as_json):
        where, trouble = socket_path(socket, config_file)
        try:
            with Client(where) as client:
                yield client
        except PermissionError:
            raise Stop("forbidden", f"{where}: you may not use this socket; {_how_to_join(where)}") from None
        except OSError as error:
            raise Stop("unreachable", _unreachable(where, error, trouble)) from None


def _unreachable(where: str, error: OSError, trouble: str | None) -> str:
    if isinstance(error, ConnectionError) and error.errno is None:  # raised by our client: it was connected
        return f"{where}: {error}; what it took in goes on, and asking again under the same --id does nothing twice"
    text = f"no daemon answers on {where} ({error.strerror or error}); start one with `edged run`"
    return f"{text}. The configuration, which would say where, is of no use: {trouble}" if trouble else text


def _how_to_join(where: str) -> str:
    """The command that lets this user in, where the group of the socket can be seen."""
    try:
        group = grp.getgrgid(Path(where).stat().st_gid).gr_name
    except (OSError, KeyError):
        return "join its group"
    if group == "root":
        return "its group is root: set [ipc] group"
    return f"join its group: {join_command(group)}"


def join_command(group: str) -> str:
    """The command that makes this user a member of a group; membership begins with the next login."""
    return f"sudo usermod -aG {group} {own_name()}, then log in again"
