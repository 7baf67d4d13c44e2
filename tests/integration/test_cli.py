"""The command line as a person and a script use it: child processes, their output and their exit codes."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from edged import __version__
from edged.requests.worker import MAX_RUNNING
from tests.support.cli import edged
from tests.support.daemon import Daemon, Wired

pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon they share

NOBODY = 65534
NAMELESS = 54321  # no user of any system that the tests run on


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon with room for two waiting requests."""
    async with Daemon(tmp_path_factory.mktemp("cli"), config="[queue]\nmax_waiting = 2\n") as daemon:
        yield daemon


async def test_version() -> None:
    """Without a daemon or a configuration."""
    assert await edged("--version") == (0, f"edged {__version__}\n", "")


async def test_ask_prints_the_answer_and_nothing_else(daemon: Daemon) -> None:
    """In one piece, as it is made, and as one JSON document also where streaming is asked for."""
    plain = await edged("ask", "how full is it?", config=daemon.config)
    assert plain == (0, "It is 41 percent full.\n", "")
    streamed = await edged("ask", "--stream", "tell a story", config=daemon.config)
    assert streamed == (0, "one two three\n", "")
    document = await edged(
        *("ask", "tell a story", "--json", "--stream", "--agent", "house", "--id", "j", "--route", "local"),
        config=daemon.config,
    )
    reply = document.json()
    assert (document.code, document.err) == (0, "")
    assert (reply["id"], reply["output"], reply["route"]["reason"]) == ("j", "one two three", "local_asked")


async def test_ask_under_one_id_does_it_once(daemon: Daemon) -> None:
    """What a script does that was cut off."""
    for _ in range(2):
        assert (await edged("ask", "note 1;", "--id", "once", config=daemon.config)).out == "noted 1\n"
    assert daemon.rows("diary") == [("n1",)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("ask", "x", "--agent", "nobody"), 65, "unknown_agent"),
        (("ask", "x", "--route", "cloud"), 65, "bad_request"),
        (("ask", "x", "--deadline", "-1"), 65, "deadline_s"),
        (("ask", ""), 65, "input"),
        (("ask", "never ends", "--deadline", "0.1"), 70, "expired"),
        (("requests", "show", "nothing"), 65, "nothing"),
        (("requests", "cancel", "nothing"), 65, "nothing"),
        (("requests", "ls", "--state", "flying"), 65, "received"),
    ],
)
async def test_failure_has_a_sentence_and_its_exit_code(
    daemon: Daemon, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """stdout stays free for the answer."""
    ended = await edged(*arguments, config=daemon.config)
    assert ended.code == code
    assert said in ended.err
    assert ended.err.startswith("edged: ")
    assert ended.out == ""


async def test_refusal_is_one_json_document_where_json_is_asked_for(daemon: Daemon) -> None:
    """A script finds the code in it."""
    ended = await edged("ask", "--json", "x", "--agent", "nobody", config=daemon.config)
    assert ended.code == 65
    assert ended.json()["error"]["code"] == "unknown_agent"
    assert ended.json()["status"] == "refused"
    late = await edged("ask", "--json", "never ends", "--deadline", "0.1", config=daemon.config)
    assert late.code == 70
    assert (late.json()["status"], late.json()["error"]["code"]) == ("expired", "expired")


async def test_full_queue_is_something_to_try_again(daemon: Daemon) -> None:
    """75, EX_TEMPFAIL."""
    async with Wired(daemon.socket) as client:
        for number in range(MAX_RUNNING + 2):
            client.send([0, number, "agent.ask", [{"input": "never ends"}]])
            await _counted(client, number + 1)
        ended = await edged("ask", "x", config=daemon.config)
        assert (ended.code, ended.out) == (75, "")
        assert "busy" in ended.err
    async with Wired(daemon.socket) as client:
        await _counted(client, 0)


async def _counted(client: Wired, number: int) -> None:
    """Wait until so many requests are unfinished."""
    async with asyncio.timeout(20):
        while True:
            counted = (await client.call(1000, "status"))[1]["queue"]["requests"]
            if counted.get("received", 0) + counted.get("running", 0) == number:
                return


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("ask",), ("ask", "x", "--colour"), ("ask", "x", "--deadline", "soon"), ("run", "--nope"), ()],
)
async def test_wrong_usage_is_64(arguments: tuple[str, ...]) -> None:
    """EX_USAGE, also for the short way that `run` takes."""
    ended = await edged(*arguments)
    assert ended.code == 64
    assert "sage" in ended.err + ended.out


async def test_wrong_usage_is_one_document_where_json_is_asked_for() -> None:
    """A script that wrote an option wrong does not have to read stderr."""
    ended = await edged("ask", "x", "--json", "--colour")
    assert ended.code == 64
    assert ended.json()["error"]["code"] == "usage"
    assert "--colour" in ended.json()["error"]["message"]


