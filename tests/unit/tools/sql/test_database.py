"""SQL tools on real files: what they may do, how often, and what happens when others use the file too."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from edged.config import Database, SqlTool
from edged.config.tools import Effect
from edged.errors import ToolFailed
from edged.host import clock, fault_points
from edged.tools.kind import Done
from edged.tools.sql import database as sql
from edged.tools.sql import rows as rows_of
from edged.tools.sql.database import SqlDatabase

SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
SETUP = """
    BEGIN;
    CREATE TABLE t(a, b);
    CREATE TABLE strict_one(id INTEGER PRIMARY KEY AUTOINCREMENT, x TEXT NOT NULL UNIQUE);
    CREATE TABLE log(x);
    CREATE TRIGGER logged AFTER INSERT ON t BEGIN INSERT INTO log VALUES (new.a); END;
    CREATE VIEW v AS SELECT a FROM t;
    CREATE TRIGGER into_v INSTEAD OF INSERT ON v BEGIN INSERT INTO t VALUES (new.a, 0); END;
    CREATE VIRTUAL TABLE words USING fts5(body);
    INSERT INTO words VALUES ('hello world');
    COMMIT;
"""


def tool(text: str, *names: str, effect: Effect = "read", timeout_s: float = 5.0) -> SqlTool:
    """A tool of one statement."""
    parameters: dict[str, dict[str, Any]] = {name: {} for name in names}
    return SqlTool(
        description="d", database="plant", sql=text, effect=effect, parameters=parameters, timeout_s=timeout_s
    )


def writing(text: str, *names: str, timeout_s: float = 5.0) -> SqlTool:
    return tool(text, *names, effect="write", timeout_s=timeout_s)


INSERT = writing("INSERT INTO t VALUES (:a, 1)", "a")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file made by another SQLite library than edged's, in SQLite's default journal mode."""
    found = tmp_path / "plant.db"
    run(found, SETUP)
    return found


@pytest.fixture
async def database(path: Path) -> AsyncIterator[SqlDatabase]:
    opened = SqlDatabase("plant", Database(path=str(path), mode="rw"))
    yield opened
    await opened.stop()


def run(path: Path, script: str) -> None:
    """A script, by the other library."""
    connection = sqlite3.connect(path)
    try:
        connection.executescript(script)
        connection.commit()
    finally:
        connection.close()


def rows(path: Path, query: str) -> list[Any]:
    """What another program sees."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("value", ["'; DROP TABLE t; --", "a' OR 1=1", '"', "ü🌱", "\0x", 5, 1.5, None, ""])
async def test_parameter_is_bound_and_never_part_of_the_statement(database: SqlDatabase, value: object) -> None:
    """What goes in comes out, whatever it looks like."""
    await database.write(INSERT, {"a": value}, "r", 0)
    found = await database.read(tool("SELECT a FROM t WHERE a IS :a", "a"), {"a": value})
    assert found == {"rows": [{"a": value}], "truncated": False}


async def test_read_gives_rows_by_column_and_blobs_as_base64(database: SqlDatabase) -> None:
    """The shape of CONTRACT section 3."""
    found = await database.read(tool("SELECT 1 AS n, 2.5 AS x, 'a' AS s, NULL AS z, x'00ff' AS b"), {})
    assert found == {"rows": [{"n": 1, "x": 2.5, "s": "a", "z": None, "b": "AP8="}], "truncated": False}
    assert await database.read(tool("SELECT a FROM t"), {}) == {"rows": [], "truncated": False}


async def test_text_that_is_no_utf8_costs_no_other_row(
    database: SqlDatabase, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that writes Latin-1 into its tables is old, not wrong. The log names the place once."""
    run(path, "INSERT INTO t VALUES ('good', 1), (CAST(x'47fc74' AS TEXT), 'two'), ('also good', x'00ff')")
    reading = tool("SELECT a, b, a || '!' AS said FROM t WHERE b IS NOT :not ORDER BY rowid DESC; -- all", "not")
    for _ in range(2):
        assert await database.read(reading, {"not": 9}, name="beds") == {
            "rows": [
                {"a": "also good", "b": "AP8=", "said": "also good!"},
                {"a": "G\ufffdt", "b": "two", "said": "G\ufffdt!"},
                {"a": "good", "b": 1, "said": "good!"},
            ],
            "truncated": False,
        }
    told = [record.getMessage() for record in caplog.records if "no UTF-8" in record.getMessage()]
    assert len(told) == 2
    assert all("beds" in text for text in told)
    assert "t.a holds text that is no UTF-8 in the row with rowid 2" in told[0]
    assert "column 'said'" in told[1]


