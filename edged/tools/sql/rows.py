"""Rows of SQLite as JSON. Columns of one name, texts that are no UTF-8 and infinite numbers are not lost on the way."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw
import msgspec

from edged.tools.values import json_value
from edged.types import JSON

MAX_ROWS = 100  # rows a read returns; more do not fit a small model's context, and "truncated" says so
MAX_RESULT_BYTES = 64 * 1024  # of one result as JSON, for the same reason

Rows = tuple[list[JSON], bool]  # and whether there are more


class Garbled(NamedTuple):
    """The first text of a column that is not in the database's encoding. table, column: empty for an expression."""

    name: str
    table: str
    column: str
    text: bytes


def distinct(names: Sequence[str]) -> list[str]:
    """The names of a result's columns, each once: what comes again is called NAME_2, NAME_3, ..."""
    made: list[str] = []
    for name in names:
        new, count = name, 1
        while new in made or (count > 1 and new in names):
            count += 1
            new = f"{name}_{count}"
        made.append(new)
    return made


def as_row(cursor: apsw.Cursor, values: tuple[Any, ...]) -> dict[str, JSON]:
    """A row as JSON, by column."""
    names = distinct([name for name, *_ in cursor.description_full])
    return {name: json_value(value) for name, value in zip(names, values, strict=True)}


def taken(cursor: apsw.Cursor) -> Rows:
    """The rows of a result as far as they fit. UnicodeDecodeError: one of them holds a text that is no UTF-8."""
    rows: list[JSON] = []
    size = 0
    for values in cursor:
        row = as_row(cursor, values)
        size += len(msgspec.json.encode(row))
        if len(rows) == MAX_ROWS or size > MAX_RESULT_BYTES:
            return rows, True
        rows.append(row)
    return rows, False


def mended(connection: apsw.Connection, sql: str, bound: Any, encoding: str) -> tuple[Rows, list[Garbled]]:
    """As `taken`, for a reading statement: texts come as bytes, and what is no character of theirs is U+FFFD.

    Args:
        sql: one statement without anything after it.
        encoding: the database's.
    """
    cursor = connection.execute(sql, bound)
    columns = cursor.description_full
    cursor.close(True)
    names = distinct([name for name, *_ in columns])
    cursor = connection.execute(_texts_as_bytes(sql, len(columns)), bound)
    rows: list[JSON] = []
    garbled: dict[int, Garbled] = {}
    size, truncated = 0, False
    for values in cursor:
        row: dict[str, JSON] = {}
        for place, name in enumerate(names):
            kind, value = values[2 * place], values[2 * place + 1]
            if kind == "text":
                text = value.decode(encoding, errors="replace")
                if place not in garbled and text.encode(encoding) != value:
                    garbled[place] = Garbled(name, columns[place][3] or "", columns[place][4] or "", value)
                value = text
            row[name] = value if kind == "text" else json_value(value)
        size += len(msgspec.json.encode(row))
        if len(rows) == MAX_ROWS or size > MAX_RESULT_BYTES:
            truncated = True
            break
        rows.append(row)
    cursor.close(True)
    return (rows, truncated), list(garbled.values())


def _texts_as_bytes(sql: str, columns: int) -> str:
    """A statement that gives two columns for each of another's: its type, and its value or, of a text, its bytes."""
    names = [f"c{place}" for place in range(columns)]
    shown = (f"typeof({n}), CASE typeof({n}) WHEN 'text' THEN CAST({n} AS BLOB) ELSE {n} END" for n in names)
    return f"WITH edged_rows({', '.join(names)}) AS (\n{sql}\n) SELECT {', '.join(shown)} FROM edged_rows"  # noqa: S608  # the user's own


def rowid_of(connection: apsw.Connection, found: Garbled) -> int | None:
    """The number of the first row of a table that holds a text; None where it has none or that takes too long."""
    if not found.column:
        return None
    table, column = ('"{}"'.format(name.replace('"', '""')) for name in (found.table, found.column))
    with contextlib.suppress(apsw.Error):  # a table WITHOUT ROWID, a view, a table of many rows
        query = f"SELECT rowid FROM {table} WHERE {column} IS CAST(? AS TEXT) LIMIT 1"  # noqa: S608  # quoted names
        row = connection.execute(query, (found.text,)).get
        return row if isinstance(row, int) else None
    return None


def encoding_of(connection: apsw.Connection) -> str:
    """The encoding of a database's texts, as Python calls it."""
    named = connection.execute("PRAGMA encoding").get
    return codecs.lookup({"UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}.get(str(named), "utf-8")).name
