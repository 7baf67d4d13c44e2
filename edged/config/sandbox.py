"""What the unit's sandbox (systemd/edged.service) has to open for a configuration: databases, weights and folders that
lie where it hides or protects everything.

    python -m edged.config.sandbox [--config FILE]

prints the drop-in for the unit, and exits with 78 where the file is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from edged import config
from edged.config import Config
from edged.errors import ConfigError
from edged.host import loopback

EX_CONFIG = 78  # sysexits.h
GIVEN = (Path("/var/lib/edged"), Path("/run/edged"))  # StateDirectory= and RuntimeDirectory=
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # ProtectHome=
HIDDEN = (*HOMES, Path("/tmp"), Path("/var/tmp"))  # noqa: S108  # and PrivateTmp=
HEAD = "# Made from the configuration by `scripts/install --units-only`: change that, not this.\n"


def drop_in(settings: Config) -> str:
    """The drop-in. A folder that is missing does not keep the service from starting: its tool says so instead."""
    write = _outermost({path for path in _written(settings) if not _within(path, GIVEN)})
    read = _outermost({path for path in _read(settings) if _within(path, HIDDEN) and not _within(path, tuple(write))})
    lines = [f"BindPaths=-{_word(path)}" for path in write if _within(path, HIDDEN)]
    lines += [f"BindReadOnlyPaths=-{_word(path)}" for path in read]
    if any(_within(path, HOMES) for path in (*write, *read)):
        lines = ["# Homes are empty but for these.", "ProtectHome=tmpfs", *lines]
    lines += [f"ReadWritePaths=-{_word(path)}" for path in write if not _within(path, HIDDEN)]
    return "\n".join([HEAD + "[Service]", *lines]) + "\n"


def _written(settings: Config) -> Iterator[Path]:
    """Folders the daemon changes. Of a database its folder: the journal lies beside it."""
    yield _real(settings.node.state_dir)
    yield _real(settings.node.runtime_dir)
    for database in settings.databases.values():
        if database.mode == "rw":
            yield _real(database.path).parent


def _read(settings: Config) -> Iterator[Path]:
    """Folders and files the daemon reads."""
    yield _real(settings.files[0]).parent
    yield _real(settings.node.models_dir)
    for database in settings.databases.values():
        yield _real(database.path).parent
    for model in settings.models.values():
        for source in model.sources:
            kind, _, path = source.partition(":")
            if kind == "file":
                yield _real(path)
    if settings.mqtt:
        yield from (_real(path) for path in (settings.mqtt.ca_file, settings.mqtt.cert_file) if path)
    for model in settings.served.values():
        if (listens := loopback.parse(model.base_url).socket) is not None:
            yield _real(listens).parent
    for server in settings.mcp.values():
        yield from (_real(path) for path in (server.cwd, server.file) if path)
    yield from map(_real, settings.secret_files)


def _real(path: str) -> Path:
    return Path(path).resolve()


def _within(path: Path, folders: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _outermost(paths: set[Path]) -> list[Path]:
    """Without those that lie in another one of them."""
    return sorted(p for p in paths if not _within(p, tuple(paths - {p})))


def _word(path: Path) -> str:
    """A path as systemd reads it back: no specifier, no separator."""
    text = str(path).replace("\\", "\\\\").replace("%", "%%").replace(":", "\\:")
    return f'"{text.replace(chr(34), chr(92) + chr(34))}"' if any(c.isspace() or c in "\"'" for c in text) else text


def main(arguments: list[str]) -> int:
    """Print the drop-in. Returns the exit status."""
    path = arguments[1] if arguments[:1] == ["--config"] and len(arguments) > 1 else None
    try:
        sys.stdout.write(drop_in(config.load(path)))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EX_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