async def test_text_that_is_no_utf8_is_read_whatever_its_column_is_for(database: SqlDatabase, path: Path) -> None:
    """SQLite lets any column hold any text; an import from a spreadsheet leaves degree signs in numbers."""
    run(
        path,
        """CREATE TABLE readings(n INTEGER, x REAL, b BLOB, w TEXT PRIMARY KEY) WITHOUT ROWID;
           INSERT INTO readings
           VALUES (CAST(x'3231b0' AS TEXT), CAST(x'b0' AS TEXT), CAST(x'ff41' AS TEXT), 'w')""",
    )
    found = await database.read(tool("SELECT n, x, b FROM readings"), {})
    assert found["rows"] == [{"n": "21\ufffd", "x": "\ufffd", "b": "\ufffdA"}]
    grouped = await database.read(tool("WITH q AS (SELECT b, count(*) FROM readings GROUP BY 1) SELECT * FROM q"), {})
    assert grouped["rows"] == [{"b": "\ufffdA", "count(*)": 1}]


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (b"\xc3\x28", "\ufffd("),  # a browser's history, read by litecli
        (b"bash\xfd;make\xfd", "bash\ufffd;make\ufffd"),  # GNU parallel's job log, read by sqlite-web
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),  # half a surrogate pair that a program wrote as three bytes
        (b"21 \xc2", "21 \ufffd"),  # cut in the middle of a character
    ],
)
async def test_texts_that_cost_others_a_table(database: SqlDatabase, path: Path, stored: bytes, read: str) -> None:
    """Databases that people brought to other tools."""
    run(path, f"INSERT INTO t VALUES (CAST(x'{stored.hex()}' AS TEXT), 1), ('good', 2)")
    assert (await database.read(tool("SELECT a FROM t"), {}))["rows"] == [{"a": read}, {"a": "good"}]


