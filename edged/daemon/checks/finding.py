"""What a check finds, and what it looks at."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from msgspec import Struct, structs

from edged.config import Config
from edged.errors import ConfigError
from edged.types import JSON


class Level(StrEnum):
    """ok: as it should be; warn: works, but something will be missed or lost one day; fail: it does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class About(StrEnum):
    """What a finding is about. Only a failure of the whole keeps a daemon from starting."""

    WHOLE = "whole"
    MODEL = "model"
    AGENT = "agent"
    TOOL = "tool"
    UPSTREAM = "upstream"


class Subject(Struct, frozen=True):
    """A model, an agent, a tool, an upstream by its name; the whole has none."""

    about: About = About.WHOLE
    name: str = ""

    def __str__(self) -> str:
        return f"{self.about} {self.name}".rstrip()


WHOLE = Subject()
TABLES = {"models": About.MODEL, "agents": About.AGENT, "tools": About.TOOL, "upstreams": About.UPSTREAM}


class Finding(Struct, frozen=True):
    """What a check found.

    check: which one, a stable word. message: what is so, as clients are told it too. do: what to do about it; None
    where nothing is to be done. file, line, key: where it was written; empty or None where nowhere.
    """

    check: str
    level: Level
    message: str
    do: str | None = None
    subject: Subject = WHOLE
    file: str = ""
    line: int | None = None
    key: str = ""

    def __str__(self) -> str:
        return str(self.error()) if self.file else self.message

    def error(self) -> ConfigError:
        """The finding as the error that ends a start or a reload."""
        key = "" if self.message.startswith(f"{self.key}: ") else self.key
        return ConfigError(self.file, key, self.message, line=self.line)

    def document(self) -> dict[str, JSON]:
        """As JSON shows it: {check, level, message, do, about, name, file, line, key}; what is empty is left out."""
        place = {"file": self.file, "line": self.line, "key": self.key}
        shown = {"name": self.subject.name, **place}
        return {
            "check": self.check,
            "level": self.level,
            "message": self.message,
            "do": self.do,
            "about": self.subject.about,
            **{name: value for name, value in shown.items() if value},
        }


def with_key(finding: Finding) -> Finding:
    """A finding whose message names the key: one that was written to follow it, and that clients get without it."""
    return structs.replace(finding, message=f"{finding.key}: {finding.message}")


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, message)


def warn(check: str, message: str, do: str) -> Finding:
    """Something will be missed or lost one day."""
    return Finding(check, Level.WARN, message, do)


def fail(check: str, message: str, do: str) -> Finding:
    """It does not work."""
    return Finding(check, Level.FAIL, message, do)


def of_error(check: str, error: ConfigError, do: str, level: Level = Level.FAIL) -> Finding:
    """An error of the configuration as a finding, about what the error's key names, or else the whole."""
    table, name = (*error.path, "", "")[:2]
    subject = Subject(TABLES[table], name) if table in TABLES and name else WHOLE
    return Finding(check, level, error.problem, do, subject, error.source, error.line, error.key)


class Inspection(Struct, frozen=True, kw_only=True):
    """What is looked at, by whom, and with what.

    settings: as `tools.prepare` left them.
    left_out: tools that cannot work whatever else is looked at.
    in_service: the process is the daemon, so it has the service's credentials and rights. Another process that may not
        read a file cannot tell whether the daemon may.
    """

    settings: Config
    left_out: frozenset[str] = frozenset()
    in_service: bool = False

    @property
    def sees_all(self) -> bool:
        """Whether this process may do what the daemon may: it is the daemon, or root's, or of the daemon's user."""
        return self.in_service or is_the_daemons(self.settings.state_dir)

    def at(self, check: str, key: tuple[str, ...], message: str, do: str, level: Level = Level.FAIL) -> Finding:
        """A finding at a key of the configuration."""
        return of_error(check, self.settings.error(key, message), do, level)

    def of_tool(self, key: tuple[str, ...], message: str, do: str) -> Finding:
        """A failure at a key below [tools]. Its message names the key."""
        return with_key(self.at("tools", ("tools", *key), message, do))


def is_the_daemons(state_dir: Path) -> bool:
    """Whether this user sees what the daemon sees: root, and the owner of its folder."""
    try:
        return os.geteuid() in (0, nearest(state_dir).stat().st_uid)
    except PermissionError:
        return False


def nearest(path: Path) -> Path:
    """The path, or the folder nearest to it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
