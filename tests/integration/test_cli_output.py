"""Where the command line's output goes, and where its input comes from: pipes, full disks, terminals."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.cli import LIMIT_S, edged, environment
from tests.support.daemon import ROOT, SCRIPT, Daemon, entry

pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon they share

TITLE = "\x1b]0;owned\x07"  # sets a terminal's title


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon whose model also says what a terminal would act upon."""
    script = SCRIPT + entry("play a trick", text="now TITLE done".replace("TITLE", TITLE))
    async with Daemon(tmp_path_factory.mktemp("output"), script=script) as daemon:
        yield daemon


async def started(*arguments: str, config: Path, stdout: int) -> asyncio.subprocess.Process:
    """A command whose stdout is a file descriptor of the test's."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edged", *arguments),
        env=environment(config),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("arguments", [("ask", "never ends", "--stream"), ("requests", "ls"), ("status", "--json")])
async def test_reader_that_goes_away_ends_the_command_quietly(daemon: Daemon, arguments: tuple[str, ...]) -> None:
    """As `head` does to every other tool: of SIGPIPE, without a word about daemons."""
    reading, writing = os.pipe()
    child = await started(*arguments, config=daemon.config, stdout=writing)
    os.close(writing)
    if "--stream" in arguments:
        assert await asyncio.to_thread(os.read, reading, 5)
    os.close(reading)
    _, err = await asyncio.wait_for(child.communicate(), LIMIT_S)
    assert (child.returncode, err) == (-signal.SIGPIPE, b"")


async def test_full_disk_is_said_and_70(daemon: Daemon) -> None:
    """One sentence, no traceback, and nothing about a daemon."""
    full = os.open("/dev/full", os.O_WRONLY)
    child = await started("ask", "hello", "--stream", config=daemon.config, stdout=full)
    os.close(full)
    _, err = await asyncio.wait_for(child.communicate(), LIMIT_S)
    assert child.returncode == 70
    assert err.decode() == "edged: internal: the output cannot be written: No space left on device\n"


async def test_dash_reads_the_question_from_stdin(daemon: Daemon) -> None:
    """Without the line's end that `echo` adds; the other ones are part of it."""
    ended = await edged("ask", "-", config=daemon.config, stdin="wie hei\u00dft\ndu?\n".encode())
    assert ended == (0, "wie hei\u00dft\ndu?\n", "")
    assert (await edged("ask", "-", config=daemon.config, stdin=b"how full is it?")).out == "It is 41 percent full.\n"


@pytest.mark.parametrize(
    ("stdin", "said"),
    [(b"", "input"), (b"\xff\xfe", "UTF-8"), (b"a" * (256 * 1024 + 1), "too_large")],
    ids=["empty", "binary", "endless"],
)
async def test_stdin_that_is_no_question_is_65(daemon: Daemon, stdin: bytes, said: str) -> None:
    """Empty, no text, or more than any model reads."""
    ended = await edged("ask", "-", config=daemon.config, stdin=stdin)
    assert (ended.code, ended.out) == (65, "")
    assert said in ended.err


async def test_argument_that_is_no_text_is_65(daemon: Daemon) -> None:
    """Bytes of another encoding, as an old script passes them."""
    ended = await edged("ask", os.fsdecode(b"caf\xe9"), config=daemon.config)
    assert (ended.code, ended.out) == (65, "")
    assert "UTF-8" in ended.err


async def test_streamed_answer_is_whole_where_nothing_was_streamed(daemon: Daemon) -> None:
    """The answer of a `say`, and one that was there already: the second time nothing is generated."""
    said = await edged("ask", "--stream", "open the north valve", config=daemon.config)
    assert said == (0, "Valve north is now open.\n", "")
    for _ in range(2):
        told = await edged("ask", "--stream", "tell a story", "--id", "told", config=daemon.config)
        assert told == (0, "one two three\n", "")


async def test_terminal_is_not_acted_upon_by_what_a_model_says(daemon: Daemon) -> None:
    """Escape sequences are shown, not obeyed; a program gets the bytes as they are."""
    piped = await edged("ask", "play a trick", config=daemon.config)
    assert TITLE in piped.out
    master, slave = pty.openpty()
    child = await started("ask", "play a trick", config=daemon.config, stdout=slave)
    os.close(slave)
    assert await asyncio.wait_for(child.wait(), LIMIT_S) == 0
    shown = os.read(master, 1000).decode()
    os.close(master)
    assert "now \N{REPLACEMENT CHARACTER}]0;owned\N{REPLACEMENT CHARACTER} done" in shown
    assert "\x1b" not in shown