async def test_many_rows_with_text_that_is_no_utf8_stop_at_the_limit(database: SqlDatabase, path: Path) -> None:
    """The second way of reading is as bounded as the first."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT CAST(x'ff' AS TEXT) AS a FROM n"
    found = await database.read(tool(endless), {})
    assert (len(found["rows"]), found["truncated"]) == (rows_of.MAX_ROWS, True)


async def test_columns_of_one_name_are_all_there_and_check_names_them(database: SqlDatabase, path: Path) -> None:
    """A join of two tanks has two levels."""
    run(path, "INSERT INTO t VALUES (1, 2)")
    joined = tool("SELECT l.a, r.a, l.b AS a_2, r.b, 7 AS a FROM t l JOIN t r")
    assert await database.check(joined) == ["a"]
    assert (await database.read(joined, {}))["rows"] == [{"a": 1, "a_3": 1, "a_2": 2, "b": 2, "a_4": 7}]
    returning = writing("INSERT INTO t VALUES (:a, 1) RETURNING a, a", "a")
    assert (await database.write(returning, {"a": 5}, "r", 0))["rows"] == [{"a": 5, "a_2": 5}]
    assert await database.check(tool("SELECT l.a AS a, r.a AS other FROM t l JOIN t r")) == []


async def test_private_column_that_is_there_twice_is_refused(database: SqlDatabase) -> None:
    """The second has another name, under which it would leave the board."""
    twice = SqlTool(description="d", database="plant", sql="SELECT a, a FROM t", private=("A",))
    with pytest.raises(ToolFailed, match="private names 'A', and several columns"):
        await database.check(twice)


async def test_infinite_numbers_are_texts_and_not_null(database: SqlDatabase) -> None:
    """JSON has no word for them; a sensor that divides by zero writes them."""
    found = await database.read(tool("SELECT 9e999 AS up, -9e999 AS down, 1e308 AS large, NULL AS none"), {})
    assert found["rows"] == [{"up": "Infinity", "down": "-Infinity", "large": 1e308, "none": None}]


FORBIDDEN = [
    "INSERT INTO t VALUES (1, 2)",
    "UPDATE t SET a = 1",
    "DELETE FROM t",
    "CREATE TABLE x(y)",
    "CREATE TEMP TABLE x(y)",
    "DROP TABLE t",
    "PRAGMA user_version",
    "PRAGMA journal_mode = WAL",
    "SELECT * FROM pragma_table_info('t')",
    "ATTACH ':memory:' AS other",
    "VACUUM INTO '{folder}/copy.db'",
    "REINDEX",
    "ANALYZE",
    "BEGIN",
    "SELECT load_extension('x')",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_read_tool_can_do_nothing_but_read(database: SqlDatabase, path: Path, statement: str) -> None:
    """Neither change, nor reach another file, nor change how the connection works."""
    before = path.read_bytes()
    with pytest.raises(ToolFailed):
        await database.read(tool(statement.format(folder=path.parent)), {})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["plant.db"]


@pytest.mark.parametrize(
    "statement",
    [s for s in FORBIDDEN if s.split()[0] not in ("INSERT", "UPDATE", "DELETE")]
    + ["COMMIT", "ROLLBACK", "SAVEPOINT x", "DETACH main"],
)
async def test_write_tool_changes_rows_and_nothing_else(database: SqlDatabase, path: Path, statement: str) -> None:
    """No tables, no files, no way out of its transaction."""
    with pytest.raises(ToolFailed):
        await database.write(writing(statement.format(folder=path.parent)), {}, "r", 0)
    assert not (path.parent / "copy.db").exists()
    assert await database.write(INSERT, {"a": 1}, "r", 1) == {"changes": 1, "rows": []}
    assert rows(path, "SELECT rid, step FROM edged_effects") == [("r", 1)]


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM edged_effects", "UPDATE Edged_Effects SET result = '1'", "DROP TABLE edged_effects",
     "INSERT INTO main.edged_effects VALUES ('r', 9, 0, '{}')", "REPLACE INTO edged_effects VALUES ('r', 0, 0, '7')"],
)  # fmt: skip
async def test_write_tool_cannot_change_edgeds_own_table(database: SqlDatabase, path: Path, statement: str) -> None:
    """Or a tool could make another's effect happen twice."""
    await database.write(INSERT, {"a": 1}, "r", 0)
    before = rows(path, "SELECT * FROM edged_effects")
    with pytest.raises(ToolFailed, match="may not"):
        await database.write(writing(statement), {}, "r", 1)
    assert rows(path, "SELECT * FROM edged_effects") == before


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT load_extension('/tmp/x.so')",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('/tmp/x', 'y')",
        "SELECT edit('x')",
        "SELECT * FROM pragma_journal_mode",
        "SELECT * FROM pragma_wal_checkpoint",
    ],
)
async def test_functions_that_reach_further_are_not_there(database: SqlDatabase, statement: str) -> None:
    """Files, extensions, settings."""
    with pytest.raises(ToolFailed):
        await database.read(tool(statement), {})


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT length(randomblob(1000000000))",
        "SELECT length(zeroblob(2000000000))",
        "SELECT length(printf('%.*c', 1000000000, 'x'))",
        "SELECT length(hex(zeroblob(7000000)))",
        "SELECT length(replace(hex(zeroblob(4000000)), '0', 'aaaa'))",
        "WITH RECURSIVE n(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM n) SELECT max(length(s)) FROM n",
        f"{SLOW.replace('count(*)', 'length(group_concat(hex(zeroblob(1000000))))')}",
    ],
)
async def test_value_that_would_fill_the_board_is_refused(database: SqlDatabase, statement: str) -> None:
    """And the next call works. What it took meanwhile is a few values at most."""
    with pytest.raises(ToolFailed, match=r"too big|longer than"):
        await database.read(tool(statement), {})
    assert await database.read(tool("SELECT 1 AS one"), {}) == {"rows": [{"one": 1}], "truncated": False}


async def test_pattern_that_takes_for_ever_is_refused(database: SqlDatabase) -> None:
    """Of LIKE and GLOB time grows with the product of pattern and text."""
    with pytest.raises(ToolFailed, match="pattern too complex"):
        await database.read(
            tool("SELECT :text LIKE :pattern", "text", "pattern"), {"text": "a" * 5000, "pattern": "%a" * 2000}
        )


