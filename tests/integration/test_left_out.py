"""A fault of one model, agent, tool or upstream leaves that one out: it says why, and everything else works."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import apsw
import pytest

from edged.client import AsyncClient, EdgedCallError
from tests.support import real_model as real
from tests.support.broker import until
from tests.support.cli import edged
from tests.support.daemon import SCRIPT, Daemon, entry
from tests.support.gguf import with_template
from tests.support.sealed import sealed

PAGE = "<!DOCTYPE html><html><body>Sign in to download this model</body></html>"
FAULTY = """
[databases.gone]
path = "{folder}/gone.db"
mode = "rw"
[tools.lost]
description = "Read what was lost."
database = "gone"
sql = "SELECT * FROM things"
[tools.pump]
python = "pumps:hours"
[tools.tanks]
description = "Name tanks."
database = "plant"
sql = "SELECT :tanks"
parameters.tanks = {{ maxLength = 2000000 }}
[agents.worker]
model = "small"
tools = ["lost", "pump", "tanks", "note"]
[models.page]
source = "file:{folder}/page.gguf"
[agents.reader]
model = "page"
[upstreams.cloud]
base_url = "http://127.0.0.1:1/v1"
model = "large"
api_key_file = "{folder}/no-key"
"""
CALLS = "".join(entry(f"use {name}", {"name": name, "arguments": {}}) for name in ("lost", "pump", "tanks"))
FAULTS = {("tool", "lost"), ("tool", "pump"), ("tool", "tanks"), ("model", "page"), ("upstream", "cloud")}


def installation(folder: Path) -> Daemon:
    """A plant that works, and one of each fault beside it."""
    (folder / "tools").mkdir()
    (folder / "tools" / "pumps.py").write_text("import no_such_module\n")
    (folder / "page.gguf").write_text(PAGE)
    look = {"EDGED_TEST_LOOK": "0.1"}
    return Daemon(folder, config=FAULTY.format(folder=folder), script=CALLS + SCRIPT, environment=look)


async def faults(client: AsyncClient, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Of `status`, by what they are about, as soon as they are these."""
    async with asyncio.timeout(60):
        while True:
            found = {(each["about"], each["name"]): each for each in (await client.call("status"))["faults"]}
            if found.keys() == wanted:
                return found
            await asyncio.sleep(0.05)


async def test_each_fault_is_told_in_one_sentence_everywhere_and_the_rest_works(tmp_path: Path) -> None:
    """By status, by the answer of what is left out, in the log, by `check` and by `doctor`."""
    async with installation(tmp_path) as daemon, AsyncClient(daemon.socket) as client:
        told = {about: fault["message"] for about, fault in (await faults(client, FAULTS)).items()}
        assert "no file" in told["tool", "lost"]
        assert "no_such_module" in told["tool", "pump"]
        assert "maxLength" in told["tool", "tanks"]
        assert "is no GGUF file but an HTML page" in told["model", "page"]
        assert f"{tmp_path}/no-key" in told["upstream", "cloud"]
        for name in ("lost", "pump", "tanks"):
            with pytest.raises(EdgedCallError) as refused:
                await client.call("tools.call", {"name": name, "arguments": {"any": "thing"} if name != "lost" else {}})
            assert (refused.value.code, refused.value.message) == ("tool_failed", told["tool", name])
            reply = await client.ask(f"use {name}", agent="worker")
            assert told["tool", name] in str(reply["tool_calls"][0]["result"])
        reply = await client.ask("hello", agent="reader")
        assert (reply["status"], reply["error"]["code"]) == ("failed", "model_unavailable")
        assert reply["error"]["message"] == told["model", "page"]
        assert (await client.ask("how full is it?", agent="house"))["output"] == "It is 41 percent full."
        assert (await client.ask("note 1;", agent="worker"))["output"] == "noted 1"
        shown = (await edged("status", config=daemon.config)).out
        checked = (await edged("check", "--json", config=daemon.config, traceback=True)).json()["problems"]
        examined = (await edged("doctor", "--json", config=daemon.config)).json()["checks"]
        failed = [each["message"] for each in examined if each["level"] == "fail"]
        for (about, name), message in told.items():
            assert f"fault  {about} {name}: {message}" in shown
            assert [message in problem for problem in checked].count(True) == 1
            assert message in failed
            assert f"fault of {about} {name}: " in daemon.text()
        assert len(checked) == len(FAULTS)


