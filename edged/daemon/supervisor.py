"""`edged run`: one process, in which one daemon follows the other as the configuration changes.

What outlives a reload is here: the signals, the lock on the state folder, the listening sockets, the talk with the
service manager. A reload reads and checks the new configuration beside the running daemon; only when everything about
it is right does the daemon wind down, as at a stop, and its successor start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from edged import config
from edged.config import Config
from edged.daemon import checks
from edged.daemon.assembly import assemble
from edged.daemon.lifecycle import Daemon
from edged.daemon.listeners import Listeners
from edged.errors import ConfigError
from edged.host import clock, last_end, log, process, systemd
from edged.transport.sockets import group_of

logger = logging.getLogger("edged")

EX_OK, EX_SOFTWARE, EX_CONFIG = 0, 70, 78  # sysexits.h
M_ARENA_MAX = -8  # malloc.h
# Other processes find the daemon and its state by them: they stay for the life of the process.
FIXED = (("node", "state_dir"), ("node", "runtime_dir"))


def run(path: str | None) -> int:
    """`edged run`: the daemon in the foreground until SIGTERM or SIGINT. Returns the exit status."""
    log.set_up(under_systemd=systemd.under_systemd())
    _use_one_arena()
    try:
        with _threads_watched():
            return asyncio.run(Supervisor(path).run())
    except ConfigError as error:
        logger.error("%s", error, extra={"event": "config_wrong"})
        return EX_CONFIG


class Supervisor:
    """Starts a daemon, and its successor at every SIGHUP, until it is told to stop or one fails."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._listeners = Listeners(systemd.listen_fds())  # first of all: child processes must not find them
        self._manager = systemd.ServiceManager()
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._stuck = False

    async def run(self) -> int:
        """Returns the exit status; ConfigError where the first configuration is wrong."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        try:
            settings = await self._read()
            first = self._daemon(settings, clock.boot() - process.age_s())
            with _locked(settings.state_dir):
                await self._listen(first)
                living = self._live(first)
                del first  # it is as large as its successors, and ends with the first reload
                return await living
        finally:
            self._listeners.close()
            if self._stuck:  # the interpreter would wait for its threads without end
                logging.shutdown()
                os._exit(EX_SOFTWARE)

    async def _live(self, daemon: Daemon | None) -> int:
        status = EX_OK
        while daemon is not None and status == EX_OK and not self._stop.is_set():
            self._listeners.keep_only(daemon.addresses)
            life, living = asyncio.create_task(daemon.run(), name="edged.daemon"), daemon
            daemon = await self._outlive(living, life)
            status = await life
            self._stuck = living.stuck
            del living, life
        return status

    async def _outlive(self, daemon: Daemon, life: asyncio.Task[int]) -> Daemon | None:
        """Wait until the daemon ends, or has to; returns its successor."""
        stop = asyncio.create_task(self._stop.wait(), name="edged.stop")
        try:
            while True:
                successor = asyncio.create_task(self._successor(daemon), name="edged.reload")
                await asyncio.wait([life, stop, successor], return_when=asyncio.FIRST_COMPLETED)
                if life.done() or stop.done():
                    successor.cancel()
                    await asyncio.wait([successor])
                    daemon.end()
                    return None
                if follows := successor.result():
                    daemon.end(reloading=True)
                    return follows
        finally:
            stop.cancel()

    async def _successor(self, daemon: Daemon) -> Daemon | None:
        """Wait until a reload is wanted, and make it; None where the configuration is wrong, and nothing changes."""
        await daemon.ready.wait()
        await self._reload.wait()
        self._reload.clear()
        wished_at = clock.boot()
        self._manager.reloading()
        logger.info("reading the configuration again", extra={"event": "reload_begun"})
        try:
            settings = await self._read()
            _check_fixed(daemon.settings, settings)
            if problems := await checks.tools_that_fail(settings):
                raise problems[0]
            successor = self._daemon(settings, wished_at)
            await self._listen(successor)  # last: only then is there nothing to take back
        except ConfigError as error:
            logger.error("not reloaded, the configuration of before stays: %s", error, extra={"event": "reload_failed"})
            self._refuse(daemon, str(error))
            return None
        except Exception as error:
            logger.exception("not reloaded, the configuration of before stays", extra={"event": "reload_failed"})
            self._refuse(daemon, f"an error inside edged: {error!r}")
            return None
        self._manager.trouble = ""
        return successor

    def _refuse(self, daemon: Daemon, reason: str) -> None:
        self._manager.trouble = f"not reloaded: {reason}"
        self._manager.ready()
        daemon.reload_failed(reason)

    async def _read(self) -> Config:
        settings, problems = await checks.with_signatures(await asyncio.to_thread(config.load, self._path))
        if problems:
            raise problems[0]
        return settings

    def _daemon(self, settings: Config, wished_at: float) -> Daemon:
        """One that can be run once `_listen` is done. ConfigError where something it is made of is wrong."""
        return Daemon(assemble(settings), self._manager, self._listeners, wished_at)

    async def _listen(self, daemon: Daemon) -> None:
        group = group_of(daemon.settings)
        await asyncio.to_thread(self._listeners.open, daemon.settings, daemon.addresses, group)


def _check_fixed(old: Config, new: Config) -> None:
    for table, key in FIXED:
        before, after = (getattr(getattr(settings, table), key) for settings in (old, new))
        if before != after:
            problem = f"{after!r}: it stays {before!r} while the daemon runs; restart it instead"
            raise new.error((table, key), problem)


def _use_one_arena() -> None:
    """Let all threads allocate from one heap. glibc gives each its own, and what a model leaves between the lines of
    several heaps does not go back to the kernel when it is unloaded: 40 MiB with the default model."""
    with contextlib.suppress(AttributeError):  # another C library has no such thing
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


@contextlib.contextmanager
def _threads_watched() -> Iterator[None]:
    """A thread that dies takes the process along, as a task does: callers would wait for its answer for ever, and the
    watchdog is fed. At once, because an orderly end would wait for it, too: what was promised is on the medium."""

    def died(what: threading.ExceptHookArgs) -> None:
        name = what.thread.name if what.thread else "one that is gone"
        logger.critical("the thread %s died", name, exc_info=what.exc_value, extra={"event": "thread_died"})
        last_end.admit(f"the thread {name} died")
        os._exit(EX_SOFTWARE)

    before, threading.excepthook = threading.excepthook, died
    try:
        yield
    finally:
        threading.excepthook = before


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make this process the only daemon on a state folder, until it ends however it ends. Two on one store would each
    take the other's running requests for its own crash."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(folder / "edged.lock", "w", encoding="utf-8", opener=_private)  # noqa: SIM115  # held to the end
    except OSError as error:
        raise ConfigError(str(folder), "node.state_dir", f"cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(str(folder), "node.state_dir", "another edged is running on it") from None
        yield
