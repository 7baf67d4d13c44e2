"""`edged top`: once, and live on a real terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import pytest
import pytest_asyncio

from tests.support.cli import LIMIT_S, edged, environment
from tests.support.daemon import ROOT, Daemon, Wired

pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon they share

CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|.)")
RESTORED = "\x1b[?1049l"  # the screen that was there before


class Terminal:
    """A command on a terminal of its own, and what the terminal shows."""

    def __init__(self, *arguments: str, config: Path) -> None:
        self._arguments = arguments
        self._config = config
        self.written = ""

    async def __aenter__(self) -> Self:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
        self.echoes = bool(termios.tcgetattr(slave)[3] & termios.ECHO)
        self.child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edged", *self._arguments),
            env={**environment(self._config), "TERM": "xterm"},
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=lambda: os.login_tty(slave),  # so that Ctrl-C reaches it as a signal
        )
        self._slave = slave  # kept: the terminal's settings are looked at when the command is gone
        os.set_blocking(self._master, False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.child.returncode is None:
            self.child.kill()
            await self.child.wait()
        os.close(self._slave)
        os.close(self._master)

    def press(self, keys: bytes) -> None:
        """Keys of the keyboard."""
        os.write(self._master, keys)

    async def shows(self, text: str) -> None:
        """Wait until the text is written, after what was waited for before."""
        async with asyncio.timeout(LIMIT_S):
            while text not in CONTROL.sub("", self.written):
                self._read()
                await asyncio.sleep(0.02)
        self.written = ""

    async def ends(self) -> int:
        """Wait until the command ends; its exit code."""
        async with asyncio.timeout(LIMIT_S):
            while self.child.returncode is None:
                self._read()  # it could not write its last words else
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self.child.wait()), 0.05)
        self._read()
        return self.child.returncode

    def is_as_before(self) -> bool:
        """The screen and the echo of keys are back."""
        return RESTORED in self.written and bool(termios.tcgetattr(self._slave)[3] & termios.ECHO) == self.echoes

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.written += os.read(self._master, 65_536).decode(errors="replace")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon with a plant."""
    async with Daemon(tmp_path_factory.mktemp("top")) as daemon:
        yield daemon


@pytest.mark.parametrize("arguments", [("top",), ("top", "--once")])
async def test_without_a_terminal_it_prints_what_is_now(daemon: Daemon, arguments: tuple[str, ...]) -> None:
    """A log gets one snapshot, without a single control character."""
    ended = await edged(*arguments, config=daemon.config)
    assert (ended.code, ended.err) == (0, "")
    assert f"on n1, pid {daemon.pid}" in ended.out
    assert "model  small:" in ended.out
    assert "\x1b" not in ended.out


async def test_json_is_the_status(daemon: Daemon) -> None:
    """One document, also without --once."""
    ended = await edged("top", "--json", config=daemon.config)
    assert ended.json()["pid"] == daemon.pid


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"], ids=["q", "Q", "ctrl-c"])
async def test_it_ends_with_q_or_ctrl_c_and_leaves_the_terminal_as_it_was(daemon: Daemon, key: bytes) -> None:
    """0: nothing went wrong."""
    async with Terminal("top", config=daemon.config) as terminal:
        await terminal.shows(f"pid {daemon.pid}")
        terminal.press(key)
        assert await terminal.ends() == 0
        assert terminal.is_as_before()


async def test_it_is_terminated_without_leaving_the_terminal_mute(daemon: Daemon) -> None:
    """SIGTERM, as when a session ends."""
    async with Terminal("top", config=daemon.config) as terminal:
        await terminal.shows(f"pid {daemon.pid}")
        terminal.child.terminate()
        await terminal.ends()
        assert terminal.is_as_before()


async def test_it_shows_what_happens_and_waits_for_a_daemon_that_is_away(tmp_path: Path) -> None:
    """Requests, events of the models, the daemon's end and its return."""
    daemon = Daemon(tmp_path)
    await daemon.start()
    try:
        async with Terminal("top", config=daemon.config) as terminal:
            await terminal.shows("small  unloaded")
            await terminal.shows("q ends")  # a second look: it follows the events by then
            assert (await edged("ask", "hello", config=daemon.config)).code == 0
            await terminal.shows("model_loaded  model=")
            async with Wired(daemon.socket) as client:
                client.send([0, 1, "agent.ask", [{"input": "never ends"}]])
                await terminal.shows("1 running")
            await daemon.kill()
            await terminal.shows("the daemon does not answer")
            await daemon.start()
            await terminal.shows(f"pid {daemon.pid}")
            terminal.press(b"q")
            assert await terminal.ends() == 0
    finally:
        await daemon.__aexit__()
