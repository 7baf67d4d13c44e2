"""Whether an answer's numbers come from somewhere, and the rows told plainly where they do not. Pure.

A small model that words an answer may write a number that no tool gave. Numbers are compared by value, in any spelling:
one of an answer has to stand in the results, the request, an earlier turn or the system text, rounded to fewer digits
at most, or follow from a column of the rows: its sum, its least and greatest, a difference of two, how many rows there
are. What cannot be told apart is let through: a right answer that is thrown away costs more than it saves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from edged.types import JSON, ToolRecord

# With separators of thousands and a decimal sign, as any of the languages has them; not within a word (F08, m2).
NUMBER = re.compile(r"(?<![\w.,])[-+]?\d+(?:[.,'\u2019\u00a0\u202f]\d+)*(?!\w)|(?<=[^\W\d_])\d+(?!\w)")
DIGITS = re.compile(r"\d+")
PAIRS = 40  # values of a column whose differences are looked at: few people ask for one between more rows
ROUNDING = 1e-9  # doubles that were added up


def unsupported(text: str, records: Sequence[ToolRecord], said: Iterable[str]) -> list[str]:
    """The numbers of an answer that come from nowhere, as they are spelled.

    Args:
        said: the request, what was said before, the system text.
    """
    spelled = [match[0] for match in NUMBER.finditer(text)]
    if not spelled:
        return []
    known = {value for each in said for value in _values_in(each)}
    for record in records:
        known.update(_values_in(_flat(record.arguments)))
        known.update(_values_in(_flat(record.result)))
        known.update(_derived(record.result))
    return [number for number in spelled if not any(_supported(value, known) for value in _readings(number))]


def plainly(records: Sequence[ToolRecord]) -> str:
    """What the tools gave, in no language: names of columns and their values, a row a line."""
    return "\n".join(line for record in records for line in _lines(record.result))


def _lines(result: JSON) -> Iterator[str]:
    rows = result.get("rows") if isinstance(result, dict) else None
    if not isinstance(rows, list):
        yield _flat(result)
        return
    for row in rows:
        yield ", ".join(f"{name}: {_flat(value)}" for name, value in row.items() if value is not None)


def _flat(value: JSON) -> str:
    match value:
        case dict():
            return ", ".join(f"{key}: {_flat(each)}" for key, each in value.items())
        case list():
            return ", ".join(map(_flat, value))
        case bool():
            return "true" if value else "false"
        case None:
            return ""
        case float():
            return f"{value:.12g}"
        case _:
            return str(value)


def _values_in(text: str) -> Iterator[float]:
    """All that its numbers can mean; of dates and times each part, and the hours of half a day."""
    for match in NUMBER.finditer(text):
        yield from _readings(match[0])
    for digits in DIGITS.findall(text):
        value = float(digits)
        yield value
        if 12 < value < 24:
            yield value - 12


def _readings(spelled: str) -> Iterator[float]:
    """12.5 and 12,5 are one number, 1.234 and 1,234 may be two: with a sign of thousands or of decimals."""
    plain = re.sub(r"['\u2019\u00a0\u202f]", "", spelled.lstrip("+"))
    yield from _read(plain.replace(",", ""))
    yield from _read(plain.replace(".", "").replace(",", "."))
    if plain.startswith("-"):
        yield from _readings(plain[1:])


def _read(text: str) -> Iterator[float]:
    try:
        yield float(text)
    except ValueError:
        return


def _supported(value: float, known: set[float]) -> bool:
    return any(_is_rounded(value, each) for each in known)


def _is_rounded(value: float, of: float) -> bool:
    """Whether a number is another one, or that one with fewer digits behind the point or zeros at the end."""
    if math.isclose(value, of, rel_tol=ROUNDING, abs_tol=ROUNDING):
        return True
    return any(
        math.isclose(value, round(of, places), rel_tol=ROUNDING)
        or math.isclose(value, _cut(of, places), rel_tol=ROUNDING)
        for places in range(-2 if abs(of) >= 1000 else 0, 6)
        if value or places >= 0
    )


def _cut(value: float, places: int) -> float:
    factor = 10.0**places
    return math.trunc(value * factor) / factor


def _derived(result: JSON) -> Iterator[float]:
    rows = result.get("rows") if isinstance(result, dict) else result
    if not isinstance(rows, list):
        return
    yield float(len(rows))
    names = {name for row in rows if isinstance(row, dict) for name in row}
    for name in names:
        column = [row[name] for row in rows if isinstance(row, dict) and _is_number(row.get(name))]
        if not column:
            continue
        total = math.fsum(column)
        yield from (total, total / len(column))
        values = sorted(set(column))[:PAIRS]
        yield from (abs(a - b) for a, b in combinations(values, 2))
        counted = [row.get(name) for row in rows]
        yield from {float(counted.count(value)) for value in values}
    for row in rows:
        numbers = [value for value in row.values() if _is_number(value)] if isinstance(row, dict) else []
        yield from (abs(a - b) for a, b in combinations(numbers[:PAIRS], 2))


def _is_number(value: JSON) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
