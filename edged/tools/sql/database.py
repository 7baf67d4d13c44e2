"""One database of the user's, and the thread that uses it. Another application may hold the file for seconds, and
nothing else may wait for that: so each database has a thread of its own.

A read runs on a read-only connection, under an authorizer and with limits of rows and time. A write happens exactly
once: its effect and a row in `edged_effects`, keyed by (rid, step), are one transaction; another attempt at the same
step gets the row. The row also holds the intent, so that a request whose journal was lost finds out what it did.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import apsw
import msgspec

from edged.config import Database, SqlTool
from edged.errors import ToolFailed
from edged.host import clock
from edged.host.fault_points import point
from edged.tools.kind import Done, check_same_call
from edged.tools.sql import access
from edged.tools.sql.rows import MAX_ROWS, Garbled, as_row, encoding_of, mended, rowid_of, taken
from edged.tools.sql.statement import (
    OWN_TABLE,
    READ_ACTIONS,
    WRITE_ACTIONS,
    authorizer,
    describe,
    harden,
    reason,
    statement_of,
)
from edged.tools.values import sql_values
from edged.types import JSON

logger = logging.getLogger("edged.tools")

PROGRESS_STEPS = 1000  # SQLite instructions between two looks at the clock: about 10 us
BUSY_S = 10.0  # another application's lock is waited for so long where no tool says how long
EFFECTS_KEPT_S = 30 * 86400.0  # longer than any request may wait (wire.MAX_DEADLINE_S) plus a board left in a drawer

# FULL leaves the end of a rollback journal to the folder's next sync: one that is there again after a power cut takes
# the effect back, though its result is known.
SYNCHRONOUS = "EXTRA"

EFFECTS = """
    CREATE TABLE IF NOT EXISTS edged_effects(  -- made by edged: which steps of which requests were done here
        rid TEXT NOT NULL, step INTEGER NOT NULL, at REAL NOT NULL, result TEXT NOT NULL, intent TEXT,
        PRIMARY KEY(rid, step)
    ) WITHOUT ROWID
