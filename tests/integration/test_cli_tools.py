"""`edged tools`: what there is, and calling it by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Ended, edged
from tests.support.daemon import Daemon, Wired, entry
from tests.support.msgpack_server import Refuse, StandIn

TOOLS = [
    {
        "name": "set_valve",
        "description": "Open or close one valve.",
        "effect": "write",
        "parameters": {
            "type": "object",
            "properties": {
                "valve": {"type": "string", "enum": ["north", "south"]},
                "minutes": {"type": "integer"},
                "zones": {"type": "array", "default": []},
            },
            "required": ["valve", "minutes"],
        },
    },
    {"name": "stop", "description": "Stop all.", "effect": "write", "parameters": {"type": "object", "properties": {}}},
]


def answers(result: Any) -> dict[str, Any]:
    """Of a daemon with these tools, one of which gives the result."""
    return {"tools.list": TOOLS, "tools.call": result}


def called(result: Any) -> dict[str, Any]:
    """A result as the daemon sends it."""
    return {"name": "set_valve", "arguments": {}, "result": result}


async def test_tools_of_a_daemon_are_listed_with_what_they_take(tmp_path: Path) -> None:
    """For people a line a tool, for programs what the models see."""
    async with Daemon(tmp_path) as daemon:
        plain = await edged("tools", "ls", config=daemon.config)
        assert (plain.code, plain.err) == (0, "")
        lines = {line.split()[0]: line for line in plain.out.splitlines()}
        assert set(lines) == {"name", "tank_level", "set_valve", "note"}
        assert "valve=north|south position=open|closed" in lines["set_valve"]
        assert "Open or close one valve." in lines["set_valve"]
        document = (await edged("tools", "ls", "--json", config=daemon.config)).json()
        assert [(tool["name"], tool["effect"]) for tool in document][:2] == [
            ("tank_level", "read"),
            ("set_valve", "write"),
        ]
        wrong = await edged("tools", "call", "set_vlave", "--json", config=daemon.config)
        assert wrong.code == 65
        assert "set_valve" in wrong.json()["error"]["message"]


async def test_optional_parameters_are_listed_in_brackets(tmp_path: Path) -> None:
    """As in every other tool's usage."""
    async with StandIn(tmp_path, answers(None)) as daemon:
        listed = await edged("tools", "ls", "--socket", str(daemon.path))
        assert "valve=north|south minutes=INTEGER [zones=ARRAY]" in listed.out


WATER = """
[agents.gardener]
model = "small"
tools = ["water"]

[tools.water]
description = "Water a bed."
database = "plant"
sql = "INSERT INTO diary(text) VALUES (:bed || coalesce(' for ' || :minutes, ''))"
effect = "write"
say = "Bed {bed} is watered[ for {minutes} minutes] [today]."
parameters.bed = { enum = ["north", "south"] }
parameters.minutes = { type = "integer", optional = true }
"""


async def test_optional_parameter_is_left_out_or_null(tmp_path: Path) -> None:
    """By an agent and by hand: the statement binds NULL, and the sentence does not speak of it."""
    calls: list[dict[str, Any]] = [{"bed": "north"}, {"bed": "south", "minutes": 5}]
    script = "".join(
        entry(f"water {n}", {"name": "water", "arguments": arguments}) for n, arguments in enumerate(calls)
    )
    async with Daemon(tmp_path, config=WATER, script=script) as daemon:
        listed = await edged("tools", "ls", config=daemon.config)
        assert "bed=north|south [minutes=INTEGER]" in listed.out
        async with Wired(daemon.socket) as client:
            replies = [await client.call(n, "agent.ask", {"input": f"water {n}", "agent": "gardener"}) for n in (0, 1)]
        said = ["Bed north is watered [today].", "Bed south is watered for 5 minutes [today]."]
        assert [reply["output"] for _, reply in replies] == said
        for arguments in ('{"bed": "north", "minutes": null}', '{"bed": "south"}', '{"bed": "south", "minutes": 7}'):
            ended = await edged("tools", "call", "water", "--arguments", arguments, config=daemon.config)
            assert (ended.code, ended.out) == (0, "1 row changed\n")
        wrong = await edged("tools", "call", "water", "--arguments", '{"bed": null}', "--json", config=daemon.config)
        assert "None is not of type 'string'" in wrong.json()["error"]["message"]
        texts = ["north", "south for 5", "north", "south", "south for 7"]
        assert daemon.rows("diary") == [(text,) for text in texts]


async def test_id_stands_for_one_call(tmp_path: Path) -> None:
    """The same call again gives the stored result; another one is refused, and nothing of it is done."""
    async with Daemon(tmp_path) as daemon:

        async def call(name: str, *pairs: str) -> Ended:
            return await edged("tools", "call", name, *pairs, "--id", "mine", "--json", config=daemon.config)

        for _ in range(2):
            assert (await call("note", "text=rain")).json()["result"] == {"changes": 1, "rows": []}
        for refused in (await call("note", "text=sun"), await call("tank_level", "tank=north")):
            assert refused.code == 65
            error = refused.json()["error"]
            assert error["code"] == "bad_request"
            assert error["message"].startswith("id: another call was made before under this identity: note with {")
        assert daemon.rows("diary") == [("rain",)]


