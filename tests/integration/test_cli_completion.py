"""Shell completion: what the shell gets when somebody presses Tab."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from edged.models import catalog
from tests.support.cli import LIMIT_S, edged, environment
from tests.support.daemon import ROOT, Daemon
from tests.support.msgpack_server import StandIn

pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon they share


async def offered(words: str, config: Path | None = None) -> list[str]:
    """What bash is offered for the last of the words."""
    shell = {"_EDGED_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edged"),
        env={**environment(config), **shell},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(), LIMIT_S)
    assert err == b""
    return out.decode().split()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon that was asked something."""
    async with Daemon(tmp_path_factory.mktemp("completion")) as daemon:
        assert (await edged("ask", "hello", "--id", "greeting", config=daemon.config)).code == 0
        yield daemon


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("edged ask --agent ", ["house"]),
        ("edged tools call t", ["tank_level"]),
        ("edged requests show g", ["greeting"]),
        ("edged ask --route l", ["local"]),
        ("edged route --privacy ", ["any", "device"]),
        ("edged requests ls --state wait", ["waiting_link"]),
        ("edged tools ", ["call", "ls"]),
    ],
)
async def test_names_the_daemon_knows_are_offered(daemon: Daemon, words: str, names: list[str]) -> None:
    """Those that begin as what is typed."""
    assert sorted(await offered(words, daemon.config)) == names


async def test_rid_of_a_request_is_offered_too(daemon: Daemon) -> None:
    """Not every request has an id of its client's."""
    rows = (await edged("requests", "ls", "--json", config=daemon.config)).json()
    assert rows[0]["rid"] in await offered("edged requests cancel ", daemon.config)


async def test_models_are_offered_without_a_daemon() -> None:
    """They can be pulled before there is one."""
    assert set(await offered("edged models pull ")) == set(catalog.catalog())


@pytest.mark.parametrize("words", ["edged ask --agent ", "edged tools call ", "edged requests show "])
async def test_without_a_daemon_nothing_is_offered_and_nothing_is_said(words: str) -> None:
    """A shell has no place for a complaint."""
    assert await offered(words) == []


async def test_daemon_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """Somebody has a finger on the Tab key."""
    async with StandIn(tmp_path, {}, silent=("tools.list",)) as daemon:
        began = time.monotonic()
        assert await offered(f"edged tools call --socket {daemon.path} ") == []
        assert daemon.calls == [("tools.list", {})]
        assert time.monotonic() - began < 5  # most of it is the start of the interpreter


async def test_completion_can_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script for a shell, as typer makes it; which shell the test itself was started from does not count."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    ended = await edged("--show-completion", "bash")
    assert ended.code == 0
    assert "_EDGED_COMPLETE" in ended.out