async def test_what_was_put_right_comes_back_by_itself(tmp_path: Path) -> None:
    """A database and a model are looked for again; a tool that could not be read waits for a reload."""
    async with installation(tmp_path) as daemon:
        await put_right(daemon)
        await daemon.reload()
        async with AsyncClient(daemon.socket) as client:
            await faults(client, {("tool", "tanks")})
            assert (await client.call("tools.call", {"name": "pump", "arguments": {}}))["result"] == 7


async def put_right(daemon: Daemon) -> None:
    """All that can be, while the daemon runs."""
    tmp_path = daemon.folder
    async with AsyncClient(daemon.socket) as client:
        await faults(client, FAULTS)
        with contextlib.closing(apsw.Connection(f"{tmp_path}/gone.db")) as database:
            database.execute("CREATE TABLE things(name); INSERT INTO things VALUES ('hammer')").fetchall()
        (tmp_path / "no-key").write_text("sk-0123456789abcdef\n")
        (tmp_path / "page.gguf").unlink()
        (tmp_path / "page.gguf").symlink_to(real.model_path())
        (tmp_path / "tools" / "pumps.py").write_text(
            'def hours() -> int:\n    """Hours of the pump."""\n    return 7\n'
        )
        await faults(client, {("tool", "pump"), ("tool", "tanks")})
        outcome = await client.call("tools.call", {"name": "lost", "arguments": {}})
        assert outcome["result"]["rows"] == [{"name": "hammer"}]
        assert "no fault any more of tool lost" in daemon.text()


async def test_reload_that_adds_a_fault_is_refused_and_one_that_keeps_them_is_not(tmp_path: Path) -> None:
    """What runs stays as it is; the event says why."""
    events: list[dict[str, Any]] = []
    async with installation(tmp_path) as daemon:
        async with AsyncClient(daemon.socket, on_event=events.append) as client:
            await faults(client, FAULTS)
            await client.call("events.subscribe")
            (tmp_path / "other.gguf").write_text(PAGE)
            added = daemon.drop_in(f'[models.other]\nsource = "file:{tmp_path}/other.gguf"\n')
            await daemon.reload()
            await until(lambda: [event for event in events if event["event"] == "reload_failed"])
            [refused] = [event for event in events if event["event"] == "reload_failed"]
            assert "models.other.source: other.gguf is no GGUF file but an HTML page" in refused["reason"]
            assert "other" not in (await client.call("status"))["models"]
        added.write_text('[agents.garden]\nmodel = "small"\ntools = ["note"]\n')
        await daemon.reload()
        async with AsyncClient(daemon.socket) as client:
            assert (await client.ask("note 2;", agent="garden"))["output"] == "noted 2"
            await faults(client, FAULTS)


