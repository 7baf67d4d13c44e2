"""The values that a statement reads, kept until its database has changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import apsw
from msgspec import Struct

from edged.config import Database, SqlTool
from edged.errors import ToolFailed
from edged.tools.spoken import LONGEST, Names
from edged.tools.sql.database import SqlDatabase
from edged.tools.sql.statement import READ_ACTIONS, authorizer
from edged.types import JSON

MOST = 5000  # values: an index of them takes 4 MB, and 0.2 s of a core after each change of the database
WITHIN_S = 2.0  # for a decision that waits for it; a request for something else goes on without
# Functions whose result changes though the database does not.
UNSTEADY_NAMES = (
    "date time datetime julianday unixepoch strftime timediff current_date current_time current_timestamp random "
    "randomblob changes total_changes last_insert_rowid"
)
UNSTEADY = frozenset(UNSTEADY_NAMES.split())


class Column(Struct, frozen=True):
    """The values of a statement's first column. names: of that column, in the result and in its table; casefolded."""

    values: Names
    names: frozenset[str]


class Read(Struct, frozen=True):
    """A column that was read, and from what: a connection, and the state of its database."""

    column: Column
    reader: apsw.Connection
    version: int


class Columns(SqlDatabase):
    """Statements that give values, in one database of the user's, on a thread and a connection of their own: a value is
    not to wait for a report that a tool has read for seconds. Nothing is ever written."""

    def __init__(self, name: str, config: Database) -> None:
        super().__init__(name, Database(path=config.path, mode="ro"))
        self._kept: dict[str, Read] = {}

    async def column(self, sql: str) -> Column:
        """What a statement reads now.

        Raises:
            ToolFailed: why it cannot be used.
        """
        return cast(Column, await self._run(lambda: self._column(sql)))

    def _column(self, sql: str) -> Column:
        tool = SqlTool(description="", database=self._name, sql=sql, timeout_s=WITHIN_S)
        try:
            self._ensure_checked(tool)
        except apsw.AuthError:
            raise ToolFailed("the statement does more than read rows") from None
        reader = self._open_reader(WITHIN_S)
        self._read_until = time.monotonic() + WITHIN_S
        version = cast(int, reader.execute("PRAGMA data_version").get)  # before the rows: they may be newer, not older
        kept = self._kept.get(sql)
        if kept is not None and (kept.reader, kept.version) == (reader, version):
            return kept.column
        functions = set[str]()
        reader.authorizer = _noting(functions)
        try:
            column = self._values_of(reader, sql)
            column.values.prepare()  # here and not on the event loop
        except apsw.InterruptError:
            raise ToolFailed(f"database {self._name!r}: the values took longer than {WITHIN_S:.0f} s") from None
        finally:
            reader.authorizer = authorizer(READ_ACTIONS)
        if functions & UNSTEADY:
            self._kept.pop(sql, None)
        else:
            self._kept[sql] = Read(column, reader, version)
        return column

    def _values_of(self, reader: apsw.Connection, sql: str) -> Column:
        cursor = reader.execute(sql)
        found: dict[JSON, None] = {}
        more = 0
        try:
            described = cursor.description_full
            for value, *_ in cursor:
                if value is None or value == "" or value in found:
                    continue
                if len(found) == MOST:
                    more += 1
                else:
                    found[_checked(value)] = None
        except apsw.ExecutionCompleteError:  # no description: the statement gave no row
            return Column(Names(()), frozenset())
        except UnicodeDecodeError:
            raise ToolFailed("a value is text that is no UTF-8; leave it out by WHERE, or CAST it") from None
        finally:
            cursor.close(True)
        if more:
            raise ToolFailed(f"it gives {MOST + more} values; at most {MOST} are taken: narrow it by WHERE")
        names = {name.casefold() for name in (described[0][0], described[0][4]) if name}
        return Column(Names(found), frozenset(names))


def _checked(value: object) -> JSON:
    if isinstance(value, bytes):
        raise ToolFailed("a value is a BLOB; texts and numbers are taken: write CAST(... AS TEXT)")
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise ToolFailed(f"a value is {value}, which is no number of JSON")
    if isinstance(value, str) and len(value) > LONGEST:
        raise ToolFailed(f"a value has {len(value)} characters; at most {LONGEST} are taken")
    return value


def _noting(functions: set[str]) -> Callable[..., int]:
    """The authorizer of what reads, that also notes the functions of a statement while it is prepared."""
    decide = authorizer(READ_ACTIONS)

    def authorize(action: int, first: str | None, second: str | None, *more: str | None) -> int:
        if action == apsw.SQLITE_FUNCTION and second is not None:
            functions.add(second.casefold())
        return decide(action, first, second, *more)

    return authorize
