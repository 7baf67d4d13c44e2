"""Where each key of the configuration was written: its file, and its line there."""

from __future__ import annotations

import re
from typing import Any

from edged.config.lines import lines
from edged.config.values import Key
from edged.errors import ConfigError

BUILT_IN = "the defaults"  # the source of a key no file names
INDEX = re.compile(r"\[\d+\]")
PARTS = re.compile(r"\[\d+\]$|.+?(?=\[\d+\]$|$)", re.DOTALL)  # "examples[0]" is an array and its first element


class Origins:
    """The files of a configuration, the first one first, and which of them named a key last."""

    def __init__(self, main: str = BUILT_IN) -> None:
        self._main = main
        self._files: dict[Key, str] = {}
        self._texts: dict[str, str] = {}

    def add(self, file: str, text: str, table: dict[str, Any]) -> None:
        """A file that was read after the others."""
        self._texts[file] = text
        self._add(file, table, ())

    def _add(self, file: str, table: dict[str, Any], at: Key) -> None:
        for key, value in table.items():
            self._files[(*at, key)] = file
            if isinstance(value, dict):
                self._add(file, value, (*at, key))

    def __contains__(self, key: Key) -> bool:
        return key in self._files

    def keys_of(self, table: Key) -> set[str]:
        """The keys of a table that some file names."""
        return {key[-1] for key in self._files if key[:-1] == table}

    def error(self, key: Key, problem: str) -> ConfigError:
        """An error at a key: it names the last file that has the key, or else a table around it, and the line."""
        file = next((self._files[at] for at in _upwards(key) if at in self._files), self._main)
        found = lines(self._texts.get(file, ""))
        parts = tuple(part for name in key for part in PARTS.findall(name))
        line = next((found[at] for at in _upwards(parts) if at in found), None)
        return ConfigError(file, _dotted(key), problem, line=line, path=key)


def _upwards(key: Key) -> list[Key]:
    """A key and the tables around it, the nearest first."""
    return [key[:n] for n in range(len(key), 0, -1)]


def _dotted(key: Key) -> str:
    """A key as messages show it. An element of an array has the array's: the message quotes the element."""
    while key and INDEX.fullmatch(key[-1]):
        key = key[:-1]
    return ".".join(key).replace(".[", "[").replace("\0", "\\u0000")