"""
LATER = {"intent": "ALTER TABLE edged_effects ADD COLUMN intent TEXT"}  # columns that the first tables did not have

GARBLED_ROW_S = 0.2  # to find the row of a text that is no UTF-8, for the log: a table may have millions
MOST_GARBLED = 100  # columns with such texts that the log names, once each

Work = Callable[[], Any]


class SqlDatabase:
    """One database of the user's, and the thread that uses it."""

    def __init__(self, name: str, config: Database) -> None:
        self._name = name
        self._path = config.path
        self._writable = config.mode == "rw"
        self._work: queue.SimpleQueue[tuple[Work, asyncio.AbstractEventLoop, asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._reader: apsw.Connection | None = None
        self._writer: apsw.Connection | None = None
        self._read_until = 0.0
        self._checked: set[str] = set()
        self._encoding = "utf-8"
        self._garbled: set[tuple[str, str]] = set()  # that the log has named: tables (or statements) with columns
        self._newest = 0.0  # the latest time in edged_effects
        self._file: tuple[int, int] | None = None  # that the connections have open: device and inode

    async def read(self, tool: SqlTool, arguments: dict[str, JSON], *, name: str = "") -> JSON:
        """{"rows": [{column: value}], "truncated": bool}. Raises ToolFailed with SQLite's reason.

        Args:
            name: of the tool, for the log.
        """
        return await self._run(lambda: self._select(tool, arguments, name))

    async def write(
        self, tool: SqlTool, arguments: dict[str, JSON], rid: str, step: int, intent: str | None = None
    ) -> JSON:
        """{"changes": int, "rows": [...]}; done once per (rid, step), however often it is called.

        Args:
            intent: what `recall` gives back.

        Raises:
            OtherCall: another call was done under (rid, step).
            ToolFailed: SQLite's reason.
        """
        return await self._run(lambda: self._effect(tool, arguments, rid, step, intent))

    async def recall(self, rid: str) -> list[Done]:
        """What was done under a rid, where the rows hold intents. Raises ToolFailed: the database cannot be read."""
        return cast("list[Done]", await self._run(lambda: self._recall(rid)) if self._writable else [])

    async def check(self, tool: SqlTool) -> list[str]:
        """Prepare the statement without running it, and see whether a write would be let in. Returns names that
        several columns of its result have.

        Raises:
            ToolFailed: what is wrong with it.
        """
        return cast("list[str]", await self._run(lambda: self._examine(tool)))

    async def stop(self) -> None:
        """Close the connections; what is queued is finished first."""
        if self._thread:
            self._work.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def _run(self, work: Work) -> Any:
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=f"edged.database.{self._name}", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        future.add_done_callback(_seen)
        self._work.put((work, loop, future))
        return await asyncio.shield(future)  # a cancelled request does not tear a write in two

    def _loop(self) -> None:
        while (item := self._work.get()) is not None:
            work, loop, future = item
            value, error = self._attempt(work)
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, future, value, error)
        self._close()

    def _attempt(self, work: Work) -> tuple[Any, Exception | None]:
        try:
            return work(), None
        except ToolFailed as error:
            return None, error
        except apsw.ReadOnlyError as error:
            self._close()  # see _examine
            return None, ToolFailed(f"database {self._name!r}: {reason(error, self._path)}")
        except (apsw.Error, KeyError, ValueError, TypeError, OverflowError) as error:
            return None, ToolFailed(f"database {self._name!r}: {reason(error, self._path)}")
        except Exception as error:  # a bug of ours must not end the thread: every later call would hang
            return None, error

    def _select(self, tool: SqlTool, arguments: dict[str, JSON], name: str = "") -> JSON:
        self._ensure_checked(tool)
        reader = self._open_reader(tool.timeout_s)
        self._read_until = time.monotonic() + tool.timeout_s
        bound = sql_values(arguments)
        garbled: list[Garbled] = []
        try:
            cursor = reader.execute(tool.sql, bound)
            try:
                rows, truncated = taken(cursor)
            except UnicodeDecodeError:
                cursor.close(True)
                statement = statement_of(reader, tool.sql)
                (rows, truncated), garbled = mended(reader, statement, bound, self._encoding)
            else:
                cursor.close(True)
        except apsw.InterruptError:
            raise ToolFailed(f"database {self._name!r}: the query took longer than {tool.timeout_s} s") from None
        for found in garbled:
            self._name_garbled(reader, name, tool, found)
        return {"rows": rows, "truncated": truncated}

    def _name_garbled(self, reader: apsw.Connection, name: str, tool: SqlTool, found: Garbled) -> None:
        """Tell the log of a text that is no UTF-8, once for its table and column."""
        key = (found.table, found.column) if found.column else (tool.sql, found.name)
        if key in self._garbled or len(self._garbled) >= MOST_GARBLED:
            return
        self._garbled.add(key)
        self._read_until = time.monotonic() + GARBLED_ROW_S
        rowid = rowid_of(reader, found)
        place = f"{found.table}.{found.column}" if found.column else f"the column {found.name!r} of its result"
        row = f" in the row with rowid {rowid}" if rowid is not None else ""
        text = "tool %s: database %r: %s holds text that is no UTF-8%s; what is no character of it is shown as U+FFFD"
        about = {"event": "text_not_utf8", "tool": name, "place": place, "rowid": rowid}
        logger.warning(text, name, self._name, place, row, extra=about)

    def _recall(self, rid: str) -> list[Done]:
        if not Path(self._path).exists():
            return []
        reader = self._open_reader(BUSY_S)
        self._read_until = time.monotonic() + BUSY_S
        made = reader.execute("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?", (OWN_TABLE,)).get
        if made is None or not all(column in cast(str, made) for column in LATER):
            return []  # nothing was done that has an intent; any other error is one
        query = "SELECT step, intent, result FROM edged_effects WHERE rid = ? AND intent IS NOT NULL ORDER BY step"
        rows = cast("list[tuple[int, str, str]]", reader.execute(query, (rid,)).fetchall())
        return [Done(step, intent, msgspec.json.decode(result)) for step, intent, result in rows]

    def _effect(
        self, tool: SqlTool, arguments: dict[str, JSON], rid: str, step: int, intent: str | None = None
    ) -> JSON:
        self._ensure_checked(tool)
        writer = self._open_writer(tool.timeout_s)
        writer.set_busy_timeout(int(tool.timeout_s * 1000))
        writer.execute("BEGIN IMMEDIATE")
        try:
            query = "SELECT result, intent FROM edged_effects WHERE rid = ? AND step = ?"
            known = cast("tuple[str, str | None] | None", writer.execute(query, (rid, step)).fetchone())
            if known is not None:
                writer.execute("ROLLBACK")
                if intent is not None and known[1] is not None:  # rows of earlier releases may have none
                    check_same_call(known[1], intent)
                return msgspec.json.decode(known[0])
            result = self._change(writer, tool, arguments)
            text = msgspec.json.encode(result).decode()
            self._newest = max(self._newest, clock.wall())
            effect = (rid, step, self._newest, text, intent)
            writer.execute("INSERT INTO edged_effects(rid, step, at, result, intent) VALUES (?,?,?,?,?)", effect)
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            raise
        point("tool.effect")
        return result

    def _change(self, writer: apsw.Connection, tool: SqlTool, arguments: dict[str, JSON]) -> JSON:
        rows: list[JSON] = []
        before = writer.total_changes()
        writer.authorizer = authorizer(WRITE_ACTIONS)
        writer.set_progress_handler(_timer(time.monotonic() + tool.timeout_s), PROGRESS_STEPS)
        try:
            cursor = writer.execute(tool.sql, sql_values(arguments))
            for values in cursor:
                if len(rows) < MAX_ROWS:
                    rows.append(as_row(cursor, values))
        except apsw.InterruptError:
            raise ToolFailed(f"database {self._name!r}: the write took longer than {tool.timeout_s} s") from None
        finally:
            writer.authorizer = None
            writer.set_progress_handler(None)
        changes = writer.total_changes() - before  # with those of triggers: they count where they are all, as on a view
        return {"changes": min(changes, writer.changes()) or changes, "rows": rows}

    def _ensure_checked(self, tool: SqlTool) -> None:
        """Before its first use: at the start of the daemon the file may not have been there."""
        self._check_file()
        if tool.sql not in self._checked:
            self._prepare(tool)
            self._checked.add(tool.sql)

    def _examine(self, tool: SqlTool) -> list[str]:
        doubled = self._prepare(tool)
        if tool.is_write and (why := access.refusal(self._path)) is not None:
            self._close()  # all connections of a process share what they may do with a WAL's index, until the last ends
            raise ToolFailed(f"database {self._name!r}: {why}")
        return doubled

    def _prepare(self, tool: SqlTool) -> list[str]:
        """Parse and plan the statement with every parameter NULL; nothing runs. Returns as `check`."""
        reader = self._open_reader(tool.timeout_s)
        self._read_until = time.monotonic() + tool.timeout_s  # preparing may read the schema, which looks at it too
        reader.authorizer = authorizer(READ_ACTIONS if tool.effect == "read" else WRITE_ACTIONS)
        try:
            return describe(reader, tool)
        finally:
            reader.authorizer = authorizer(READ_ACTIONS)

    def _open_reader(self, wait_s: float) -> apsw.Connection:
        self._check_file()
        if self._reader is None:
            reader = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY)
            harden(reader)
            reader.set_busy_timeout(int(wait_s * 1000))
            reader.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()  # fails here if it is no database
            self._encoding = encoding_of(reader)
            reader.authorizer = authorizer(READ_ACTIONS)
            reader.set_progress_handler(lambda: time.monotonic() > self._read_until, PROGRESS_STEPS)
            self._reader = reader
        self._reader.set_busy_timeout(int(wait_s * 1000))
        return self._reader

    def _open_writer(self, wait_s: float) -> apsw.Connection:
        if not self._writable:
            raise ToolFailed(f"database {self._name!r} is opened read-only")
        self._check_file()
        if self._writer is None:
            writer = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READWRITE)
            harden(writer)
            writer.set_busy_timeout(int(wait_s * 1000))
            writer.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
            writer.execute(EFFECTS)
            there = {name for (name,) in writer.execute("SELECT name FROM pragma_table_info(?)", (OWN_TABLE,))}
            for column in LATER.keys() - there:
                writer.execute(LATER[column])
            # Age counts from the newest row and times never go back: on a board that learns the date late, or lost it,
            # the row of a step that is still to be resumed must not look old.
            self._newest = cast(float, writer.execute("SELECT coalesce(max(at), 0.0) FROM edged_effects").get)
            writer.execute("DELETE FROM edged_effects WHERE at < ?", (self._newest - EFFECTS_KEPT_S,))
            self._writer = writer
        return self._writer

    def _check_file(self) -> None:
        """Whether it is there. One that was put in its place, as a backup is, is opened anew: what is written to the
        old one nobody sees."""
        try:
            status = Path(self._path).stat()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            what = f"there is no file {self._path}" if missing else f"{self._path}: {error.strerror}"
            raise ToolFailed(f"database {self._name!r}: {what}") from None
        if (file := (status.st_dev, status.st_ino)) != self._file:
            self._close()
            self._file = file

    def _close(self) -> None:
        connections, self._reader, self._writer = (self._reader, self._writer), None, None
        self._checked.clear()
        for connection in connections:
            if connection:
                connection.close()


def _timer(until: float) -> Callable[[], bool]:
    return lambda: time.monotonic() > until


def _seen(future: asyncio.Future[Any]) -> None:
    """A failure that nobody waits for any more is no accident of the loop's."""
    if not future.cancelled():
        future.exception()


def _resolve(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
