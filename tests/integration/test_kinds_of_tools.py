"""A kind of tool that lies outside the package: its table, its effect and its recall, in the real daemon."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import edged
from tests.support.daemon import ROOT, SCRIPT, Daemon, Wired, entry

MEMBERS = {"EDGED_TEST_MEMBERS": str(ROOT / "tests" / "support" / "logbook.py")}
TABLE = """
[agents.keeper]
model = "small"
tools = ["log"]

[tools.log]
description = "Write a line into the log book."
append = {{ file = "{file}" }}
say = "It is written down."
on_uncertain = "{on_uncertain}"
"""


def logbook(folder: Path, *texts: str, on_uncertain: str = "retry", table: str = TABLE) -> Daemon:
    """A daemon with a log book; its model writes down what it is asked to."""
    entries = (entry(text, {"name": "log", "arguments": {"text": text}}) for text in texts)
    config = table.format(file=folder / "log", on_uncertain=on_uncertain)
    return Daemon(folder, config=config, script="".join(entries) + SCRIPT, environment=MEMBERS)


def written(folder: Path) -> list[str]:
    """The texts in the log book."""
    return [json.loads(line)["text"] for line in (folder / "log").read_text().splitlines()]


async def ask(daemon: Daemon, text: str, **more: Any) -> dict[str, Any]:
    """The reply of the keeper."""
    async with Wired(daemon.socket) as client:
        error, reply = await client.call(1, "agent.ask", {"input": text, "agent": "keeper", **more})
    assert error is None
    assert isinstance(reply, dict)
    return reply


async def test_kind_of_tool_from_outside_is_like_any_other(tmp_path: Path) -> None:
    """Listed with its schema, called by agents and by hand, counted, told in the reply."""
    async with logbook(tmp_path, "rain") as daemon:
        reply = await ask(daemon, "rain")
        assert (reply["status"], reply["output"]) == ("done", "It is written down.")
        made = {"name": "log", "arguments": {"text": "rain"}, "result": {"length": 4}, "ok": True}
        assert reply["tool_calls"] == [made]
        async with Wired(daemon.socket) as client:
            _, tools = await client.call(1, "tools.list")
        [log] = [tool for tool in tools if tool["name"] == "log"]
        assert log["effect"] == "write"
        assert log["parameters"]["required"] == ["text"]
        wrong = await edged("tools", "call", "log", "--json", "--socket", str(daemon.socket))
        assert wrong.code == 65
        assert "'text' is a required property" in wrong.json()["error"]["message"]
    assert written(tmp_path) == ["rain"]


@pytest.mark.parametrize(
    ("text", "on_uncertain"),
    [("die after sun", "retry"), ("die after sun", "report"), ("die before sun", "retry")],
    ids=["done", "done, and not to be repeated", "not done"],
)
async def test_call_that_a_crash_came_amid_is_made_once_and_told_as_done(
    text: str, on_uncertain: str, tmp_path: Path
) -> None:
    """SIGKILL right after the effect, or right before it: the tool's own ledger knows."""
    async with logbook(tmp_path, text, on_uncertain=on_uncertain) as daemon:
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"input": text, "agent": "keeper", "id": "once"}]])
            assert await daemon.ended() == -signal.SIGKILL
        assert ((tmp_path / "log").exists()) == ("after" in text)
        await daemon.start()
        reply = await ask(daemon, text, id="once")
        assert (reply["status"], reply["output"]) == ("done", "It is written down.")
        made = {"name": "log", "arguments": {"text": text}, "result": {"length": len(text)}, "ok": True}
        assert reply["tool_calls"] == [made]
    assert written(tmp_path) == [text]


async def test_call_that_may_have_been_made_is_reported_where_it_must_not_be_repeated(tmp_path: Path) -> None:
    """What the kind does not recall is left to `on_uncertain`."""
    async with logbook(tmp_path, "die before sun", on_uncertain="report") as daemon:
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"input": "die before sun", "agent": "keeper", "id": "once"}]])
            assert await daemon.ended() == -signal.SIGKILL
        await daemon.start()
        reply = await ask(daemon, "die before sun", id="once")
    assert not reply["tool_calls"][0]["ok"]
    assert "may have happened" in reply["tool_calls"][0]["result"]["error"]


