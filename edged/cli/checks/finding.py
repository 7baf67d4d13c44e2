"""What a check found."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from msgspec import Struct


class Level(StrEnum):
    """ok: as it should be; warn: works, but something will be missed or lost one day; fail: it does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(Struct, frozen=True):
    """One line of the doctor's. check: a stable word; do: what to do about it."""

    check: str
    level: Level
    message: str
    do: str | None = None


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, message)


def warn(check: str, message: str, do: str) -> Finding:
    """Something will be missed or lost one day."""
    return Finding(check, Level.WARN, message, do)


def fail(check: str, message: str, do: str) -> Finding:
    """It does not work."""
    return Finding(check, Level.FAIL, message, do)


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
