"""Parameters whose values are rows of a database that other programs write."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support import cloud as clouds
from tests.support.cli import edged
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import ask, upstream
from tests.support.daemon import Daemon, Wired, entry

BOAT = 'parameters.boat = { values_sql = "SELECT name FROM boats ORDER BY name", database = "harbour" }'
HARBOUR = f"""
[databases.harbour]
path = "FOLDER/harbour.db"
[tools.fetch]
description = "Have a boat brought to the quay."
database = "plant"
sql = "INSERT INTO diary(text) VALUES ('fetch ' || :boat)"
effect = "write"
say = "{{boat}} is coming."
{BOAT}
[tools.hail]
description = "Call a boat by radio."
python = "harbour:hail"
on_uncertain = "retry"
{BOAT}
[agents.house]
tools = ["tank_level", "note", "fetch", "hail"]
"""
HAIL = 'def hail(boat: str) -> str:\n    """Call."""\n    return f"{boat} answers"\n'
BOATS = ["Möwe", "Sea Star II", "Sea Star III", "Albatros"]


def fetch(boat: str) -> dict[str, Any]:
    return {"name": "fetch", "arguments": {"boat": boat}}


SCRIPT = 'dialect = "compact"\n' + "".join(
    (
        entry("fetch (.+) and (.+) now", fetch("\\1"), fetch("\\2")),
        entry("fetch (.+) now", fetch("\\1")),
        entry("hail (.+) now", {"name": "hail", "arguments": {"boat": "\\1"}}, text="It answers."),
        entry("note (.+) down", {"name": "note", "arguments": {"text": "\\1"}}),
        entry("write up the", {"name": "note", "arguments": {"text": "cafe  mowe"}}),
        entry("how full", {"name": "tank_level", "arguments": {"tank": "south"}}, text="It is 41 percent full."),
    )
)


class Harbour(Daemon):
    """A daemon with a list of boats in a database of its own."""

    def __init__(self, folder: Path, more: str = "", **options: Any) -> None:
        super().__init__(folder, script=SCRIPT, **options)
        (folder / "tools").mkdir()
        (folder / "tools" / "harbour.py").write_text(HAIL)
        self.drop_in(HARBOUR.replace("FOLDER", str(folder)))
        self.drop_in(more, "51.toml")
        self.boats("CREATE TABLE boats(name TEXT)", *(f"INSERT INTO boats VALUES ('{boat}')" for boat in BOATS))

    def boats(self, *statements: str) -> None:
        """Change the list, as another program."""
        with contextlib.closing(apsw.Connection(str(self.folder / "harbour.db"))) as harbour:
            for statement in statements:
                harbour.execute(statement).fetchall()


async def test_row_is_meant_however_it_is_spelled(tmp_path: Path) -> None:
    """By a tool of SQL and by one of Python: what the tool gets and the reply tells is the row."""
    async with Harbour(tmp_path) as daemon:
        spelled = ["Möwe", "die Moewe", "sea star two", "ALBATROSS"]
        replies = [await ask(daemon, f"fetch {boat} now") for boat in spelled]
        assert [reply["output"] for reply in replies] == [
            f"{boat} is coming." for boat in ("Möwe", "Möwe", "Sea Star II", "Albatros")
        ]
        assert daemon.rows("diary") == [("fetch Möwe",), ("fetch Möwe",), ("fetch Sea Star II",), ("fetch Albatros",)]
        [call] = (await ask(daemon, "hail albatros now"))["tool_calls"]
        assert (call["arguments"], call["result"]) == ({"boat": "Albatros"}, "Albatros answers")


async def test_row_that_another_program_adds_is_there_for_the_next_request(tmp_path: Path) -> None:
    """And one that it takes away is not."""
    async with Harbour(tmp_path) as daemon:
        assert (await ask(daemon, "fetch Nordlicht now"))["outcome"] == "unable"
        daemon.boats("INSERT INTO boats VALUES ('Nordlicht')", "DELETE FROM boats WHERE name = 'Möwe'")
        assert (await ask(daemon, "fetch nordlicht now"))["output"] == "Nordlicht is coming."
        assert (await ask(daemon, "fetch Möwe now"))["outcome"] == "unable"


async def test_row_that_a_tool_of_the_daemon_adds_is_there_for_the_next_request(tmp_path: Path) -> None:
    """`PRAGMA data_version` tells nothing of writes by the same connection: values are read by another one."""
    more = """[databases.harbour]
