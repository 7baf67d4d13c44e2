"""Time zones: what the board has of them, and its own."""

from __future__ import annotations

import os
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, ZoneInfoNotFoundError

LOCALTIME = Path("/etc/localtime")  # a link into one of TZPATH's folders, or a copy of a file there
TIMEZONE = Path("/etc/timezone")  # its name, on Debian


def named(name: str) -> tzinfo:
    """A zone by its IANA name ("Europe/Berlin"). ValueError: this board knows none of that name."""
    if name == "UTC":  # also on a board without any zones
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a folder, as "Europe"
        raise ValueError(f"this board knows no time zone {name!r}") from None


def known() -> bool:
    """Whether the board has zones at all."""
    return any(Path(folder).is_dir() for folder in TZPATH)


def own() -> tuple[str, tzinfo]:
    """(name, zone) of the board: that of `TZ`, else of /etc/localtime, else UTC."""
    for name in (os.environ.get("TZ", "").removeprefix(":"), _linked(), _written()):
        try:
            if name:
                return name, named(name)
        except ValueError:  # TZ may be a rule ("CET-1CEST"), the link one to nowhere
            continue
    try:
        with LOCALTIME.open("rb") as file:
            zone = ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return "UTC", UTC
    return datetime.now(zone).tzname() or "local", zone


def _linked() -> str:
    try:
        target = os.path.realpath(LOCALTIME)
    except OSError:
        return ""
    return next((target.removeprefix(f"{path}/") for path in TZPATH if target.startswith(f"{path}/")), "")


def _written() -> str:
    if LOCALTIME.is_symlink() or not LOCALTIME.exists():  # then the name is that of something else
        return ""
    try:
        return TIMEZONE.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
