"""What an upstream has shown is done on the board the next time, through the real daemon."""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.cli import Ended, edged
from tests.support.cloud import ScriptedCloud, calls, text
from tests.support.cloud_daemon import OPEN_NORTH, ask, cloudy, upstream
from tests.support.daemon import Daemon, Wired, entry, note

SOUTH = {"valve": "south", "position": "open"}
NORTH = {"valve": "north", "position": "open"}
TAUGHT, LIKE_IT = "bring the roses some water", "the roses want water"
SCRIPT = 'dialect = "compact"\n' + "".join(
    (
        entry(LIKE_IT, OPEN_NORTH, confidence=0.9, sees=TAUGHT),
        entry("sure of it", OPEN_NORTH, confidence=0.9),
        entry(".", note("a guess"), confidence=0.2),
    )
)


def learner(folder: Path, cloud: ScriptedCloud, **agent: Any) -> Daemon:
    """A daemon whose agent hands over what it is unsure of, and learns."""
    return cloudy(folder, upstream("cloud", cloud), script=SCRIPT, **{"learn": True, "min_confidence": 0.5, **agent})


@contextlib.asynccontextmanager
async def running(folder: Path, **agent: Any) -> AsyncIterator[tuple[Daemon, ScriptedCloud]]:
    """The daemon and its cloud."""
    async with ScriptedCloud() as cloud, learner(folder, cloud, **agent) as daemon:
        yield daemon, cloud


def teaches(cloud: ScriptedCloud, name: str = "set_valve", arguments: dict[str, Any] = NORTH) -> None:
    """The next request gets this call of it, and an answer where it words one."""
    cloud.will(calls((name, arguments)))


async def learnt(daemon: Daemon, **which: Any) -> list[dict[str, Any]]:
    """The examples."""
    async with Wired(daemon.socket) as client:
        error, found = await client.call(1, "learn.list", which)
    assert error is None
    assert isinstance(found, list)
    return found


async def command(daemon: Daemon, *arguments: str) -> Ended:
    """A command that works."""
    ended = await edged(*arguments, config=daemon.config)
    assert ended.code == 0, ended.err
    return ended


async def test_what_an_upstream_did_the_board_does_the_next_time(tmp_path: Path) -> None:
    """Until it is forgotten; what an owner says goes before it."""
    async with running(tmp_path) as (daemon, cloud):
        teaches(cloud)
        first = await ask(daemon, TAUGHT)
        assert (first["route"]["where"], first["route"]["reason"], first["outcome"]) == ("cloud", "unsure", "acted")
        [example] = await learnt(daemon)
        told = {key: example[key] for key in ("agent", "role", "source", "text", "calls", "rid", "private")}
        assert told == {
            "agent": "house", "role": "", "source": "upstream", "text": TAUGHT, "calls": [OPEN_NORTH],
            "rid": first["rid"], "private": False,
        }  # fmt: skip
        before = len(cloud.chats)
        second = await ask(daemon, LIKE_IT)
        assert (second["route"]["where"], second["outcome"]) == ("local", "acted")
        assert second["route"]["score"] == pytest.approx(0.9)
        assert daemon.rows("valve_commands") == [("north", "open")] * 2
        assert len(cloud.chats) == before
        assert len(await learnt(daemon)) == 1  # the board's own call teaches nothing

        corrected = await command(
            daemon, "requests", "correct", first["rid"], 'set_valve(valve="south", position="open")'
        )
        assert corrected.out.startswith("example ")
        [example] = await learnt(daemon, agent="house", role="")
        assert (example["source"], example["calls"][0]["arguments"]) == ("corrected", SOUTH)
        assert example["rid"] == first["rid"]

        assert (await command(daemon, "learn", "forget", str(example["id"]))).out == "1 forgotten\n"
        teaches(cloud)
        assert (await ask(daemon, LIKE_IT))["route"]["where"] == "cloud"
        assert "manage.done" in (await command(daemon, "requests", "audit")).out


async def test_what_teaches_nothing(tmp_path: Path) -> None:
    """Each of these worked, and is no example of a request alone; then one that is."""
    async with running(tmp_path) as (daemon, cloud):
        cloud.will(calls(("tank_level", {"tank": "north"})), calls(("note", {"text": "63"})), text("done"))
        assert len((await ask(daemon, "write down how full it is"))["tool_calls"]) == 2
        teaches(cloud, "note", {"text": "anna.k@example.org has asked"})
        assert (await ask(daemon, "note that anna.k@example.org has asked"))["outcome"] == "acted"
        await ask(daemon, "sure of it", conversation="kitchen")
        teaches(cloud)
        cloud.otherwise = text("done")
        follows = await ask(daemon, "now the other", conversation="kitchen")
        assert (follows["route"]["where"], follows["outcome"]) == ("cloud", "acted")
        assert await learnt(daemon) == []
        refused = await edged("requests", "correct", follows["rid"], 'note(text="x")', config=daemon.config)
        assert (refused.code, "goes on from what was said before" in refused.err) == (65, True)
        teaches(cloud)
        await ask(daemon, "a first question", conversation="hall")
        assert [each["text"] for each in await learnt(daemon)] == ["a first question"]


