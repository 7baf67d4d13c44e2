"""Where each key of the configuration was written."""

from __future__ import annotations

from edged.config.values import Key
from edged.errors import ConfigError

BUILT_IN = "the defaults"  # the source of a key no file names

Origin = dict[Key, str]  # the file that named a key last


def error_at(origin: Origin, main: str, key: Key, problem: str) -> ConfigError:
    """An error at a key; the source is the last file that named it or a table around it."""
    source = next((origin[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origin), main)
    return ConfigError(source, ".".join(key), problem)