mode = "rw"
[tools.note]
database = "harbour"
sql = "INSERT INTO boats VALUES (:text)"
"""
    async with Harbour(tmp_path, more) as daemon:
        assert (await ask(daemon, "fetch Nordlicht now"))["outcome"] == "unable"
        await ask(daemon, "note Nordlicht down")
        assert (await ask(daemon, "fetch nordlicht now"))["output"] == "Nordlicht is coming."


@pytest.mark.parametrize(("boat", "language"), [("Titanic", None), ("Sea Star", None), ("Titanic", "de")])
async def test_what_is_not_there_or_may_be_several_is_told_and_nothing_is_done(
    tmp_path: Path, boat: str, language: str | None
) -> None:
    """Not even the other call of the decision, which has a row."""
    async with Harbour(tmp_path) as daemon:
        fields = {} if language is None else {"language": language}
        reply = await ask(daemon, f"fetch Albatros and {boat} now", **fields)
        told = {
            None: f'That is not done: no boat "{boat}" is there, or several could be meant.',
            "de": f'Das wird nicht getan: boat "{boat}" gibt es nicht, oder es kann mehreres gemeint sein.',
        }
        assert reply["output"] == told[language]
        assert (reply["status"], reply["outcome"], reply["tool_calls"]) == ("done", "unable", [])
        assert daemon.rows("diary") == []


async def test_values_that_cannot_be_read_fail_their_calls_and_no_others(tmp_path: Path) -> None:
    async with Harbour(tmp_path) as daemon:
        daemon.boats("ALTER TABLE boats RENAME TO ships")
        reply = await ask(daemon, "fetch Möwe now")
        assert reply["error"]["code"] == "tool_failed"
        assert reply["error"]["message"] == (
            "the values of boat cannot be read: database 'harbour': no such table: boats"
        )
        assert (await ask(daemon, "how full is it"))["output"] == "It is 41 percent full."


async def test_preview_shows_the_row_and_what_is_not_there(tmp_path: Path) -> None:
    async with Harbour(tmp_path) as daemon:
        shown = [
            (await edged("route", f"fetch {boat} now", "--decide", "--json", config=daemon.config)).json()["call"]
            for boat in ("sea star three", "Titanic")
        ]
        assert [(call["name"], call["arguments"]) for call in shown] == [
            ("fetch", {"boat": "Sea Star III"}),
            ("unable", {}),
        ]
        assert daemon.rows("diary") == []


async def test_call_by_hand_takes_the_row_alone(tmp_path: Path) -> None:
    """Whoever calls by hand is told what is wrong."""
    async with Harbour(tmp_path) as daemon:
        assert (await edged("tools", "call", "fetch", "boat=Möwe", config=daemon.config)).code == 0
        wrong = await edged("tools", "call", "fetch", "boat=moewe", config=daemon.config)
        assert wrong.code == 65
        assert "boat: 'moewe' is none of the 4 values there are" in wrong.err
        assert daemon.rows("diary") == [("fetch Möwe",)]


SINK = """
[databases.harbour]
mode = "rw"
[tools.sink]
description = "Take a boat off the list."
database = "harbour"
sql = "DELETE FROM boats WHERE name = :boat"
effect = "write"
parameters.boat = { values_sql = "SELECT name FROM boats", database = "harbour" }
"""


async def test_call_by_hand_that_took_its_own_row_away_is_made_once(tmp_path: Path) -> None:
    """Who has not heard its result and asks again gets that, as of any other call."""
    async with Harbour(tmp_path, SINK) as daemon, Wired(daemon.socket) as client:
        sink = {"name": "sink", "arguments": {"boat": "Möwe"}, "id": "1"}
        first = await client.call(1, "tools.call", sink)
        assert first[0] is None
        assert await client.call(2, "tools.call", sink) == first
        error, _ = await client.call(3, "tools.call", {**sink, "id": "2"})
        assert "'Möwe' is none of the 3 values" in str(error)


async def test_resumed_run_does_what_it_had_decided(tmp_path: Path) -> None:
    """The row was there when the call was decided on, and is gone when the daemon comes back."""
    daemon = Harbour(tmp_path)
    await daemon.start("journal.intent")
    with contextlib.suppress(Exception):  # the connection ends with the daemon
        await ask(daemon, "hail moewe now", id="one")
    await daemon.ended()
    daemon.boats("DELETE FROM boats")
    async with daemon:
        [call] = (await ask(daemon, "hail moewe now", id="one"))["tool_calls"]
        assert (call["arguments"], call["result"]) == ({"boat": "Möwe"}, "Möwe answers")


async def test_free_text_keeps_the_spelling_of_the_request(tmp_path: Path) -> None:
    async with Harbour(tmp_path) as daemon:
        await ask(daemon, "write up the Café Möwe, please")
        assert daemon.rows("diary") == [("Café Möwe",)]


# -- the one check -----------------------------------------------------------------------------------------------------

WRONG = [
    ("database = 'harbour'", "database = 'port'", "no database 'port'; defined are plant, harbour"),
    (", database = 'harbour'", "", "is missing: it names where `values_sql` reads; defined are plant, harbour"),
    ("values_sql =", "enum = ['a'], values_sql =", "stands beside `values_sql`, and both say which values there are"),
    ("values_sql =", "type = 'array', values_sql =", "a parameter with `values_sql` is one of string, integer, number"),
    ("FROM boats", "FROM boats WHERE name = :boat", "binds :boat, and values are read before a call has arguments"),
    ("SELECT name", "SELECT title", "no such column: title"),
    ("SELECT name FROM boats", "DELETE FROM boats RETURNING name", "the statement does more than read rows"),
    ("SELECT name FROM boats", "VALUES (1); SELECT 2", "a tool is one statement, not several"),
    ("SELECT name FROM boats", "SELECT x''", "a value is a BLOB"),
    (
        "SELECT name FROM boats",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5432) SELECT i FROM n",
        "it gives 5432 values; at most 5000 are taken",
    ),
    ("values_sql =", "type = 'integer', values_sql =", "gives the text 'Möwe', and the parameter's type is integer"),
]


@pytest.mark.parametrize(("there", "instead", "told"), WRONG)
async def test_check_finds_what_is_wrong_with_values(tmp_path: Path, there: str, instead: str, told: str) -> None:
    """With the line; a statement that would write has not written."""
    daemon = Harbour(tmp_path)
    table = """[tools.berth]