INJECTIONS = (
    "'; DROP TABLE t; --",
    "x' OR '1'='1",
    '" OR ""="',
    "1); DELETE FROM t; --",
    "\\'; ATTACH 'x' AS y; --",
    "/* */ UNION SELECT sql FROM sqlite_schema",
    ":a",
    "?1",
    "a\x00'; DROP TABLE t",
    "\u02bc; DROP TABLE t",
)


@pytest.mark.parametrize("text", INJECTIONS)
async def test_argument_is_never_part_of_the_statement(database: SqlDatabase, path: Path, text: str) -> None:
    """Whatever is in it is a value: written and found as it is."""
    await database.write(INSERT, {"a": text}, "r1", 0)
    found = await database.read(tool("SELECT a FROM t WHERE a = :a", "a"), {"a": text})
    assert found["rows"] == [{"a": text}]
    assert rows(path, "SELECT count(*) FROM t") == [(1,)]


async def test_view_of_a_strange_file_cannot_do_what_a_statement_may_not(path: Path) -> None:
    """A schema is as little trusted as a statement."""
    run(path, "CREATE VIEW evil AS SELECT load_extension('/tmp/x.so') AS x;")
    database = SqlDatabase("plant", Database(path=str(path), mode="ro"))
    with pytest.raises(ToolFailed):
        await database.read(tool("SELECT * FROM evil"), {})
    await database.stop()


async def test_write_tool_on_a_read_only_database_is_refused(path: Path) -> None:
    """mode = "ro" holds whatever the SQL says."""
    database = SqlDatabase("plant", Database(path=str(path), mode="ro"))
    with pytest.raises(ToolFailed, match="read-only"):
        await database.write(INSERT, {"a": 1}, "r", 0)
    await database.stop()
    assert rows(path, "SELECT count(*) FROM sqlite_schema WHERE name = 'edged_effects'") == [(0,)]


async def test_read_of_many_rows_stops_at_the_limit_and_says_so(database: SqlDatabase) -> None:
    """Exactly the limit is not truncated; an endless statement is read as far as needed."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    whole = await database.read(tool(f"{endless} LIMIT {rows_of.MAX_ROWS}"), {})
    assert (len(whole["rows"]), whole["truncated"]) == (rows_of.MAX_ROWS, False)
    cut = await database.read(tool(endless), {})
    assert (len(cut["rows"]), cut["truncated"]) == (rows_of.MAX_ROWS, True)


async def test_read_of_large_rows_stops_at_the_size_limit(database: SqlDatabase) -> None:
    """A model's context is small."""
    found = await database.read(tool("WITH n(i) AS (VALUES (1), (2), (3)) SELECT hex(zeroblob(20000)) FROM n"), {})
    assert (len(found["rows"]), found["truncated"]) == (1, True)


async def test_slow_read_is_ended_at_its_time_limit_and_the_next_one_works(database: SqlDatabase) -> None:
    """One bad statement does not take the database away."""
    started = time.monotonic()
    with pytest.raises(ToolFailed, match=r"longer than 0\.1 s"):
        await database.read(tool(SLOW, timeout_s=0.1), {})
    assert time.monotonic() - started < 3
    assert (await database.read(tool("SELECT 1 AS x"), {}))["rows"] == [{"x": 1}]


async def test_slow_write_is_ended_at_its_time_limit_without_a_trace(database: SqlDatabase, path: Path) -> None:
    """Neither rows nor an effect stay, and the step can be done again."""
    with pytest.raises(ToolFailed, match=r"longer than 0\.1 s"):
        await database.write(writing(f"INSERT INTO t {SLOW.replace('count(*)', 'i, i')}", timeout_s=0.1), {}, "r", 0)
    assert rows(path, "SELECT count(*) FROM t") == [(0,)]
    assert await database.write(INSERT, {"a": 1}, "r", 0) == {"changes": 1, "rows": []}


async def test_write_is_done_once_for_a_step_however_often_it_is_asked(database: SqlDatabase, path: Path) -> None:
    """The stored result is given again, byte for byte; another step or request is another write."""
    returning = writing("INSERT INTO strict_one(x) VALUES (:x) RETURNING id, x", "x")
    first = await database.write(returning, {"x": "a"}, "r", 0)
    assert first == {"changes": 1, "rows": [{"id": 1, "x": "a"}]}
    assert await database.write(returning, {"x": "other"}, "r", 0) == first
    await database.write(returning, {"x": "b"}, "r", 1)
    await database.write(returning, {"x": "c"}, "s", 0)
    assert rows(path, "SELECT x FROM strict_one") == [("a",), ("b",), ("c",)]