async def test_name_of_a_call_by_hand_is_known_to_every_kind(tmp_path: Path) -> None:
    """The same call is done once; another one under its name, of whatever kind, is refused."""
    async with logbook(tmp_path) as daemon:

        async def call(name: str, *pairs: str) -> Any:
            return await edged("tools", "call", name, *pairs, "--id", "mine", "--json", "--socket", str(daemon.socket))

        outcomes = [(await call("log", "text=wind")).json()["result"] for _ in range(2)]
        assert outcomes == [{"length": 4}] * 2
        for refused in (await call("log", "text=calm"), await call("set_valve", "valve=north", "position=open")):
            assert refused.code == 65
            assert refused.json()["error"]["code"] == "bad_request"
            assert 'log with {"text":"wind"}; take another id' in refused.json()["error"]["message"]
        assert daemon.rows("valve_commands") == []
    assert written(tmp_path) == ["wind"]


async def test_tools_that_a_kind_finds_while_it_runs_are_there_at_once(tmp_path: Path) -> None:
    """In the list, to be called, and told as an event."""
    async with logbook(tmp_path) as daemon, Wired(daemon.socket) as client:
        await client.call(1, "events.subscribe")
        _, before = await client.call(2, "tools.list")
        assert "log_count" not in [tool["name"] for tool in before]
        await client.call(3, "tools.call", {"name": "log", "arguments": {"text": "x"}})
        _, after = await client.call(4, "tools.list")
        assert [tool["name"] for tool in after] == [*(tool["name"] for tool in before), "log_count"]
        assert (await client.call(5, "tools.call", {"name": "log_count"}))[1]["result"] == {"lines": 1}
        events = [params[0] for _, _, params in client.notifications]
        assert events == [{"event": "tools_changed", "tools": [tool["name"] for tool in after]}]


WRONG = {
    "a value": ('append = {{ file = "log" }}\ndescription = "d"', "tools.log.append.file: 'log' is no absolute path"),
    "a key": (
        'append = {{ path = "/log" }}\ndescription = "d"',
        "tools.log.append.path: unknown key; allowed are file",
    ),
    "two kinds": (
        'append = {{ file = "/l" }}\nsql = "SELECT 1"',
        "tools.log: a tool has exactly one of `sql`, `publish`",
    ),
}


@pytest.mark.parametrize("what", WRONG)
async def test_mistake_in_its_table_is_told_with_file_and_key(what: str, tmp_path: Path) -> None:
    """EX_CONFIG, as for every table."""
    lines, says = WRONG[what]
    daemon = logbook(tmp_path, table=f"[tools.log]\n{lines}\n")
    try:
        await daemon.start(ready=False)
        assert await daemon.ended() == 78
    finally:
        await daemon.__aexit__()
    [line] = [line for line in daemon.text().splitlines() if str(daemon.config) in line]
    assert says in line


async def test_what_the_kind_finds_leaves_the_tool_out(tmp_path: Path) -> None:
    """The rest works; who calls it is told what was found."""
    async with logbook(tmp_path, table='[tools.log]\nappend = {{ file = "{file}" }}\n') as daemon:
        async with Wired(daemon.socket) as client:
            error, _ = await client.call(1, "tools.call", {"name": "log", "arguments": {"text": "x"}})
            assert error["code"] == "tool_failed"
            assert error["message"] == f"tools.log.description: is missing, and there is no {tmp_path}/log.about"
            assert (await client.call(2, "agent.ask", {"input": "note 1;", "agent": "house"}))[1]["status"] == "done"
        assert f"{daemon.config}:36: tools.log.description: is missing, and there is no " in daemon.text()


async def test_reload_refuses_a_tool_that_cannot_work(tmp_path: Path) -> None:
    """Its kind looks, as at the start, where it is a fault of that tool alone."""
    async with logbook(tmp_path, table=TABLE.replace('{file}"', '{file}.d/log"')) as daemon:
        no_folder = f"there is no folder {tmp_path / 'log.d'}"
        assert f"fault of tool log: {daemon.config}:" in daemon.text()
        assert no_folder in daemon.text()
        await daemon.reload()
        assert "not reloaded" not in daemon.text(), "it adds no fault"
        daemon.drop_in(f'[tools.log2]\ndescription = "Write."\nappend = {{ file = "{tmp_path}/other.d/log" }}\n')
        await daemon.reload()
        assert f"not reloaded, the configuration of before stays: {daemon.config.parent}/conf.d" in daemon.text()
