"""Tools by name: which are writes, what publishing sends, what a resumed step does."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from edged.config import Config, Database, Node, Publish, PublishTool, SqlTool, Tool
from edged.errors import NoLink, ToolFailed
from edged.tools.toolbox import Toolbox
from edged.types import ToolCall

LAMP: dict[str, Any] = {"lamp": {"enum": ["desk", "door"]}, "state": {"enum": ["ON", "OFF"], "default": "ON"}}


def lamp(**more: Any) -> PublishTool:
    """The contract's lamp."""
    publish = Publish(topic="zigbee2mqtt/{lamp}/set", payload='{"state":"{state}"}', qos=2, retain=True)
    return PublishTool(description="Switch a lamp.", publish=publish, parameters=LAMP, **more)


class Broker:
    """Keeps what is published."""

    def __init__(self, fault: Exception | None = None, *, silent: bool = False) -> None:
        self.published: list[tuple[str, bytes, int, bool]] = []
        self._fault, self._silent = fault, silent

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        self.published.append((topic, payload, qos, retain))
        if self._silent:
            await asyncio.Event().wait()
        if self._fault:
            raise self._fault


def one(tool: PublishTool, broker: Broker | None) -> Toolbox:
    return Toolbox(Config(node=Node(), tools={"lamp": tool}), broker)


DESK = ToolCall("lamp", {"lamp": "desk"})


async def test_publish_tool_fills_topic_and_payload_and_tells_where_it_went() -> None:
    """Defaults are filled in; qos and retain are the configuration's."""
    broker = Broker()
    result = await one(lamp(), broker).call(DESK, "r", 0)
    assert result == {"topic": "zigbee2mqtt/desk/set", "published": True}
    assert broker.published == [("zigbee2mqtt/desk/set", b'{"state":"ON"}', 2, True)]


@pytest.mark.parametrize(
    ("broker", "call", "error"),
    [
        (Broker(ToolFailed("refused")), DESK, "refused"),
        (Broker(silent=True), DESK, "did not confirm within 0.05 s; it may still"),
        (None, DESK, "no broker"),
    ],
    ids=["refused", "silent", "none"],
)
async def test_publish_that_does_not_arrive_fails_with_its_reason(
    broker: Broker | None, call: ToolCall, error: str
) -> None:
    """What is not confirmed is never told as done."""
    with pytest.raises(ToolFailed, match=error):
        await one(lamp(timeout_s=0.05), broker).call(call, "r", 0)


@pytest.mark.parametrize("arguments", [{"lamp": "a/b"}, {"lamp": "+"}, {}, {"lamp": "desk", "colour": "red"}])
async def test_publish_with_wrong_arguments_sends_nothing(arguments: dict[str, Any]) -> None:
    """A call by hand may have any."""
    broker = Broker()
    with pytest.raises(ToolFailed):
        await one(lamp(), broker).call(ToolCall("lamp", arguments), "r", 0)
    assert broker.published == []


async def test_publish_without_a_link_keeps_its_code() -> None:
    """no_link is retryable, tool_failed is not."""
    with pytest.raises(NoLink):
        await one(lamp(), Broker(NoLink("no broker is reachable"))).call(DESK, "r", 0)


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
    return Toolbox(Config(node=Node(), tools=tools, databases=databases), Broker())


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


async def test_check_names_every_sql_tool_that_cannot_work(plant: Path) -> None:
    """All of them, each with its reason; the others do not appear."""
    toolbox = with_sql(plant)
    problems = {problem.tool: problem.message for problem in await toolbox.check()}
    await toolbox.stop()
    assert set(problems) == {"typo", "unbound", "lost"}
    assert "no such column: b" in problems["typo"]
    assert "binds b" in problems["unbound"]
    assert "there is no file" in problems["lost"]
