"""From a table of the configuration to a channel: which program is started, or which address is asked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edged.config import Config, McpServer, api_key, parse_bytes, secret
from edged.errors import ConfigError
from edged.tools.mcp.channel import Channel
from edged.tools.mcp.http import HttpChannel
from edged.tools.mcp.stdio import Program, StdioChannel
from edged.tools.python.landlock import OwnFiles
from edged.types import JSON

TABLES = ("mcpServers", "servers")  # of Claude Desktop and llama-server; of VS Code
MAX_BYTES = 2**20  # of such a file


class Where(msgspec.Struct, frozen=True):
    """A server as a table or another program's file has it: a command, or a URL."""

    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = ""
    url: str = ""
    headers: dict[str, str] = {}

    @property
    def is_program(self) -> bool:
        """Whether it is started here."""
        return not self.url


def where(name: str, settings: McpServer) -> Where:
    """Where a server is. ConfigError: the file that says so cannot be used."""
    if settings.file:
        return _of_file(Path(settings.file), name)
    return Where(settings.command, settings.args, settings.env, settings.cwd, settings.url)


async def channel(name: str, settings: McpServer, config: Config, own: OwnFiles) -> Channel:
    """A channel to a server.

    Raises:
        ConfigError: the configuration, a secret or a file that it names is wrong.
        Gone: no process could be started.
    """
    at = where(name, settings)
    if not at.is_program:
        return HttpChannel(at.url, api_key(settings.key_file) if settings.key_file else "", at.headers)
    secrets = {variable: secret(reference) for variable, reference in settings.secret_env.items()}
    program = Program(
        command=(at.command, *at.args),
        environment={**at.env, **secrets},
        folder=_folder(at, config),
        network=settings.network,
        memory=parse_bytes(settings.memory),
        file_bytes=parse_bytes(settings.file_size),
        own=own,
    )
    return await StdioChannel.start(f"mcp {name}", program)


def problem(name: str, settings: McpServer, config: Config) -> str | None:
    """What keeps a server from being started; None: nothing that can be seen without starting it."""
    try:
        at = where(name, settings)
    except ConfigError as error:
        return str(error)
    if not at.is_program:
        return None
    if not _folder(at, config).is_dir():
        return f"there is no folder {_folder(at, config)}"
    path = at.env.get("PATH") or os.environ.get("PATH")
    if not at.command.startswith(("./", "../")) and shutil.which(at.command, path=path) is None:
        return f"there is no program {at.command!r}"
    return None


def _folder(at: Where, config: Config) -> Path:
    if at.cwd:
        return Path(at.cwd)
    return config.tools_dir if config.tools_dir.is_dir() else Path("/")


def _of_file(path: Path, name: str) -> Where:
    try:
        with path.open("rb") as file:
            document: Any = msgspec.json.decode(file.read(MAX_BYTES))
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), "", f"is no JSON: {error}") from None
    servers = _servers(document)
    if name not in servers:
        known = ", ".join(servers) or "none"
        raise ConfigError(str(path), "", f"has no server {name!r}; there are {known}")
    try:
        found = msgspec.convert(servers[name], Where)
    except msgspec.ValidationError as error:
        raise ConfigError(str(path), name, str(error)) from None
    if bool(found.command) == bool(found.url):
        raise ConfigError(str(path), name, "has neither a command nor a URL, or both")
    return found


def _servers(document: JSON) -> Mapping[str, JSON]:
    for table in TABLES:
        if isinstance(document, dict) and isinstance(document.get(table), dict):
            found: dict[str, JSON] = document[table]
            return found
    return {}