async def test_write_after_a_crash_behind_its_commit_is_not_done_again(
    database: SqlDatabase, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The effect is known from the tool's own database, by whoever opens it next."""

    def die() -> None:
        raise RuntimeError("died")

    monkeypatch.setattr(fault_points, "_armed", {"tool.effect": die})
    with pytest.raises(RuntimeError, match="died"):
        await database.write(INSERT, {"a": 1}, "r", 0)
    monkeypatch.setattr(fault_points, "_armed", {})
    later = SqlDatabase("plant", Database(path=str(path), mode="rw"))
    assert await later.write(INSERT, {"a": 1}, "r", 0) == {"changes": 1, "rows": []}
    await later.stop()
    assert rows(path, "SELECT a FROM t") == [(1,)]


@pytest.mark.parametrize(
    "days", [(0, -60, -60), (0, -60, 0), (0, 0, 60), (-60, 0, 60)], ids=["lost", "lost-and-learnt", "learnt", "drawer"]
)
async def test_step_stays_known_when_the_clock_jumps_before_it_is_resumed(
    path: Path, monkeypatch: pytest.MonkeyPatch, days: tuple[int, int, int]
) -> None:
    """A board without a battery learns the date late: the row of a write just made must not look old. days: of an old
    effect, of the one to be resumed, of the start after the crash."""
    today = clock.wall()
    moments = [today + day * 86400 for day in days]
    for rid, now in zip(("old", "new", "new"), moments, strict=True):
        monkeypatch.setattr(clock, "wall", lambda now=now: now)
        database = SqlDatabase("plant", Database(path=str(path), mode="rw"))
        await database.write(INSERT, {"a": rid}, rid, 0)
        await database.stop()
    assert rows(path, "SELECT a FROM t") == [("old",), ("new",)]


async def test_what_was_intended_is_found_beside_its_effect(path: Path) -> None:
    """Of one request, in order; also in a table that an earlier edged made, and not of what was done without one."""
    old = "CREATE TABLE edged_effects(rid TEXT, step INTEGER, at REAL, result TEXT, PRIMARY KEY(rid, step))"
    with contextlib.closing(apsw.Connection(str(path))) as c:
        c.execute(f"{old} WITHOUT ROWID; INSERT INTO edged_effects VALUES ('r', 0, 0, '{{}}')").fetchall()
    database = SqlDatabase("plant", Database(path=str(path), mode="rw"))
    assert await database.recall("r") == []
    for step, rid in ((2, "r"), (1, "r"), (0, "other")):
        await database.write(INSERT, {"a": rid}, rid, step, f"intent {rid} {step}")
    await database.write(INSERT, {"a": "by hand"}, "r", 3)
    result = {"changes": 1, "rows": []}
    assert await database.recall("r") == [Done(1, "intent r 1", result), Done(2, "intent r 2", result)]
    assert await database.recall("nobody") == []
    with contextlib.closing(apsw.Connection(str(path))) as c:  # what was done is not known then
        c.execute("ALTER TABLE edged_effects RENAME COLUMN result TO outcome").fetchall()
    with pytest.raises(ToolFailed, match="no such column"):
        await database.recall("r")
    await database.stop()
    missing = SqlDatabase("gone", Database(path=str(path.with_name("gone.db")), mode="rw"))
    assert await missing.recall("r") == []
    await missing.stop()


async def test_old_effects_are_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table does not grow for ever."""
    wall = clock.wall()
    for rid, now in (("old", wall - sql.EFFECTS_KEPT_S - 60), ("new", wall), ("newest", wall)):
        monkeypatch.setattr(clock, "wall", lambda now=now: now)
        database = SqlDatabase("plant", Database(path=str(path), mode="rw"))
        await database.write(INSERT, {"a": rid}, rid, 0)
        await database.stop()
    assert rows(path, "SELECT rid FROM edged_effects ORDER BY rid") == [("new",), ("newest",)]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("INSERT INTO strict_one(x) VALUES ('b'), (NULL)", "NOT NULL"),
        ("INSERT INTO strict_one(x) VALUES ('b'), ('a')", "UNIQUE"),
        ("INSERT INTO nowhere VALUES (1)", "no such table"),
        ("INSERT INTO strict_one(x) SELECT 'b' UNION ALL SELECT abs(-9223372036854775808)", "overflow"),
        ("INSERT INTO strict_one(x) VALUES ('b') RETURNING CAST(x'ff' AS TEXT)", "utf-8"),
    ],
)
async def test_failed_write_leaves_no_trace(database: SqlDatabase, path: Path, statement: str, reason: str) -> None:
    """Not its first row, not an effect; SQLite's reason is told."""
    await database.write(writing("INSERT INTO strict_one(x) VALUES ('a')"), {}, "r", 0)
    with pytest.raises(ToolFailed, match=reason):
        await database.write(writing(statement), {}, "r", 1)
    assert rows(path, "SELECT x FROM strict_one") == [("a",)]
    assert rows(path, "SELECT rid, step FROM edged_effects") == [("r", 0)]


@pytest.mark.parametrize(
    ("statement", "result"),
    [
        ("INSERT INTO t VALUES (1, 2)", {"changes": 1, "rows": []}),
        ("INSERT INTO t VALUES (1, 2), (3, 4)", {"changes": 2, "rows": []}),
        ("UPDATE t SET a = 5 WHERE a = 77", {"changes": 0, "rows": []}),
        ("INSERT INTO v VALUES (6)", {"changes": 2, "rows": []}),
        ("INSERT INTO words VALUES ('more')", {"changes": 1, "rows": []}),
        ("INSERT INTO strict_one(x) VALUES ('a') ON CONFLICT DO NOTHING", {"changes": 1, "rows": []}),
        ("SELECT 1 AS x", {"changes": 0, "rows": [{"x": 1}]}),
    ],
    ids=["row-with-trigger", "two-rows", "none", "view", "full-text", "upsert", "nothing"],
)
async def test_write_tells_how_many_rows_it_changed(
    database: SqlDatabase, statement: str, result: dict[str, Any]
) -> None:
    """As sqlite3_changes counts: without what triggers did, unless they are all there is."""
    await database.write(writing("INSERT INTO log VALUES (1), (2), (3)"), {}, "r", 0)
    assert await database.write(writing(statement), {}, "r", 1) == result


async def test_read_of_a_full_text_index_works(database: SqlDatabase) -> None:
    """FTS5 asks for data_version, which only reads."""
    assert (await database.read(tool("SELECT body FROM words WHERE words MATCH 'hello'"), {}))["rows"]


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
print("free", flush=True)
sys.stdin.readline()
"""


class Holder:
    """Another process that holds the database locked until it is told to let go."""

    def __init__(self, path: Path) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.heard("locked")

    def heard(self, word: str) -> None:
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == f"{word}\n"

    def let_go(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        self.heard("free")

    def end(self) -> None:
        self._child.communicate(timeout=10)


async def test_locked_database_fails_a_tool_at_its_time_limit_and_works_afterwards(
    database: SqlDatabase, path: Path
) -> None:
    """The first use too, which makes edged's own table; nothing of it happens later."""
    holder = Holder(path)
    try:
        started = time.monotonic()
        with pytest.raises(ToolFailed, match="holds the database locked"):
            await database.write(writing("INSERT INTO t VALUES (1, 1)", timeout_s=0.1), {}, "r", 0)
        with pytest.raises(ToolFailed, match="holds the database locked"):
            await database.read(tool("SELECT * FROM t", timeout_s=0.1), {})
        assert time.monotonic() - started < 3
        holder.let_go()
        assert (await database.read(tool("SELECT a FROM t"), {}))["rows"] == []
        assert await database.write(INSERT, {"a": 2}, "r", 0) == {"changes": 1, "rows": []}
    finally:
        holder.end()
    assert rows(path, "SELECT a FROM t") == [(2,)]


async def test_tool_waits_for_a_lock_within_its_time(database: SqlDatabase, path: Path) -> None:
    """Another application may hold the file for a moment; the event loop goes on meanwhile."""
    holder = Holder(path)
    try:
        write = asyncio.create_task(database.write(INSERT, {"a": 1}, "r", 0))
        await asyncio.sleep(0)
        await asyncio.to_thread(holder.let_go)
        assert await write == {"changes": 1, "rows": []}
    finally:
        holder.end()


async def test_wal_database_of_another_library_is_read_and_written_while_it_is_open(
    database: SqlDatabase, path: Path
) -> None:
    """Each sees what the other committed."""
    run(path, "PRAGMA journal_mode = WAL")
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("INSERT INTO t VALUES ('theirs', 0)")
        assert (await database.read(tool("SELECT a FROM t"), {}))["rows"] == [{"a": "theirs"}]
        await database.write(INSERT, {"a": "ours"}, "r", 0)
        assert other.execute("SELECT a FROM t").fetchall() == [("theirs",), ("ours",)]
        other.execute("BEGIN")
        other.execute("SELECT * FROM t").fetchall()  # a reader of theirs does not block us
        await database.write(INSERT, {"a": "again"}, "r", 1)
        other.execute("COMMIT")
        assert other.execute("SELECT count(*) FROM t").fetchone() == (3,)
    finally:
        other.close()


async def test_truncated_read_does_not_hold_a_lock(database: SqlDatabase, path: Path) -> None:
    """A statement that was not read to its end must not keep others from writing."""
    run(
        path,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 999) INSERT INTO log SELECT i FROM n",
    )
    assert (await database.read(tool("SELECT * FROM log"), {}))["truncated"]
    other = sqlite3.connect(path, timeout=0)
    try:
        other.execute("DELETE FROM log")
        other.commit()
    finally:
        other.close()


