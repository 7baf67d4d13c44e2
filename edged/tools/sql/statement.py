"""The statement of an SQL tool: what it may do, whether it can run, and what SQLite's errors mean for it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import apsw

from edged.config import SqlTool
from edged.errors import ToolFailed
from edged.tools.sql import access
from edged.tools.sql.rows import distinct

READ_ACTIONS = {
    apsw.SQLITE_SELECT,
    apsw.SQLITE_READ,
    apsw.SQLITE_FUNCTION,
    apsw.SQLITE_RECURSIVE,
}
WRITE_ACTIONS = READ_ACTIONS | {apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE}
OWN_TABLE = "edged_effects"

# What one value may be, and so what group_concat, randomblob or printf can make: far above what a tool returns, far
# below what a board has.
MAX_VALUE_BYTES = 8 * 2**20
LIMITS = {
    apsw.SQLITE_LIMIT_LENGTH: MAX_VALUE_BYTES,
    apsw.SQLITE_LIMIT_ATTACHED: 0,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,  # time grows with the product of pattern and text
    apsw.SQLITE_LIMIT_WORKER_THREADS: 0,
}


def harden(connection: apsw.Connection) -> None:
    """Limit a connection beyond what the authorizer does: also a view, a trigger or the schema of a file that somebody
    else made."""
    for limit, most in LIMITS.items():
        connection.limit(limit, most)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)  # no writable_schema, no shadow tables
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)  # functions with side effects in a schema are refused
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0)
    connection.execute("PRAGMA cell_size_check = ON")  # a damaged page is found, not followed


def authorizer(allowed: set[int]) -> Callable[..., int]:
    """Denies everything but reading (and changing) rows: no ATTACH, no PRAGMA, no DDL, not edged's own table."""

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action == apsw.SQLITE_PRAGMA and first == "data_version" and second is None:
            return apsw.SQLITE_OK  # FTS5 asks so whether its index changed; it only reads
        if action not in allowed:
            return apsw.SQLITE_DENY
        changes = action in (apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE)
        return apsw.SQLITE_DENY if changes and first == OWN_TABLE else apsw.SQLITE_OK

    return authorize


def describe(connection: apsw.Connection, tool: SqlTool) -> list[str]:
    """Prepare a tool's statement, with every parameter NULL. Returns names that several columns of its result have.

    Raises:
        ToolFailed: it is no statement, or several, or binds what the tool does not declare.
        apsw.Error: SQLite does not take it.
    """
    names, columns, rest = _first_statement(connection, tool.sql)
    if names is None:
        raise ToolFailed("the statement is empty")
    if _first_statement(connection, rest)[0] is not None:
        raise ToolFailed("a tool is one statement, not several")
    if unknown := names - set(tool.parameters):
        raise ToolFailed(f"the statement binds {', '.join(sorted(unknown))}, which is no parameter of the tool")
    doubled = [name for name, count in Counter(columns).items() if count > 1]
    known = {*distinct(columns), *tool.parameters}
    for name in () if isinstance(tool.private, bool) else tool.private:
        if name.casefold() in {one.casefold() for one in doubled}:  # the second would leave under another name
            raise ToolFailed(
                f"private names {name!r}, and several columns of its result are called so; rename them by AS"
            )
        if name.casefold() not in {one.casefold() for one in known}:  # or what should stay here would leave
            there = ", ".join(sorted(known)) or "none"
            raise ToolFailed(
                f"private names {name!r}, which is no column of its result and no parameter; it has {there}"
            )
    return doubled


class _Nulls(Mapping[str, None]):
    """Every parameter NULL, whatever its name."""

    def __getitem__(self, name: str) -> None:
        return None

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def statement_of(connection: apsw.Connection, sql: str) -> str:
    """The statement in a text that `describe` takes, without what ends and follows it."""
    return sql.removesuffix(_first_statement(connection, sql)[2]).rstrip().removesuffix(";")


def _first_statement(connection: apsw.Connection, sql: str) -> tuple[set[str] | None, list[str], str]:
    """(names it binds, columns of its result, what follows it) of the first statement, which is prepared and not run;
    (None, ...) where there is nothing but comments."""
    seen: list[tuple[str, set[str], list[str]]] = []

    def look(cursor: apsw.Cursor, statement: str, _: Any) -> bool:
        if cursor.has_vdbe:
            columns = [name for name, *_ in cursor.get_description()]
            seen.append((statement, {name for name in cursor.bindings_names if name}, columns))
        return not cursor.has_vdbe  # a comment may run, a statement not

    cursor = connection.cursor()
    cursor.exec_trace = look
    with contextlib.suppress(apsw.ExecTraceAbort):
        cursor.execute(sql, _Nulls())
    if not seen:
        return None, [], ""
    statement, names, columns = seen[0]
    return names, columns, sql.partition(statement)[2]


def reason(error: Exception, path: str) -> str:
    """What an error of SQLite's means, for a person."""
    text = str(error)
    if isinstance(error, KeyError):
        return f"the statement binds {error.args[0]}, which is no parameter of the tool"
    if isinstance(error, UnicodeDecodeError):
        return (
            f"a row that the write returns holds text that is no UTF-8 ({error}), so nothing was changed; "
            "write CAST(... AS BLOB) around that column after RETURNING"
        )
    if isinstance(error, apsw.AuthError):
        return "the statement does what a tool of this effect may not (only rows may be read, or changed by a write)"
    if isinstance(error, apsw.BusyError):
        return "another program holds the database locked for longer than the tool's timeout_s"
    if isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError):
        return access.denied(path) or f"{path} cannot be {'opened' if 'open' in text else 'written'}: {text}"
    return text