async def test_call_sends_values_of_the_parameters_types(tmp_path: Path) -> None:
    """A number is a number, a list is JSON; the id goes along, and the reply is shown as it came."""
    outcome = called({"changes": 1, "rows": []})
    async with StandIn(tmp_path, answers(outcome)) as daemon:
        ended = await edged(
            *("tools", "call", "set_valve", "valve=north", "minutes=5", 'zones=["a", 2]', "--id", "mine", "--json"),
            *("--socket", str(daemon.path)),
        )
        assert (ended.code, ended.json()) == (0, outcome)
        arguments = {"valve": "north", "minutes": 5, "zones": ["a", 2]}
        assert daemon.calls[-1] == ("tools.call", {"name": "set_valve", "arguments": arguments, "id": "mine"})


async def test_call_takes_arguments_as_one_json_object(tmp_path: Path) -> None:
    """Together with single ones; without any there is an empty map and no id."""
    async with StandIn(tmp_path, answers(called(None))) as daemon:
        socket = ("--socket", str(daemon.path))
        await edged("tools", "call", "set_valve", "minutes=1", "--arguments", '{"valve": "south"}', *socket)
        assert daemon.calls[-1][1]["arguments"] == {"valve": "south", "minutes": 1}
        assert (await edged("tools", "call", "stop", *socket)).code == 0
        assert daemon.calls[-1] == ("tools.call", {"name": "stop", "arguments": {}})


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("minutes=many",), 65, "minutes: 'many' is not an integer"),
        (("zones={}",), 65, "zones: '{}' is not a JSON array"),
        (("valv=north",), 65, "it has valve, minutes, zones"),
        (("north",), 64, "name=value, for example valve=north"),
        (("--arguments", "[1]"), 65, "--arguments: is a JSON object"),
        (("--arguments", "{"), 65, "--arguments: is not JSON"),
        (("minutes=1", "--arguments", '{"minutes": 2}'), 65, "minutes: is given twice"),
        (("minutes=99999999999999999999",), 65, "64 bits"),
    ],
)
async def test_argument_that_cannot_be_meant_is_not_sent(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """The sentence says what is allowed, and nothing was called."""
    async with StandIn(tmp_path, answers(called(None))) as daemon:
        ended = await edged("tools", "call", "set_valve", *arguments, "--socket", str(daemon.path))
        assert (ended.code, ended.out) == (code, "")
        assert said in ended.err
        assert [method for method, _ in daemon.calls] == ["tools.list"]


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"rows": [{"tank": "south", "level": 41.0}], "truncated": False}, "tank   level\nsouth  41.0\n"),
        ({"rows": [{"n": 1}], "truncated": True}, "n\n1\nthere are more rows\n"),
        ({"rows": [], "truncated": False}, "no rows\n"),
        ({"changes": 1, "rows": []}, "1 row changed\n"),
        ({"changes": 2, "rows": []}, "2 rows changed\n"),
        ({"changes": 1, "rows": [{"id": 7}]}, "id\n7\n"),
        ({"topic": "lamps/desk/set", "published": True}, "published to lamps/desk/set\n"),
        ("forty two", "forty two\n"),
        ({"minutes": 5}, '{"minutes":5}\n'),
        (None, "null\n"),
    ],
    ids=["rows", "more", "none", "change", "changes", "returning", "published", "text", "map", "nothing"],
)
async def test_result_is_shown_as_what_it_is(tmp_path: Path, result: Any, shown: str) -> None:
    """Rows as a table, a change as a sentence, everything else as JSON."""
    async with StandIn(tmp_path, answers(called(result))) as daemon:
        ended = await edged("tools", "call", "set_valve", "--socket", str(daemon.path))
        assert (ended.code, ended.err) == (0, "")
        assert "".join(f"{line.rstrip()}\n" for line in ended.out.splitlines()) == shown


async def test_tool_that_fails_is_70_with_its_reason(tmp_path: Path) -> None:
    """The tool's own words."""
    async with StandIn(tmp_path, answers(Refuse("tool_failed", "the pump does not answer"))) as daemon:
        ended = await edged("tools", "call", "stop", "--socket", str(daemon.path))
        assert ended == (70, "", "edged: tool_failed: the pump does not answer\n")


async def test_calls_of_a_daemon_change_its_database_once_under_one_id(tmp_path: Path) -> None:
    """A write, the same one again, a read; arguments that do not fit are refused by the tool's schema."""
    async with Daemon(tmp_path) as daemon:
        for _ in range(2):
            call = ("tools", "call", "note", "text=[bold]mine", "--id", "once")
            assert await edged(*call, config=daemon.config) == (0, "1 row changed\n", "")
        assert daemon.rows("diary") == [("[bold]mine",)]
        read = await edged("tools", "call", "tank_level", "tank=south", config=daemon.config)
        assert [line.strip() for line in read.out.splitlines()] == ["level", "41.0"]
        document = await edged("tools", "call", "tank_level", "tank=south", "--json", config=daemon.config)
        assert document.json() == {
            "name": "tank_level",
            "arguments": {"tank": "south"},
            "result": {"rows": [{"level": 41.0}], "truncated": False},
        }
        for arguments in (("valve=nort", "position=open"), ("valve=north",)):
            wrong = await edged("tools", "call", "set_valve", *arguments, config=daemon.config)
            assert (wrong.code, wrong.out) == (65, "")
            assert wrong.err.startswith("edged: bad_request: arguments: ")
        assert daemon.rows("valve_commands") == []


async def test_tool_of_a_daemon_that_fails_is_70(tmp_path: Path) -> None:
    """The database's own sentence."""
    async with Daemon(tmp_path) as daemon:
        daemon.execute("DROP TABLE diary")
        ended = await edged("tools", "call", "note", "text=x", "--json", config=daemon.config)
        assert (ended.code, ended.json()["error"]["code"]) == (70, "tool_failed")
        assert "diary" in ended.json()["error"]["message"]
