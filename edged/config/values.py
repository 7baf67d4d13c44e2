"""What all tables of the configuration are made with: their base, names, sizes, and how a mistake is said."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct

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
    """What is wrong with a key, and what is allowed. The loader knows the files and makes a ConfigError of it."""

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


def size_problem(value: Any) -> str:
    """What is wrong with a value that is no size."""
    try:
        parse_bytes(str(value))
    except ValueError as error:
        return str(error)
    return ""


def budget_problem(value: str) -> str:
    """What is wrong with a value that is neither a size nor 1 to 100 percent."""
    return f"{value} is outside 1 to 100%" if value.strip().endswith("%") else size_problem(value)


def whole(pattern: str) -> str:
    """A pattern for all of a text. (`$` alone lets Python end before a newline, and JSON Schema knows no `\\Z`.)"""
    return f"^(?:{pattern})$(?!\\n)"


def size_mistakes(at: Key, text: str, low: str = "0", high: str = "") -> Mistakes:
    """Whether a text is a size, and one between two others. high: empty is no bound."""
    try:
        size = parse_bytes(text)
    except ValueError as error:
        yield at, str(error)
    else:
        if size < parse_bytes(low) or (high and size > parse_bytes(high)):
            yield at, f"{text!r} is outside {low} to {high}"


def range_mistakes(at: Key, value: float, low: float, high: float) -> Mistakes:
    """Whether a number is in a range, both ends included."""
    if not low <= value <= high:
        yield at, f"{value} is outside {low} to {high}"


SIZE = r"\s*[0-9]+(?:\.[0-9]+)?\s*(?:B|KiB|MiB|GiB|KB|MB|GB)?\s*"
PERCENT = r"\s*0*(?:[1-9][0-9]?(?:\.[0-9]+)?|100(?:\.0+)?)\s*%\s*"
BUDGET = whole(f"{SIZE}|{PERCENT}")

# The titles are what the documentation calls them.
Size = Annotated[str, Meta(title="size", pattern=whole(SIZE), extra={"problem": size_problem})]
AbsolutePath = Annotated[str, Meta(title="path", pattern="^(?:/|$)", extra={"problem": "{} is not an absolute path"})]
Url = Annotated[str, Meta(title="URL", extra_json_schema={"format": "uri"})]
SecretFile = Annotated[str, Meta(title="file or `credential:NAME`")]
