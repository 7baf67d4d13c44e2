"""What all tables of the configuration are made with: their base, names, sizes, and how a mistake is said."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from types import NoneType
from typing import Any, TypeVar, get_args

import msgspec
from msgspec import Struct

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")  # one MQTT topic level, one SQL word, one grammar rule
BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(B|KiB|MiB|GiB|KB|MB|GB)?")
MAX_BYTES = 2**63 - 1  # of a size: what the kernel and SQLite count in
UNITS = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}

Key = tuple[str, ...]
Mistakes = Iterator[tuple[Key, str]]  # (key, what is wrong and what is allowed)
T = TypeVar("T", bound=Struct)


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables: an unknown key is an error."""


class Wrong(Exception):
    """A key is wrong; what is wrong with it, and what is allowed. Whoever knows the files makes a ConfigError of it."""

    def __init__(self, key: Key, problem: str) -> None:
        super().__init__(key, problem)
        self.key = key
        self.problem = problem


def parse_bytes(text: str) -> int:
    """Bytes from "96MiB" and the like; ValueError names what is allowed."""
    match = BYTES.fullmatch(text.strip())
    size = float(match[1]) * UNITS[match[2]] if match else math.inf
    if size > MAX_BYTES:  # also what no float can hold
        raise ValueError(f'{text!r} is no size; write bytes as "96MiB", "1GiB" or a number')
    return int(size)


def size_mistakes(at: Key, text: str) -> Mistakes:
    """Whether a text is a size."""
    try:
        parse_bytes(text)
    except ValueError as error:
        yield at, str(error)


def range_mistakes(at: Key, value: float, low: float, high: float) -> Mistakes:
    """Whether a number is in a range, both ends included."""
    if not low <= value <= high:
        yield at, f"{value} is outside {low} to {high}"


def choice_mistakes(at: Key, value: str, *allowed: str) -> Mistakes:
    """Whether a text is one of several."""
    if value not in allowed:
        yield at, f"{value!r}; allowed are {', '.join(allowed)}"


def convert(value: Any, kind: type[T], at: Key) -> T:
    """A table of TOML as a structure.

    Raises:
        Wrong: a key is unknown, missing, or has the wrong type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        below = tuple(re.findall(r"\w+|\[\.\.\.\]|\[\d+\]", path.strip("`").removeprefix("$")))
        if unknown := re.search(r"unknown field `(\w+)`", text):
            below, text = (*below, unknown[1]), "unknown key"
            if len(below) == 1:
                text += f"; allowed are {', '.join(f.name for f in msgspec.structs.fields(kind))}"
        elif missing := re.search(r"missing required field `(\w+)`", text):
            below, text = (*below, missing[1]), "is required"
        elif "enum value" in text and len(below) == 1:
            text += f"; allowed are {', '.join(_enum_values(kind, below[0]))}"
        raise Wrong((*at, *below), text[:1].lower() + text[1:]) from None


def _enum_values(kind: type[Struct], name: str) -> list[str]:
    annotation = {f.name: f.type for f in msgspec.structs.fields(kind)}[name]
    [enum] = [one for one in get_args(annotation) or (annotation,) if one is not NoneType]
    return [str(member.value) for member in enum]


def entries(name: str, table: dict[str, Any]) -> list[tuple[str, Any]]:
    """The tables of a table of tables ([models], [tools], ...) by their names.

    Raises:
        Wrong: a name is none, or something is no table.
    """
    for key, value in table.items():
        if not NAME.fullmatch(key):
            raise Wrong((name, key), "a name has 1 to 64 letters, digits, `_`, `-` or `.`, no dash in front")
        if not isinstance(value, dict):
            raise Wrong((name, key), f"is a table: write [{name}.{key}]")
    return list(table.items())
