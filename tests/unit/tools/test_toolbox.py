"""Tools by name: which are writes, what publishing sends, what a resumed step does."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from edged.config import Config, Database, Node, PublishTool, SqlTool, Tool
from edged.config.tools import TABLES
from edged.errors import BadRequest, ToolFailed
from edged.tools import toolbox as toolbox_module
from edged.tools.kind import ToolKind
from edged.tools.sql.kind import SqlKind
from edged.tools.toolbox import KINDS, Toolbox
from edged.types import ToolCall
from tests.support.lamps import DESK, Broker, lamp, one


def of(tools: dict[str, Tool], databases: dict[str, Database]) -> Toolbox:
    return Toolbox(Config(node=Node(), tools=tools, databases=databases), Broker())


@pytest.mark.parametrize(("on_uncertain", "sent"), [("retry", 1), ("report", 0)])
async def test_resumed_publish_does_what_on_uncertain_says(on_uncertain: str, sent: int) -> None:
    """retry sends again, report says that it may have happened."""
    broker = Broker()
    toolbox = one(lamp(on_uncertain=on_uncertain), broker)
    if sent:
        assert (await toolbox.resume(DESK, "r", 0))["published"]
    else:
        with pytest.raises(ToolFailed, match="may have happened"):
            await toolbox.resume(DESK, "r", 0)
    assert len(broker.published) == sent


async def test_resumed_step_of_a_tool_that_is_gone_fails_as_a_tool() -> None:
    """The configuration may have changed between crash and start."""
    with pytest.raises(ToolFailed, match="not configured any more"):
        await one(lamp(), Broker()).resume(ToolCall("old", {}), "r", 0)


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    """A database with one table."""
    path = tmp_path / "plant.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t(a)")
    connection.close()
    return path


def with_sql(path: Path) -> Toolbox:
    """A toolbox of every kind, right and wrong."""
    tools: dict[str, Tool] = {
        "get": SqlTool(description="d", database="plant", sql="SELECT a FROM t"),
        "put": SqlTool(description="d", database="plant", sql="INSERT INTO t VALUES (:a)", effect="write",
                       parameters={"a": {}}),
        "typo": SqlTool(description="d", database="plant", sql="SELECT b FROM t"),
        "unbound": SqlTool(description="d", database="plant", sql="SELECT :b"),
        "lost": SqlTool(description="d", database="gone", sql="SELECT 1"),
        "lamp": lamp(),
    }  # fmt: skip
    databases = {"plant": Database(path=str(path), mode="rw"), "gone": Database(path=str(path) + ".not")}
    return of(tools, databases)


async def test_toolbox_knows_which_tools_are_writes(plant: Path) -> None:
    """Their intent must be durable before they run."""
    toolbox = with_sql(plant)
    assert {n: toolbox.is_write(n) for n in ("get", "put", "lamp")} == {"get": False, "put": True, "lamp": True}


async def test_sql_write_happens_once_for_a_step_also_when_it_is_resumed(plant: Path) -> None:
    """Called, called again, resumed: one row."""
    toolbox = with_sql(plant)
    call = ToolCall("put", {"a": 7})
    results = [await toolbox.call(call, "r", 0), await toolbox.call(call, "r", 0), await toolbox.resume(call, "r", 0)]
    assert results == [{"changes": 1, "rows": []}] * 3
    assert await toolbox.call(ToolCall("get", {}), "r", 1) == {"rows": [{"a": 7}], "truncated": False}
    assert await toolbox.resume(ToolCall("get", {}), "r", 1) == {"rows": [{"a": 7}], "truncated": False}
    await toolbox.stop()


async def test_optional_parameter_of_an_sql_tool_is_null_where_it_is_left_out(plant: Path) -> None:
    """In a write and in a read."""
    parameters: dict[str, dict[str, Any]] = {"a": {"type": "integer", "optional": True}}
    put = SqlTool(description="d", database="plant", sql="INSERT INTO t VALUES (:a)", effect="write",
                  parameters=parameters)  # fmt: skip
    find = SqlTool(description="d", database="plant", sql="SELECT count(*) AS n FROM t WHERE :a IS NULL OR a = :a",
                   parameters=parameters)  # fmt: skip
    toolbox = of({"put": put, "find": find}, {"plant": Database(path=str(plant), mode="rw")})
    given: list[dict[str, Any]] = [{}, {"a": None}, {"a": 7}]
    for step, arguments in enumerate(given):
        await toolbox.call(ToolCall("put", arguments), "r", step)
    assert await toolbox.call_by_hand("find", {}, "x") == {"rows": [{"n": 3}], "truncated": False}
    assert await toolbox.call_by_hand("find", {"a": None}, "x") == {"rows": [{"n": 3}], "truncated": False}
    assert await toolbox.call_by_hand("find", {"a": 7}, "x") == {"rows": [{"n": 1}], "truncated": False}
    with pytest.raises(BadRequest, match="'x' is not of type 'integer'"):
        await toolbox.call_by_hand("find", {"a": "x"}, "x")
    await toolbox.stop()


# -- calls by hand under a name ------------------------------------------------------------------------------------

PUT: dict[str, dict[str, Any]] = {"a": {"type": ["string", "integer"]}, "b": {"optional": True}}


def two_databases(plant: Path, tmp_path: Path) -> Toolbox:
    """Writes on both, and a read."""
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t(a)")
    tools: dict[str, Tool] = {
        "put": SqlTool(description="d", database="plant", sql="INSERT INTO t VALUES (:a)", effect="write",
                       parameters=PUT),
        "drop": SqlTool(description="d", database="plant", sql="DELETE FROM t", effect="write"),
        "there": SqlTool(description="d", database="other", sql="INSERT INTO t VALUES (:a)", effect="write",
                         parameters=PUT),
        "get": SqlTool(description="d", database="plant", sql="SELECT a FROM t"),
    }  # fmt: skip
    other = Database(path=str(tmp_path / "other.db"), mode="rw")
    return of(tools, {"plant": Database(path=str(plant), mode="rw"), "other": other})


async def test_same_call_under_the_same_name_is_done_once(plant: Path, tmp_path: Path) -> None:
    """The stored result is the answer; what is left out and what is null are the same."""
    toolbox = two_databases(plant, tmp_path)
    for arguments in ({"a": "x"}, {"a": "x", "b": None}, {"a": "x"}):
        assert await toolbox.call_by_hand("put", arguments, "hand", named=True) == {"changes": 1, "rows": []}
    assert await toolbox.call_by_hand("get", {}, "r") == {"rows": [{"a": "x"}], "truncated": False}
    await toolbox.stop()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("put", {"a": "y"}),
        ("put", {"a": 1}),
        ("put", {"a": "1", "b": "x"}),
        ("drop", {}),
        ("there", {"a": "1"}),
        ("get", {}),
    ],
    ids=["arguments", "type", "optional", "tool", "database", "read"],
)
async def test_other_call_under_the_same_name_is_refused_and_not_done(
    name: str, arguments: dict[str, Any], plant: Path, tmp_path: Path
) -> None:
    """It would be told as done, and was not."""
    toolbox = two_databases(plant, tmp_path)
    await toolbox.call_by_hand("put", {"a": "1"}, "hand", named=True)
    with pytest.raises(
        BadRequest, match=r'^id: another call was made before .*: put with \{"a":"1"\}; take another id'
    ):
        await toolbox.call_by_hand(name, arguments, "hand", named=True)
    await toolbox.stop()
    found = [sqlite3.connect(path).execute("SELECT a FROM t").fetchall() for path in (plant, tmp_path / "other.db")]
    assert found == [[("1",)], []]


async def test_two_calls_at_once_under_one_name_are_one(plant: Path, tmp_path: Path) -> None:
    """The database decides, in the transaction of the effect."""
    toolbox = two_databases(plant, tmp_path)
    calls = (toolbox.call_by_hand("put", {"a": value}, "hand", named=True) for value in ("x", "y", "x"))
    results = await asyncio.gather(*calls, return_exceptions=True)
    await toolbox.stop()
    assert [type(result) for result in results] == [dict, BadRequest, dict]
    assert sqlite3.connect(plant).execute("SELECT a FROM t").fetchall() == [("x",)]


@pytest.mark.parametrize("table", ["with intents", "without"])
async def test_effect_by_hand_of_an_earlier_release_is_known_by_its_name_alone(
    table: str, plant: Path, tmp_path: Path
) -> None:
    """Those kept no intent of a call by hand: the stored result is all there is."""
    connection = sqlite3.connect(plant)
    columns = "rid TEXT NOT NULL, step INTEGER NOT NULL, at REAL NOT NULL, result TEXT NOT NULL"
    columns += ", intent TEXT" if table == "with intents" else ""
    connection.execute(f"CREATE TABLE edged_effects({columns}, PRIMARY KEY(rid, step)) WITHOUT ROWID")
    connection.execute("INSERT INTO edged_effects(rid, step, at, result) VALUES ('hand', 0, 1.0, '{\"changes\":9}')")
    connection.commit()
    connection.close()
    toolbox = two_databases(plant, tmp_path)
    assert await toolbox.call_by_hand("put", {"a": "x"}, "hand", named=True) == {"changes": 9}
    assert await toolbox.call_by_hand("put", {"a": "x"}, "new", named=True) == {"changes": 1, "rows": []}
    await toolbox.stop()


async def test_database_that_cannot_be_read_holds_up_no_other_one(plant: Path, tmp_path: Path) -> None:
    """Its own transaction tells whether a call was made."""
    toolbox = two_databases(plant, tmp_path)
    (tmp_path / "other.db").write_bytes(b"no database" * 100)
    assert (await toolbox.call_by_hand("put", {"a": "x"}, "hand", named=True))["changes"] == 1
    assert (await toolbox.call_by_hand("put", {"a": "x"}, "hand", named=True))["changes"] == 1
    with pytest.raises(BadRequest, match="another call"):
        await toolbox.call_by_hand("put", {"a": "y"}, "hand", named=True)
    await toolbox.stop()
    assert sqlite3.connect(plant).execute("SELECT a FROM t").fetchall() == [("x",)]


# -- the list ------------------------------------------------------------------------------------------------------


class Growing(ToolKind[PublishTool]):
    """Gets tools while it runs, as from a server that is found later."""

    table = PublishTool

    def now_has(self, *names: str) -> None:
        """Its tools from now on."""
        self.tools = {name: lamp() for name in names}
        self._context.changed()

    async def call(self, name: str, arguments: dict[str, Any], rid: str, step: int, intent: str) -> str:
        """See ToolKind."""
        return f"{name} of {type(self).__name__}"


async def test_list_of_tools_may_change_while_it_runs(plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views show the tools of now, listeners hear of it, and the configuration's own come first whatever is found."""
    monkeypatch.setattr(toolbox_module, "KINDS", [Growing, SqlKind])
    get = SqlTool(description="d", database="plant", sql="SELECT a FROM t")
    toolbox = of({"get": get}, {"plant": Database(path=str(plant))})
    growing = toolbox.kinds[0]
    assert isinstance(growing, Growing)
    view, heard = toolbox.tools, []
    end = toolbox.subscribe(lambda: heard.append(list(view)))
    growing.now_has("b", "get", "a")
    assert list(view) == ["get", "b", "a"]
    assert await toolbox.call(ToolCall("a", {"lamp": "desk"}), "r", 0) == "a of Growing"
    assert await toolbox.call(ToolCall("get", {}), "r", 1) == {"rows": [], "truncated": False}
    growing.now_has("a")
    with pytest.raises(ToolFailed, match="'b' is not there any more"):
        await toolbox.call(ToolCall("b", {}), "r", 2)
    with pytest.raises(BadRequest, match="no tool 'b'; configured are get, a"):
        await toolbox.call_by_hand("b", {}, "r")
    assert not toolbox.is_write("b")
    end()
    growing.now_has()
    assert heard == [["get", "b", "a"], ["get", "a"]]
    assert list(view) == ["get"]
    await toolbox.stop()


def test_every_kind_has_its_table_and_every_table_its_kind() -> None:
    """Or a configuration would load whose tools nobody can call."""
    assert [kind.table for kind in KINDS] == TABLES
    assert len({table.key for table in TABLES}) == len(TABLES)


async def test_check_names_every_sql_tool_that_cannot_work(plant: Path) -> None:
    """All of them, each with its reason; the others do not appear."""
    toolbox = with_sql(plant)
    problems = {problem.tool: problem.message for problem in await toolbox.check()}
    await toolbox.stop()
    assert set(problems) == {"typo", "unbound", "lost"}
    assert "no such column: b" in problems["typo"]
    assert "binds b" in problems["unbound"]
    assert "there is no file" in problems["lost"]
