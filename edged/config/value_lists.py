"""`values_sql`: a parameter whose values are rows of a database. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from edged.config import placeholders
from edged.config.values import Mistakes
from edged.types import JSON

SQL, DATABASE = "values_sql", "database"
KINDS = ("string", "integer", "number")  # what a parameter with values may be; "string" where it does not say
BESIDE = frozenset({"type", "description", "title", "default", "optional", "examples", SQL, DATABASE})


class Source(Struct, frozen=True):
    """Where the values of a parameter come from: the first column of a statement that reads."""

    database: str
    sql: str


def source(parameter: Mapping[str, JSON]) -> Source | None:
    """Where a parameter's values come from; None: from no database."""
    return Source(parameter[DATABASE], parameter[SQL]) if SQL in parameter else None


def sources(parameters: Mapping[str, Mapping[str, JSON]]) -> dict[str, Source]:
    """Of all parameters that have values from a database, by name."""
    return {name: found for name, parameter in parameters.items() if (found := source(parameter)) is not None}


def mistakes(parameters: Mapping[str, Mapping[str, Any]], databases: Mapping[str, str]) -> Mistakes:
    """What is wrong in how parameters name their values, as far as that is known without a look at the database."""
    for name, parameter in parameters.items():
        for key, problem in _of_one(parameter, databases):
            yield ("parameters", name, *([key] if key else [])), problem


def _of_one(parameter: Mapping[str, Any], databases: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if SQL not in parameter:
        if _is_below(parameter):
            yield "", f"`{SQL}` stands beside the parameter's type, not within its items or properties"
        return
    if not isinstance(parameter[SQL], str) or not parameter[SQL].strip():
        yield SQL, "is a statement that reads the values, as text"
    elif names := placeholders.bound(parameter[SQL]):
        yield SQL, f"binds :{min(names)}, and values are read before a call has arguments"
    known = ", ".join(databases) or "none: write a [databases.NAME] table"
    if DATABASE not in parameter:
        yield DATABASE, f"is missing: it names where `{SQL}` reads; defined are {known}"
    elif not isinstance(parameter[DATABASE], str) or parameter[DATABASE] not in databases:
        yield DATABASE, f"no database {parameter[DATABASE]!r}; defined are {known}"
    if parameter.get("type", "string") not in KINDS:
        yield "type", f"{parameter['type']!r}; a parameter with `{SQL}` is one of {', '.join(KINDS)}"
    if others := [key for key in parameter if key not in BESIDE]:
        yield others[0], f"stands beside `{SQL}`, and both say which values there are: take one of them out"


def _is_below(value: JSON) -> bool:
    """Whether the key stands somewhere within."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            if SQL in item:
                return True
            rest += item.values()
        elif isinstance(item, list):
            rest += item
    return False
