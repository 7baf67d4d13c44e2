"""The life of one daemon: its parts are started and stopped as a list of steps, and watched in between."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterable

from edged import __version__
from edged.config import Config
from edged.daemon.checks.finding import Finding
from edged.daemon.listeners import Listeners
from edged.daemon.metrics import watch_loop
from edged.daemon.parts import Parts
from edged.daemon.steps import Step, Steps
from edged.errors import ConfigError
from edged.host import clock, malloc, mounts, systemd
from edged.requests.storing import RETRY_S, STORE_REFUSES
from edged.transport.base import Backend, Readiness, SocketAddress, Transport
from edged.types import AuditEntry

logger = logging.getLogger("edged")

EX_OK, EX_SOFTWARE = 0, 70  # sysexits.h
STALL_S = (
    120.0  # without progress a part that has work is stuck: the slowest board computes a chunk of a prompt in a tenth
)
# of it
# How long stops may take before the others go on without them; in all, TimeoutStopSec=30 of the unit has to do.
REQUESTS_S = 12.0  # running requests get 5 s, those that were interrupted 2, replies on their way 2
TRANSPORT_S = 8.0  # the broker gets 5 s for what is being taken in and for the farewell
ENGINE_S = 15.0  # a step of a model ends within one; states that wait for a slow card are some ten MiB
STORE_S = 15.0  # the last checkpoint copies some MiB, at a slow card's pace
READY_WITHIN_S = (
    3.0  # for the broker: on a local network it answers in milliseconds, by TLS on a slow board in a second
)
TRY_S = 60.0  # to open the store, at most: another program's lock is waited for 10 s, and a slow card takes its time


class Daemon:
    """All parts of one configuration, from start to stop.

    Args:
        parts: nothing of them has been started.
        listeners: have the sockets of `addresses` open when it runs.
        wished_at: seconds on CLOCK_BOOTTIME; when the wait for this configuration began.

    Attributes:
        ready: set once requests are taken.
        stuck: a part did not stop. Only the end of the process frees what it holds.
    """

    def __init__(self, parts: Parts, manager: systemd.ServiceManager, listeners: Listeners, wished_at: float) -> None:
        self._parts = parts
        self._manager = manager
        self._listeners = listeners
        self._wished_at = wished_at
        self.ready = asyncio.Event()
        self.stuck = False
        self._stop = asyncio.Event()
        self._reloading = False
        self._steps = Steps(self._list())

    @property
    def settings(self) -> Config:
        """What it runs by."""
        return self._parts.settings

    @property
    def addresses(self) -> tuple[SocketAddress, ...]:
        """Where clients connect to it."""
        return tuple(address for transport in self._parts.transports for address in transport.addresses)

    async def run(self) -> int:
        """Start everything, wait for `end` or a failure, stop everything. Returns the exit status."""
        status = EX_OK
        try:
            await self._until_stopped()
        except ConfigError:
            raise
        except Exception:
            about = {"event": "daemon_failed"}
            logger.exception("a part of the daemon died; it ends, so that it is started again whole", extra=about)
            status = EX_SOFTWARE
        finally:
            await self._shut_down()
        return EX_SOFTWARE if self._steps.failed else status

    def end(self, *, reloading: bool = False) -> None:
        """Let `run` stop everything and return. reloading: another daemon takes over in this process."""
        self._reloading = reloading
        self._stop.set()

    def added_faults(self, found: Iterable[Finding]) -> list[Finding]:
        """See Faults.added_by."""
        return self._parts.faults.added_by(found)

    def reload_failed(self, reason: str) -> None:
        """Publish that this configuration stays in force."""
        self._parts.events.publish("reload_failed", {"reason": reason})

    def readiness(self) -> Readiness:
        """Whether requests are taken, and by which transports they are not."""
        if self._stop.is_set():
            return Readiness(False, {"daemon": "stopping"})
        missing = {each.name: why for each in self._parts.transports if (why := each.missing()) is not None}
        if self.ready.is_set():
            return Readiness(True, missing)
        return Readiness(False, missing or {"daemon": "starting"})

    async def _until_stopped(self) -> None:
        """Start, and return when `end` was called, also during the start. Raises what the start or a part died of."""
        failure = self._parts.failure
        stop = asyncio.create_task(self._stop.wait(), name="edged.stop")
        starting = asyncio.create_task(self._steps.start(), name="edged.start")
        death = asyncio.create_task(self._steps.death(), name="edged.death")
        failed = asyncio.create_task(failure.happened.wait(), name="edged.failure")
        ends = (stop, death, failed)
        try:
            await asyncio.wait([starting, *ends], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                return
            if failure.error is not None:
                raise failure.error
            death.result()
        finally:
            for task in (starting, *ends):
                task.cancel()
            await asyncio.wait([starting, *ends])

    async def _shut_down(self) -> None:
        """Stop in the order in which nothing is lost: take no more, finish or put back, send, disconnect, close."""
        self._stop.set()
        logger.info(
            "making room for the new configuration" if self._reloading else "stopping",
            extra={"event": "daemon_stopping", "reloading": self._reloading},
        )
        if not self._reloading:
            self._manager.stopping()
            self._listeners.close()
        await self._steps.stop()
        self.stuck = bool(self._steps.hung)

    # -- the list --------------------------------------------------------------------------------------------------

    def _list(self) -> list[Step]:
        """All of the life: started from the first to the last, stopped from the last to the first."""
        p = self._parts
        start_engine = functools.partial(p.engine.start, p.governor)  # each needs the other
        return [
            # To the very end: a reload's stop and start are watched like all else.
            *([Step(name="watchdog", run=self._feed_watchdog)] if systemd.watchdog_s() is not None else []),
            Step(name="store", start=self._open_store, stop=p.database.stop, within_s=STORE_S),
            Step(name="events", stop=p.events.stop),
            Step(name="news", start=self._tell_news),
            Step(name="tools", start=p.toolbox.start, stop=p.toolbox.stop),
            Step(name="engine", start=start_engine, stop=p.engine.stop, within_s=ENGINE_S),
            Step(name="recovery", start=p.pipeline.recover),
            Step(name="faults", start=p.faults.start),
            Step(name="lag", run=functools.partial(watch_loop, p.metrics)),
            Step(name="residency", run=p.governor.run),
            Step(name="pressure", run=p.pressure.run),
            Step(name="upstreams", run=p.cloud.run, stop=p.cloud.stop),
            Step(name="served", run=p.served.run, stop=p.served.stop),
            Step(name="requests.pipeline", run=p.pipeline.run),
            Step(name="state", run=functools.partial(p.status.run, self._manager)),
            Step(
                name="faults.look", run=self._look_for_faults
            ),  # its child takes a moment to end: a stop takes no more first
            *(self._transport(each) for each in p.transports),
            Step(name="requests", stop=p.pipeline.stop, within_s=REQUESTS_S),
            Step(name="updates", stop=p.updater.stop),
            Step(name="digests", run=p.hasher.run),
            Step(name="preparing", run=p.preparer.run),
            Step(name="warm", run=self._warm),  # ends before the requests are finished: it would compete with them
            Step(name="taking", start=self._announce, stop=self._stop_taking),
        ]

    async def _look_for_faults(self) -> None:
        """Only once it serves: a start does not wait for it."""
        await self.ready.wait()
        await asyncio.to_thread(malloc.trim)  # what the start alone needed
        await self._parts.faults.run()

    def _transport(self, transport: Transport) -> Step:
        async def start() -> None:
            transport.inherit({address: self._listeners.sockets(address) for address in transport.addresses})
            if (task := await transport.start(self._backend())) is not None:
                self._steps.watch(task)

        return Step(name=transport.name, start=start, stop=transport.stop, within_s=TRANSPORT_S)

    def _backend(self) -> Backend:
        p = self._parts
        ignored = p.metrics.parameters_ignored
        return Backend(p.settings, p.api, p.gate, p.status.state, self.readiness, p.status.metrics, ignored)

    async def _open_store(self) -> None:
        """A disk that is full or fails is tried again, without end: to end with an error would have the service manager
        start a process a second, which finds the same."""
        pause_s, longest_s = RETRY_S
        while True:
            try:
                await self._parts.database.start()
                return
            except STORE_REFUSES as error:
                about = {"event": "store_unusable"}
                logger.error("the store cannot be opened, trying again in %.1f s: %s", pause_s, error, extra=about)
                self._manager.status(f"waits for the disk: the store cannot be opened: {error}")
                self._manager.starting(within_s=2 * pause_s + TRY_S)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    async def _tell_news(self) -> None:
        """What the start found, and that there is one."""
        p = self._parts
        for note in await asyncio.to_thread(p.updater.open):
            logger.warning("%s", note, extra={"event": "update_record_void"})
        if (salvaged := p.database.salvaged) is not None:
            logger.error("%s", salvaged, extra={"event": "store_damaged"})
            p.events.publish("store_damaged", {"aside": salvaged.aside, "rows": salvaged.rows})
        await asyncio.to_thread(_warn_of_the_disk, p.settings)
        p.audit.note(AuditEntry(what="daemon.started", who="edged", about={"version": __version__}))

    async def _warm(self) -> None:
        """What makes later requests quicker and must not hold up the start."""
        await self._parts.engine.settle()
        await self._parts.warmer.run()
        await self._stop.wait()  # a task that is watched does not end by itself

    async def _announce(self) -> None:
        """Say that there is a daemon, when every transport takes requests: the first publish of a device that waits for
        READY=1 must not be lost. Transports that started serve all the while, and one that cannot is not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_WITHIN_S):
                for transport in self._parts.transports:
                    await transport.until_ready()
        settings = self.settings
        self._manager.ready()
        self.ready.set()
        self._manager.status(f"{len(settings.agents)} agents, no model loaded")
        logger.info(
            "edged %s is ready after %.0f ms: agents %s, socket %s",
            __version__,
            1000 * (clock.boot() - self._wished_at),
            ", ".join(settings.agents) or "none",
            settings.socket_path,
            extra={"event": "daemon_ready"},
        )

    async def _stop_taking(self) -> None:
        """Clients that connect from now on are served by the next start, where the socket stays; messages stay with the
        broker."""
        for transport in self._parts.transports:
            try:
                transport.stop_taking()
            except Exception:
                logger.exception("%s goes on taking requests", transport.name, extra={"event": "stop_failed"})
        about = {"reloading": self._reloading}
        self._parts.audit.note(AuditEntry(what="daemon.stopping", who="edged", about=about))

    async def _feed_watchdog(self) -> None:
        """From the loop, and only while the threads get on with their work: what hangs is started again."""
        parts = [("engine", self._parts.engine.progress), ("store", self._parts.database.progress)]
        period_s = (systemd.watchdog_s() or 0.0) / 2
        while True:
            if stuck := systemd.stalled(parts, STALL_S):
                logger.error(
                    "no progress for %.0f s in: %s; the watchdog is not fed",
                    STALL_S,
                    ", ".join(stuck),
                    extra={"event": "watchdog_not_fed"},
                )
            else:
                self._manager.alive()
            await asyncio.sleep(period_s)


def _warn_of_the_disk(settings: Config) -> None:
    mount = mounts.mount_of(settings.state_dir.resolve(), mounts.read())
    if mount is not None and (danger := mounts.danger(mount)) is not None:
        logger.warning(
            "the store is on %s at %s: %s; %s",
            mount.kind,
            mount.point,
            danger.what,
            danger.do,
            extra={"event": "store_on_bad_disk"},
        )