async def test_owner_adds_lists_exports_and_forgets(tmp_path: Path) -> None:
    """Nothing of it leaves the board: an agent of privacy device learns with "local"."""
    async with running(tmp_path, privacy="device", learn="local") as (daemon, cloud):
        asked = await ask(daemon, "maybe now")
        assert asked["outcome"] == "asked"
        await command(daemon, "requests", "correct", asked["rid"], 'note(text="say \\"now\\" 😀")')
        added = await command(
            daemon, "learn", "add", "house", TAUGHT, 'set_valve(valve="north", position="open")', "--json"
        )
        assert added.json()["source"] == "added"
        two = 'tank_level(tank="north")\ntank_level(tank="south")'
        await command(daemon, "learn", "add", "house", "both tanks", two)
        assert (await ask(daemon, LIKE_IT))["outcome"] == "acted"
        listing = (await command(daemon, "learn", "ls")).out
        assert 'set_valve(valve="north",position="open")' in listing.replace(", ", ",")
        assert [each["private"] for each in await learnt(daemon)] == [True] * 3

        exported = (await command(daemon, "learn", "export")).out
        assert "# Left out: 1 " in exported
        tools = tomllib.loads(exported)["tools"]
        assert tools["note"]["examples"] == [{"input": "maybe now", "arguments": {"text": 'say "now" 😀'}}]
        assert tools["set_valve"]["examples"] == [{"input": TAUGHT, "arguments": NORTH}]
        daemon.drop_in(exported, "60.toml")
        assert (await command(daemon, "check", "--json")).json()["problems"] == []

        for wrong, code, says in (
            (("learn", "add", "house", "x", "no call"), 65, "is no call"),
            (("learn", "add", "house", "x", 'tank_level(tank="east")'), 65, "'east' is not one of"),
            (("learn", "add", "barn", "x", "reply()"), 65, "no agent 'barn'"),
            (("learn", "add", "house", "x", "reply()"), 65, "is no tool of agent 'house'"),
            (("learn", "add", "house", "x", 'note(text="x")', "--role", "viewer"), 65, "no roles are configured"),
            (("learn", "forget", "999"), 65, "no example 999"),
            (("learn", "forget"), 64, "what is to be forgotten"),
            (("requests", "correct", "nobody", 'note(text="x")'), 65, "no request 'nobody'"),
        ):
            ended = await edged(*wrong, config=daemon.config)
            assert (ended.code, says in ended.err) == (code, True), ended.err
        assert (await command(daemon, "learn", "forget", "--agent", "house", "--json")).json() == {"forgotten": 3}
        assert await learnt(daemon) == []
        assert cloud.chats == []


@pytest.mark.parametrize("fault", ["tool.effect", "agent.answered", "settle.committed"])
async def test_kill_neither_loses_nor_doubles_what_is_learnt(fault: str, tmp_path: Path) -> None:
    """Outcome and example are in one transaction, and a run that is resumed knows who decided."""
    async with ScriptedCloud() as cloud, contextlib.AsyncExitStack() as stack:
        daemon = learner(tmp_path, cloud)
        stack.push_async_exit(daemon)
        teaches(cloud)
        await daemon.start(fault)
        with contextlib.suppress(EOFError, OSError, AssertionError):
            await ask(daemon, TAUGHT, id="a")
        assert await daemon.ended() != 0
        await daemon.start()
        reply = await ask(daemon, TAUGHT, id="a")
        assert (reply["status"], reply["outcome"]) == ("done", "acted")
        assert daemon.rows("valve_commands") == [("north", "open")]
        [example] = await learnt(daemon)
        assert (example["rid"], example["source"]) == (reply["rid"], "upstream")


async def test_only_who_may_manage_sees_and_teaches(tmp_path: Path) -> None:
    roles = '[roles.viewer]\nagents = ["house"]\ntools = ["*"]\n'
    access = f'[access]\nunix_uid = {{ "{os.getuid()}" = "viewer" }}\n'
    async with ScriptedCloud() as cloud:
        daemon = learner(tmp_path, cloud)
        daemon.drop_in(roles + access, "60.toml")
        teaches(cloud)
        async with daemon:
            reply = await ask(daemon, TAUGHT)
            for refused in (
                ("learn", "ls"),
                ("learn", "export"),
                ("learn", "forget", "--all"),
                ("learn", "add", "house", "x", 'note(text="x")'),
                ("requests", "correct", reply["rid"], 'note(text="x")'),
            ):
                assert (await edged(*refused, config=daemon.config)).code == 77
        with contextlib.closing(apsw.Connection(str(tmp_path / "state" / "edged.db"))) as store:
            assert store.execute("SELECT role, source FROM learnt").fetchall() == [("viewer", "upstream")]


async def test_check_says_where_learning_helps_nothing(tmp_path: Path) -> None:
    """A model without an adapter is shown no examples, and one without a calibration is never unsure with "auto"."""
    async with ScriptedCloud() as cloud:
        daemon = learner(tmp_path, cloud)
        notes = (await command(daemon, "check", "--json")).json()["notes"]
        assert not [note for note in notes if "agents.house.learn" in note]
        daemon.drop_in('[agents.house]\nmin_confidence = "auto"\n', "zz.toml")  # behind cloud.toml
        [note] = (await command(daemon, "check", "--json")).json()["notes"]
        assert "agents.house.learn: no call is unsure" in note
        (tmp_path / "script.toml").write_text(SCRIPT.partition("\n")[2])
        [note] = (await command(daemon, "check", "--json")).json()["notes"]
        assert "agents.house.learn: the model has no adapter" in note