ODD = (
    "{% if messages | selectattr('role', 'equalto', 'user') | list | length > 1 %}{{ raise_exception('too many') }}"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


async def test_agent_that_its_model_cannot_be_told_of_is_found_after_the_start_and_known_at_the_next(
    tmp_path: Path,
) -> None:
    """The start does not wait for the rehearsal, and the next one does not need it."""
    with_template(real.model_path(), tmp_path / "odd.gguf", ODD)
    odd = f'[models.odd]\nsource = "file:{tmp_path}/odd.gguf"\n[agents.stray]\nmodel = "odd"\nsystem = "You are odd."\n'
    daemon = Daemon(tmp_path, config=odd)
    try:
        await daemon.start()
        async with AsyncClient(daemon.socket) as client:
            [fault] = (await faults(client, {("agent", "stray")})).values()
            assert "too many" in fault["message"]
            reply = await client.ask("hello", agent="stray")
            assert (reply["error"]["code"], reply["error"]["message"]) == ("model_unavailable", fault["message"])
            assert (await client.ask("note 1;", agent="house"))["output"] == "noted 1"
        assert await daemon.stop() == 0
        await daemon.start()
        async with AsyncClient(daemon.socket) as client:
            assert [each["name"] for each in (await client.call("status"))["faults"]] == ["stray"]
    finally:
        await daemon.__aexit__()


NEVER_FILLED = """
[tools.quoted]
description = "Level of a tank."
database = "plant"
sql = "SELECT level FROM tank_levels WHERE tank = ':tank'"
parameters.tank = { enum = ["north", "south"] }
[tools.counted]
description = "Level of a tank."
database = "plant"
sql = "SELECT level FROM tank_levels WHERE tank = ?"
parameters.tank = { enum = ["north", "south"] }
[tools.fixed]
description = "Level of a tank."
database = "plant"
sql = "SELECT level FROM tank_levels WHERE tank = 'north'"
parameters.tank = { enum = ["north", "south"] }
[agents.worker]
model = "small"
tools = ["quoted", "fixed"]
"""


async def test_tool_whose_values_never_arrive_is_left_out_and_one_that_only_puzzles_is_not(tmp_path: Path) -> None:
    """The former would say that it did what it did not. The latter ran before there was a check, so it runs."""
    look = {"EDGED_TEST_LOOK": "0.1"}
    async with Daemon(tmp_path, config=NEVER_FILLED, environment=look) as daemon, AsyncClient(daemon.socket) as client:
        async with asyncio.timeout(60):
            while "is not used by" not in str(told := (await client.call("status"))["faults"]):
                await asyncio.sleep(0.05)
        assert {(each["name"], each["key"].partition(".tank")[0]) for each in told} == {
            ("quoted", "tools.quoted.sql"),
            ("counted", "tools.counted.sql"),
            ("fixed", "tools.fixed.parameters"),
        }
        north = {"arguments": {"tank": "north"}}
        for name, why in (("quoted", "stands in quotes"), ("counted", "has no name")):
            with pytest.raises(EdgedCallError, match=why):
                await client.call("tools.call", {"name": name, **north})
        outcome = await client.call("tools.call", {"name": "fixed", **north})
        assert outcome["result"]["rows"] == [{"level": 63.0}]


async def test_database_that_cannot_be_written_leaves_its_writes_out_until_it_can(tmp_path: Path) -> None:
    """What only reads there goes on, and so does everything else."""
    sealed_db = tmp_path / "sealed.db"
    with contextlib.closing(apsw.Connection(str(sealed_db))) as database:
        database.execute("CREATE TABLE things(name); INSERT INTO things VALUES ('hammer')").fetchall()
    table = f'[databases.shed]\npath = "{sealed_db}"\nmode = "rw"\n'
    reads = '[tools.things]\ndescription = "What is there."\ndatabase = "shed"\nsql = "SELECT name FROM things"\n'
    writes = '[tools.put]\ndescription = "Put a nail there."\ndatabase = "shed"\neffect = "write"\n'
    config = f"{table}{reads}{writes}sql = \"INSERT INTO things VALUES ('nail')\"\n"
    with sealed(sealed_db):
        daemon = Daemon(tmp_path, config=config, environment={"EDGED_TEST_LOOK": "0.1"})
        checked = await edged("check", config=daemon.config)
        assert (checked.code, f"database 'shed': {sealed_db} cannot be written by " in checked.err) == (78, True)
        await daemon.start()
        async with AsyncClient(daemon.socket) as client:
            told = (await faults(client, {("tool", "put")}))["tool", "put"]["message"]
            with pytest.raises(EdgedCallError) as refused:
                await client.call("tools.call", {"name": "put", "arguments": {}})
            assert refused.value.message == told
            found = await client.call("tools.call", {"name": "things", "arguments": {}})
            assert found["result"]["rows"] == [{"name": "hammer"}]
            assert (await client.ask("note 1;", agent="house"))["output"] == "noted 1"
    try:
        async with AsyncClient(daemon.socket) as client:
            await faults(client, set())
            assert (await client.call("tools.call", {"name": "put", "arguments": {}}))["result"]["changes"] == 1
    finally:
        await daemon.__aexit__()