CHECKS: list[tuple[SqlTool, str]] = [
    (tool("SELECT * FROM nowhere"), "no such table: nowhere"),
    (tool("SELECT level FROM t"), "no such column: level"),
    (tool("SELEC 1"), "syntax error"),
    (tool("SELECT :tank, :pool", "tank"), "binds pool, which is no parameter"),
    (tool("SELECT ?", "tank"), "no name"),
    (tool("SELECT 1; SELECT 2"), "one statement, not several"),
    (tool("SELECT 1; SELECT :x FROM t"), "one statement, not several"),
    (tool(""), "empty"),
    (tool(" -- nothing\n"), "empty"),
    (tool("DELETE FROM t"), "may not"),
    (tool("PRAGMA user_version"), "may not"),
    (writing("DROP TABLE t"), "may not"),
    (writing("DELETE FROM t; DELETE FROM log"), "one statement, not several"),
]


@pytest.mark.parametrize(("wrong", "reason"), CHECKS, ids=[t.sql for t, _ in CHECKS])
async def test_check_says_what_is_wrong_with_a_statement(database: SqlDatabase, wrong: SqlTool, reason: str) -> None:
    """Before anybody calls it; always as a ToolFailed, which `edged check` prints."""
    with pytest.raises(ToolFailed, match=reason):
        await database.check(wrong)