description = "Where a boat lies."
database = "plant"
sql = "SELECT :boat"
parameters.boat = { values_sql = "SELECT name FROM boats", database = 'harbour' }
"""
    path = daemon.drop_in(table.replace(there, instead), "60.toml")
    checked = await edged("check", config=daemon.config)
    said = checked.out + checked.err
    assert checked.code == 78, said
    assert told in said
    assert f"{path}:5" in said
    with contextlib.closing(apsw.Connection(str(tmp_path / "harbour.db"))) as harbour:
        assert harbour.execute("SELECT count(*) FROM boats").get == len(BOATS)


# -- upstreams ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def cloud() -> AsyncIterator[ScriptedCloud]:
    async with ScriptedCloud() as scripted:
        yield scripted


def cloudy(folder: Path, cloud: ScriptedCloud, private: str = "") -> Daemon:
    """Every request goes to the cloud."""
    more = f'[tools.fetch]\nprivate = ["{private}"]\n' if private else ""
    agent = '[agents.house]\nprivacy = "any"\nroute = "cloud"\n'
    return Harbour(folder, f"{more}{upstream('far', cloud)}{agent}")


async def test_rows_that_edged_itself_has_told_stay_on_the_board(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """It asks about calls with the rows that are meant; what the upstream hears of it later is a placeholder, and works
    as one."""
    cloud.will(clouds.calls(("fetch", {"boat": "[PRIVATE_1]"})), clouds.text("It comes."))
    question = "Do you want me to do this: Have a boat brought to the quay (boat: Sea Star II)?"
    said = [("user", "the second star"), ("assistant", question), ("user", "yes")]
    async with cloudy(tmp_path, cloud, "boat") as daemon, Wired(daemon.socket) as client:
        messages = [{"role": role, "content": content} for role, content in said]
        error, reply = await client.call(1, "agent.ask", {"messages": messages})
        assert (error, reply["output"]) == (None, "It comes.")
        assert daemon.rows("diary") == [("fetch Sea Star II",)]
        error, told = await client.call(2, "route.explain", {"input": "Sea Star III, or Moewe?"})
        assert (error, told["masked"]) == (None, {"PRIVATE": 1})
    heard = json.dumps([chat.body for chat in cloud.chats], ensure_ascii=False)
    assert "(boat: [PRIVATE_1])?" in heard
    assert not any(boat in heard for boat in BOATS)


async def test_cloud_is_told_the_values_and_its_spelling_is_made_good(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """They stand beside the question: tools and their descriptions stay what an upstream has cached."""
    cloud.will(clouds.calls(("fetch", {"boat": "Moewe"})), clouds.text("It comes."))
    async with cloudy(tmp_path, cloud) as daemon:
        reply = await ask(daemon, "bring the white one")
        assert (reply["output"], daemon.rows("diary")) == ("It comes.", [("fetch Möwe",)])
        first, second = (chat.body for chat in cloud.chats)
        assert first["messages"][-1]["content"] == (
            "boat: Albatros|Möwe|Sea Star II|Sea Star III\n\nbring the white one"
        )
        assert "Albatros" not in json.dumps(first["tools"], ensure_ascii=False)
        assert first["tools"] == second["tools"]


async def test_cloud_reads_that_a_value_is_not_there_and_a_second_one_ends_the_request(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    titanic = clouds.calls(("fetch", {"boat": "Titanic"}))
    cloud.will(titanic, clouds.text("There is no Titanic here."), titanic, titanic)
    async with cloudy(tmp_path, cloud) as daemon:
        reply = await ask(daemon, "bring the Titanic")
        assert (reply["output"], reply["outcome"]) == ("There is no Titanic here.", "answered")
        told = cloud.chats[1].body["messages"][-1]["content"]
        assert "boat: 'Titanic' is none of the values there are" in told
        reply = await ask(daemon, "bring the Titanic at last")
        assert reply["output"] == 'That is not done: no boat "Titanic" is there, or several could be meant.'
        assert (reply["outcome"], daemon.rows("diary")) == ("unable", [])


@pytest.mark.parametrize("private", ["boat", "name"])
async def test_private_values_never_leave_and_are_found_on_the_board(
    tmp_path: Path, cloud: ScriptedCloud, private: str
) -> None:
    """By the parameter's name, or by that of the column they are read from."""
    if private == "name":
        sql = "INSERT INTO diary(text) VALUES ('fetch ' || :boat) RETURNING 'x' AS name"
        more = f'[tools.fetch]\nsql = "{sql}"\n'
    else:
        more = ""
    cloud.will(clouds.calls(("fetch", {"boat": "sea star two"})), clouds.text("It comes."))
    daemon = cloudy(tmp_path, cloud, private)
    daemon.drop_in(more, "55.toml")
    async with daemon:
        reply = await ask(daemon, "bring the second star")
        assert (reply["output"], daemon.rows("diary")) == ("It comes.", [("fetch Sea Star II",)])
        heard = json.dumps([chat.body for chat in cloud.chats], ensure_ascii=False)
        assert len(cloud.chats) == 2
        assert not any(boat in heard for boat in BOATS)