async def test_no_daemon_is_69(tmp_path: Path) -> None:
    """By --socket, by the configuration, and where a killed daemon left its socket."""
    ended = await edged("ask", "x", "--socket", str(tmp_path / "none.sock"))
    assert ended.code == 69
    assert str(tmp_path / "none.sock") in ended.err
    async with Daemon(tmp_path) as daemon:
        await daemon.kill()
        for command in (("status",), ("top",), ("requests", "ls"), ("tools", "ls"), ("route", "x"), ("ask", "x")):
            ended = await edged(*command, config=daemon.config)
            assert (ended.code, ended.out) == (69, "")
            assert str(daemon.socket) in ended.err
            assert "edged run" in ended.err
        document = await edged("status", "--json", config=daemon.config)
        assert document.code == 69
        assert document.json()["error"]["code"] == "unreachable"


@pytest.mark.parametrize(
    "command",
    [
        ("ask", "how full is it?"),
        ("status",),
        ("top",),
        ("tools", "ls"),
        ("tools", "call", "tank_level", "tank=south"),
        ("requests", "ls"),
        ("requests", "show", "nothing"),
        ("requests", "cancel", "nothing"),
        ("requests", "requeue", "nothing"),
        ("route", "x"),
        ("models", "rollback", "nothing"),
        ("models", "update", "nothing"),
    ],
    ids=" ".join,
)
async def test_every_command_finds_the_daemon_by_config(
    daemon: Daemon, command: tuple[str, ...], tmp_path: Path
) -> None:
    """What was typed goes before the environment."""
    elsewhere = {"EDGED_SOCKET": str(tmp_path / "none.sock")}
    ended = await edged(*command, "--config", str(daemon.config), variables=elsewhere)
    assert ended.code == (65 if "nothing" in command else 0), ended.err


async def test_config_that_is_named_and_wrong_is_78(tmp_path: Path) -> None:
    """It was to name the socket: no other daemon is asked instead."""
    missing = await edged("status", "--config", str(tmp_path / "none.toml"))
    assert (missing.code, "none.toml" in missing.err) == (78, True)


async def test_models_of_the_configuration_that_is_named(tmp_path: Path) -> None:
    """Its folder, not that of the environment."""
    daemon = Daemon(tmp_path)
    listed = await edged(
        *("models", "ls", "--json", "--config", str(daemon.config)), variables={"EDGED_MODELS_DIR": "/nowhere"}
    )
    assert listed.json()["models_dir"] == f"{tmp_path}/state/models"


AS_NOBODY = f"""
import contextlib, os, sys, typer.rich_utils, rich.traceback
from edged.cli import main
wanted, sys.argv = sys.argv, ["edged", "ask", "x", "--socket", "/nowhere"]
with contextlib.suppress(SystemExit):
    main()  # loads what somebody without rights may not read in this folder
os.setgroups([])
uid = int(os.environ.get("AS_UID", {NOBODY}))
os.setgid(uid)
os.setuid(uid)
sys.argv = wanted
main()
"""


@pytest.mark.parametrize("mode", ["0660", "0666"])
async def test_stranger_is_told_to_join_the_group_and_77(tmp_path: Path, mode: str) -> None:
    """EX_NOPERM, whether the kernel or the daemon keeps it out."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    for folder in (tmp_path, *tmp_path.parents[:-2]):  # pytest keeps others out of its folders
        folder.chmod(0o755)
    async with Daemon(tmp_path, config=f'[ipc]\nmode = "{mode}"\n') as daemon:
        ended = await edged("ask", "x", "--socket", str(daemon.socket), program=AS_NOBODY)
        assert (ended.code, ended.out) == (77, ""), ended.err
        assert "group" in ended.err


async def test_user_without_a_name_is_called_by_number(tmp_path: Path) -> None:
    """As in a container that is started with a uid: no entry among the users, no $USER, no home."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    program = f"import os\nfor name in ('LOGNAME', 'USER', 'HOME'):\n    os.environ.pop(name, None)\n{AS_NOBODY}"
    nameless = {"AS_UID": str(NAMELESS)}
    async with Daemon(tmp_path, config='[ipc]\nmode = "0660"\n') as daemon:
        os.chown(daemon.socket, -1, 1)  # a group that has a name, and is not root's
        ended = await edged("status", "--socket", str(daemon.socket), program=program, variables=nameless)
        assert (ended.code, ended.out) == (77, ""), ended.err
        assert f"uid {NAMELESS}" in ended.err
    listed = await edged("models", "ls", program=program, variables=nameless)
    assert listed.code == 64
    assert "--models-dir" in listed.err


async def test_status_for_people_and_for_scripts(daemon: Daemon) -> None:
    """Who, how much memory, which requests and models."""
    plain = await edged("status", config=daemon.config)
    assert plain.code == 0
    assert re.search(rf"edged {re.escape(__version__)} on n1, pid {daemon.pid}", plain.out)
    assert re.search(r"memory .*\d+ MiB private", plain.out)
    assert "model  small:" in plain.out
    state = (await edged("status", "--json", config=daemon.config)).json()
    assert (state["pid"], state["mqtt"]) == (daemon.pid, None)