@pytest.mark.parametrize(
    "right",
    [
        tool("SELECT :tank", "tank"),
        tool("SELECT @tank, $tank", "tank", "unused"),
        tool("SELECT 1;\n"),
        tool("-- first\nSELECT 1 -- last"),
        tool("SELECT 1; -- and a comment; with another semicolon"),
        tool("/* SELECT 1; */ SELECT ';' ; /* end */"),
        INSERT,
        writing("INSERT INTO strict_one(x) VALUES (:x) ON CONFLICT(x) DO UPDATE SET x = :x RETURNING id", "x"),
        writing("DELETE FROM t"),
    ],
    ids=lambda t: t.sql,
)
async def test_check_of_a_right_statement_runs_nothing(database: SqlDatabase, path: Path, right: SqlTool) -> None:
    """Comments are no second statement; what would change rows changes none."""
    run(path, "INSERT INTO t VALUES (1, 1)")
    before = path.read_bytes()
    await database.check(right)
    assert path.read_bytes() == before


async def test_statement_with_an_undeclared_parameter_fails_as_a_tool(database: SqlDatabase) -> None:
    """A daemon that was started in spite of the warning does not treat it as a bug of its own."""
    with pytest.raises(ToolFailed, match="binds x, which is no parameter"):
        await database.read(tool("SELECT :x"), {})
    with pytest.raises(ToolFailed, match="binds x, which is no parameter"):
        await database.write(writing("INSERT INTO t VALUES (:x, 1)"), {}, "r", 0)


