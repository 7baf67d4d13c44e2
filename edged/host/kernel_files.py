"""Small files of the kernel: words, numbers, tables of numbers. Nothing here raises: sensors come and go with their
drivers, some have no value when asleep, and a file may hold anything."""

from __future__ import annotations

import re
from pathlib import Path

NUMBER = re.compile(r"[0-9]{1,20}")  # as the kernel writes 64 bits


def text(path: Path, errors: str = "replace") -> str:
    """What a file says, without spaces around it; empty where it cannot be read. errors: see `open`."""
    try:
        return path.read_text(encoding="utf-8", errors=errors).strip()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ""


def number(path: Path, base: int = 10) -> int | None:
    """A file's only number, which may be negative; None where it cannot be read or is none."""
    try:
        return int(text(path), base)
    except ValueError:
        return None


def count(path: Path) -> int | None:
    """A file's only number, of 64 bits; None for `max`, and where it is none."""
    found = text(path)
    return int(found) if NUMBER.fullmatch(found) else None


def counts(path: Path) -> dict[str, int]:
    """Lines `Name:   123 kB`, in bytes, `name: 123` and `name 123`; other lines are left out."""
    found = {}
    for line in text(path).splitlines():
        match line.split():
            case [name, value, "kB"] if NUMBER.fullmatch(value):
                found[name.rstrip(":")] = int(value) * 1024
            case [name, value] if NUMBER.fullmatch(value):
                found[name.rstrip(":")] = int(value)
    return found