async def test_requests_are_listed_shown_and_cancelled(daemon: Daemon) -> None:
    """By rid and by the client's id."""
    async with Wired(daemon.socket) as client:
        client.send([0, 1, "agent.ask", [{"input": "never ends", "id": "long"}]])
        await _counted(client, 1)
        rows = (await edged("requests", "ls", "--json", "--limit", "1", config=daemon.config)).json()
        assert [(row["id"], row["state"]) for row in rows] == [("long", "running")]
        listed = await edged("requests", "ls", "--state", "running", config=daemon.config)
        assert rows[0]["rid"] in listed.out
        assert "never ends" in listed.out
        shown = await edged("requests", "show", "long", "--json", config=daemon.config)
        assert shown.json()["status"] == "running"
        ended = await edged("requests", "cancel", rows[0]["rid"], config=daemon.config)
        assert ended == (0, f"{rows[0]['rid']}: cancelled\n", "")
        assert (await client.answer(1))[1]["status"] == "cancelled"
        shown = await edged("requests", "show", "long", "--json", config=daemon.config)
        assert shown.json()["error"]["code"] == "cancelled"


async def test_check_says_what_is_there_and_what_cannot_work(tmp_path: Path) -> None:
    """A statement that fits no table is found without running it."""
    daemon = Daemon(tmp_path)
    fine = await edged("check", "--config", str(daemon.config))
    assert (fine.code, fine.err) == (0, "")
    assert f"{daemon.config}: 1 agents, 3 tools, 1 models: all right" in fine.out
    document = (await edged("check", "--json", "--config", str(daemon.config))).json()
    assert (document["tools"], document["problems"], document["error"]) == (3, [], None)
    daemon.config.write_text(daemon.config.read_text().replace("tank_levels", "tanks"))
    wrong = await edged("check", "--config", str(daemon.config))
    assert (wrong.code, wrong.out) == (78, "")
    assert "tools.tank_level" in wrong.err
    assert "no such table" in wrong.err
    told = await edged("check", "--json", "--config", str(daemon.config))
    assert (told.code, told.json()["error"]["code"]) == (78, "config")
    assert ["no such table" in problem for problem in told.json()["problems"]] == [True]


async def test_check_finds_a_parameter_that_no_grammar_can_be_made_of(tmp_path: Path) -> None:
    """That takes trying; each is told once."""
    tool = '[tools.{0}]\ndescription = "d"\ndatabase = "plant"\nsql = "SELECT :a"\nparameters.a = {1}\n'
    more = tool.format("away", '{ "$ref" = "https://schemas.example/a" }') + tool.format(
        "many", "{ maxItems = 10000000 }"
    )
    daemon = Daemon(tmp_path, config=more)
    told = (await edged("check", "--json", "--config", str(daemon.config))).json()["problems"]
    assert len(told) == 2
    assert "tools.many.parameters: `properties.a.maxItems`: 10000000 is more than 1000000" in told[0]
    assert "tools.away.parameters: " in told[1]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("[queue]\nmax_waiting = 0\n", "queue.max_waiting"),
        ("[queue]\nmax_wating = 5\n", "queue.max_wating"),
        ('[agents.barn]\nmodel = "large"\n', "agents.barn.model"),
        ('[mqtt]\nshared_group = "g"\n', "not available yet"),
        ('[roles.viewer]\ntools = ["saw"]\n', "roles.viewer.tools"),
        ("[queue\n", "edged.toml:"),
        ('[models.other]\nsource = "catalog:nothing"\n', "models.other.source"),
        (f'[http]\nlisten = ["unix:{"x" * 108}"]\n', "http.listen: the path of a socket has at most 107 bytes"),
        ('[mqtt]\nusername = "u"\npassword_file = "/nowhere/password"\n', "mqtt.password_file"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
async def test_broken_configuration_is_78_and_names_file_and_key(
    tmp_path: Path, command: str, broken: str, said: str
) -> None:
    """The same sentence from both commands, and nothing was started or made."""
    daemon = Daemon(tmp_path, config=broken)
    ended = await edged(command, "--config", str(daemon.config))
    assert (ended.code, ended.out) == (78, "")
    assert str(daemon.config) in ended.err
    assert said in ended.err
    assert not (tmp_path / "state").exists()


async def test_missing_configuration_is_78(tmp_path: Path) -> None:
    """The sentence says how to name another."""
    ended = await edged("run", "--config", str(tmp_path / "none.toml"))
    assert ended.code == 78
    assert "none.toml" in ended.err
    assert "--config" in ended.err
    checked = await edged("check", "--json", "--config", str(tmp_path / "none.toml"))
    assert (checked.code, checked.json()["error"]["code"]) == (78, "config")