async def test_missing_and_foreign_files_fail_as_tools_and_work_once_they_are_there(tmp_path: Path) -> None:
    """The application that makes the file may start after edged."""
    path = tmp_path / "late.db"
    database = SqlDatabase("late", Database(path=str(path), mode="rw"))
    for attempt in (database.check(tool("SELECT 1")), database.read(tool("SELECT 1"), {})):
        with pytest.raises(ToolFailed, match=r"no file .*late\.db"):
            await attempt
    assert not path.exists()
    path.write_text("this is no database, but it is long enough to be looked at " * 20)
    with pytest.raises(ToolFailed, match="not a database"):
        await database.read(tool("SELECT 1"), {})
    path.unlink()
    run(path, SETUP)
    assert (await database.read(tool("SELECT 1 AS x"), {}))["rows"] == [{"x": 1}]
    await database.stop()


async def test_database_that_is_put_in_place_of_another_is_used(
    database: SqlDatabase, path: Path, tmp_path: Path
) -> None:
    """A backup that was restored while edged ran: what is written to the old file nobody would see."""
    await database.write(INSERT, {"a": 1}, "r", 0)
    backup = tmp_path / "backup.db"
    run(backup, SETUP)
    backup.rename(path)
    await database.write(INSERT, {"a": 2}, "r", 1)
    assert rows(path, "SELECT a FROM t") == [(2,)]
    assert (await database.read(tool("SELECT a FROM t"), {}))["rows"] == [{"a": 2}]


async def test_damaged_database_fails_its_tools_and_is_left_as_it_is(database: SqlDatabase, path: Path) -> None:
    """It is the user's: nothing is renamed or mended, and what is put in its place works."""
    run(
        path,
        "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 50) INSERT INTO t SELECT i, zeroblob(3000) FROM n",
    )
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    for attempt in (
        database.read(tool("SELECT a, b FROM t"), {}),
        database.write(writing("UPDATE t SET b = 1"), {}, "r", 0),
    ):
        with pytest.raises(ToolFailed, match="malformed"):
            await attempt
    assert [name.name for name in path.parent.iterdir() if "plant" in name.name and name != path] == []
    path.unlink()
    run(path, SETUP)
    assert (await database.write(INSERT, {"a": 1}, "r", 0))["changes"] == 1


@pytest.mark.parametrize("value", [10**30, -(2**63) - 1, 10**400, "\ud800"])
async def test_argument_sqlite_cannot_hold_is_named(database: SqlDatabase, path: Path, value: object) -> None:
    """And leaves nothing."""
    with pytest.raises(ToolFailed, match=r"argument 'a': .*(SQLite's integers|half a surrogate pair)"):
        await database.write(INSERT, {"a": value}, "r", 0)
    assert rows(path, "SELECT * FROM t") == []


async def test_cancelled_write_is_finished_and_known(database: SqlDatabase, path: Path) -> None:
    """A request that is cancelled does not tear a write in two."""
    holder = Holder(path)
    try:
        write = asyncio.create_task(database.write(INSERT, {"a": 1}, "r", 0))
        await asyncio.sleep(0)
        write.cancel()
        await asyncio.wait([write])
        assert write.cancelled()
        await asyncio.to_thread(holder.let_go)
        assert await database.write(INSERT, {"a": 2}, "r", 0) == {"changes": 1, "rows": []}
        assert rows(path, "SELECT a FROM t") == [(1,)]
    finally:
        holder.end()


async def test_bug_in_the_thread_is_raised_to_the_caller_and_does_not_end_it(
    database: SqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or every later call would hang."""
    with monkeypatch.context() as broken:
        broken.setattr(rows_of, "as_row", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await database.read(tool("SELECT 1"), {})
    assert (await database.read(tool("SELECT 1 AS x"), {}))["rows"]


async def test_stop_finishes_what_is_queued_and_closes_the_file(path: Path) -> None:
    """Nothing of a WAL is left behind."""
    run(path, "PRAGMA journal_mode = WAL")
    database = SqlDatabase("plant", Database(path=str(path), mode="rw"))
    writes = [asyncio.create_task(database.write(INSERT, {"a": i}, "r", i)) for i in range(5)]
    await database.read(tool("SELECT 1"), {})
    await database.stop()
    await asyncio.gather(*writes)
    assert [p.name for p in path.parent.iterdir()] == ["plant.db"]
    assert rows(path, "SELECT count(*) FROM t") == [(5,)]


def test_sqlite_is_new_enough_for_what_is_relied_on() -> None:
    """RETURNING came with 3.35."""
    assert apsw.sqlite_lib_version().split(".") >= ["3", "35"]
