"""The composition root: the only place that knows every concrete class, the order of start and stop, the signals."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import grp
import logging
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from edged import __version__, config
from edged.access.gate import Gate
from edged.access.policy import Policy
from edged.agent.dialects.chat_template import Dialect
from edged.agent.dispatch import Dispatcher
from edged.agent.minds.base import Resources
from edged.agent.prompts import PromptBook
from edged.agent.warm import Warmer
from edged.api import Api
from edged.api.events import Events
from edged.api.models import Models
from edged.api.requests import Requests
from edged.api.tools import Tools
from edged.completions.embeddings import Embeds
from edged.completions.local import Chats
from edged.config import Config
from edged.daemon.listeners import Address, Listeners
from edged.daemon.metering import Meter, MeteredEngine
from edged.daemon.metrics import Metrics, Snapshot, watch_loop
from edged.engines import scripted
from edged.engines.llama import LlamaEngine, gguf, predict
from edged.engines.llama.snapshots import Snapshots
from edged.engines.llama.ticket import ModelStats
from edged.engines.onnx import OnnxEngine
from edged.engines.onnx import sizes as onnx_sizes
from edged.engines.registry import EmbeddingEngine, Engines, Generator, Runtime, embeds_only
from edged.errors import ConfigError, ModelUnavailable
from edged.host import clock, last_end, mounts, systemd
from edged.host import memory as probe
from edged.host.thermal import Strain
from edged.models.files import model_aliases, not_installed
from edged.models.updates.ledger import Ledger
from edged.models.updates.updater import Updater
from edged.requests.pipeline import Pipeline
from edged.residency.governor import Governor
from edged.residency.pressure.low_memory import Floor
from edged.residency.pressure.pressure import Parts, Pressure, PressureTiming
from edged.residency.sizing import ByEngine, Estimate, Sizer, Weightless
from edged.store import lifecycle, requests
from edged.store.audit import AuditLog
from edged.store.database import Database
from edged.store.recovery import mend
from edged.store.requests import Accepted
from edged.store.schema import MIGRATIONS
from edged.store.sizes import Sizes
from edged.store.spending import Spending
from edged.tools.python import landlock
from edged.tools.toolbox import Toolbox
from edged.transport.http.server import HttpTransport
from edged.transport.mqtt import MqttTransport, Settings
from edged.transport.unix.methods import Methods
from edged.transport.unix.server import UnixTransport
from edged.types import JSON, Alias, Ask, AuditEntry, EngineKind, ModelSpec, ModelState, Speed
from edged.upstreams import Cloud, Served

logger = logging.getLogger("edged")

EX_OK, EX_SOFTWARE = 0, 70  # sysexits.h
STALL_S = 120.0  # a part with work that shows no progress for so long is stuck: the slowest board computes a chunk of
# a prompt in a tenth of it
PRESSURE_PACE = PressureTiming()
STATE_S = 30.0  # CONTRACT section 4: how often base/state is refreshed
STATE_PACE_S = 1.0  # and how soon after a change; under load it changes with every request
AUDITED = {  # of the events: what changes models or the daemon, or shows that somebody had to do without
    "model_load_failed",
    "model_loaded",
    "model_rolled_back",
    "model_switched",
    "model_unloaded",
    "model_update_failed",
    "model_updated",
    "reload_failed",
    "request_quarantined",
    "store_damaged",
}


class Daemon:
    """All parts, wired, for one configuration. Its Python tools are resolved.

    Args:
        listeners: have the sockets of `addresses(settings)` open when it runs.
        wished_at: seconds on CLOCK_BOOTTIME; when whoever wanted this configuration began to wait for it.
    """

    def __init__(
        self, settings: Config, manager: systemd.ServiceManager, listeners: Listeners, wished_at: float
    ) -> None:
        self._config = settings
        self._manager = manager
        self._listeners = listeners
        self._wished_at = wished_at
        self.ready = asyncio.Event()
        self._started_at = time.monotonic()
        self._stop = asyncio.Event()
        self._reloading = False
        self._failed: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()
        self._counts: dict[str, JSON] = {}
        self._metrics = Metrics(
            agents=settings.agents,
            models=(*settings.models, *(upstream.model for upstream in settings.upstreams.values())),
            tools=settings.tools,
            sources=self._snapshot,
        )
        self._meter = Meter(self._metrics)
        self._gate = Gate(
            Policy(settings.agents, settings.roles, settings.access), audit=self._note, is_tool=self._is_tool
        )
        aliases = {  # of the models that take memory here
            name: alias for name, alias in model_aliases(settings).items() if not settings.models[name].is_served
        }
        self._sources = {
            spec.path: source
            for name, alias in aliases.items()
            for spec, source in zip(alias.variants, settings.models[name].sources, strict=True)
        }
        self._specs = [spec for alias in aliases.values() for spec in alias.variants]
        self._snapshots = Snapshots(settings.snapshots_dir, settings.snapshot_bytes)
        self._engine = self._make_engine()
        self._database = Database(settings.store_path, MIGRATIONS, mend=mend.mend, on_damage=self._store_is_damaged)
        self._audit = AuditLog(self._database)
        self._governor = Governor(
            aliases,
            self._engine,
            sizer=self._make_sizer(),
            budget_bytes=settings.budget_bytes(probe.board_bytes()),
            reserve_bytes=settings.reserve_bytes,
            idle_unload_s=settings.memory.idle_unload_s,
            lost_s=self._lost_s,
            tell=self._tell,
        )
        self._engine.residency = self._governor
        self._mqtt = self._make_mqtt()
        self._toolbox = Toolbox(
            settings.tools,
            settings.databases,
            self._mqtt,
            settings.tools_dir,
            landlock.around(settings),
            called=self._metrics.tool_called,
        )
        self._cloud = Cloud(
            settings.upstreams,
            Spending(self._database),
            tell=self._tell,
            changed=self._link_changed,
            answered=self._meter.answered,
        )
        self._served = Served(settings.served, tell=self._tell, answered=self._meter.answered)
        engine = MeteredEngine(self._engine, self._metrics, lambda model: self._governor.spec(model).variant)
        speak = PromptBook(settings.agents, settings.tools, self._template, settings.may_escalate, file_of=self._file)
        self._pipeline = Pipeline(
            settings,
            self._database,
            Dispatcher(
                Resources(
                    config=settings,
                    engine=engine,
                    served=self._served,
                    cloud=self._cloud,
                    speak=speak,
                    audit=self._note,
                )
            ),
            self._toolbox,
            self._cloud,
            self._gate,
            deliverers={"mqtt": self._mqtt} if self._mqtt else {},
            last_end=functools.partial(last_end.take, Path(settings.node.runtime_dir)),
            tell=self._tell,
            changed=self._changed.set,
            settled=self._meter.settled,
            speeds=self._speeds,
        )
        self._warmer = Warmer(settings.models, settings.agents, engine, speak, load=self._preload, tell=self._tell)
        self._warming: list[asyncio.Task[Any]] = []
        self._unix = UnixTransport(
            settings.socket_path, mode=int(settings.ipc.mode, 8), group=socket_group(settings), gate=self._gate
        )
        waiting = settings.queue.max_waiting
        chats = Chats(
            engine, settings.models, self._template, max_waiting=waiting, served=self._served, file_of=self._file
        )
        embeds = Embeds(engine, settings.models, max_waiting=waiting)
        self._updater = self._make_updater(aliases)
        self._api = Api(
            requests=Requests(settings, self._pipeline, self._gate),
            models=Models(settings, self._governor, chats, embeds, self._updater, served=self._served, gate=self._gate),
            tools=Tools(settings, self._toolbox, self._gate),
            events=Events(settings, self._status),
        )
        self._pressure = self._make_pressure(chats, embeds)
        self._unix.methods = Methods(self._api).table()
        self._http = HttpTransport(
            settings.http_listeners,
            mode=int(settings.ipc.mode, 8),
            group=socket_group(settings),
            api_keys_file=settings.http.api_keys_file,
            gate=self._gate,
            hosts=settings.http.hosts,
            origins=settings.http.origins,
            api=self._api,
            unready=self._unready,
            metrics=self._metrics.render,
        )

    @property
    def settings(self) -> Config:
        """What it runs by."""
        return self._config

    async def run(self) -> int:
        """Start everything, wait for `end` or a failure, stop everything. Returns the exit status."""
        self._failed = asyncio.get_running_loop().create_future()
        tasks: list[asyncio.Task[Any]] = []
        status = EX_OK
        feeding: list[asyncio.Task[Any]] = []  # to the very end: a reload's stop and start are watched like all else
        if (period := systemd.watchdog_s()) is not None:
            self._spawn(feeding, self._feed_watchdog(period / 2), "edged.watchdog")
        try:
            await self._start(tasks)
            await self._until_stopped([*tasks, *feeding])
        except ConfigError:
            raise
        except Exception:
            logger.exception("a part of the daemon died; it ends, so that it is started again whole")
            status = EX_SOFTWARE
        finally:
            await self._shut_down(tasks)
            await _end(feeding)
        return status

    def end(self, *, reloading: bool = False) -> None:
        """Let `run` stop everything and return. reloading: another daemon takes over in this process."""
        self._reloading = reloading
        self._stop.set()

    def reload_failed(self, reason: str) -> None:
        """Tell everybody that this configuration stays in force."""
        self._tell("reload_failed", {"reason": reason})

    async def _start(self, tasks: list[asyncio.Task[Any]]) -> None:
        await self._database.start()
        for note in await asyncio.to_thread(self._updater.open):
            logger.warning("%s", note)
        if (salvaged := self._database.salvaged) is not None:
            logger.error("%s", salvaged)
            self._tell("store_damaged", {"aside": salvaged.aside, "rows": salvaged.rows})
        await asyncio.to_thread(self._warn_of_the_disk)
        self._note(AuditEntry(what="daemon.started", who="edged", about={"version": __version__}))
        await self._engine.start()
        await self._pipeline.recover()
        for name, problem in (await self._toolbox.check()).items():
            logger.warning("tool %s cannot work now: %s", name, problem)
        self._warn_of_missing_models()
        [self._unix.inherited] = self._listeners.sockets(self._config.socket_path)
        await self._unix.start()
        self._http.inherited = {each: self._listeners.sockets(each) for each in self._config.http_listeners}
        await self._http.start()
        self._spawn(tasks, watch_loop(self._metrics), "edged.lag")
        self._spawn(tasks, self._governor.run(), "edged.residency")
        self._spawn(tasks, self._pressure.run(), "edged.pressure")
        self._spawn(tasks, self._cloud.run(), "edged.upstreams")
        self._spawn(tasks, self._served.run(), "edged.served")
        self._spawn(tasks, self._pipeline.run(), "edged.requests.pipeline")
        self._spawn(tasks, self._publish_state(), "edged.state")
        if self._mqtt:
            tasks.append(self._mqtt.start())
        self._manager.ready()
        self.ready.set()
        self._manager.status(f"{len(self._config.agents)} agents, no model loaded")
        logger.info(
            "edged %s is ready after %.0f ms: agents %s, socket %s",
            __version__,
            1000 * (clock.boot() - self._wished_at),
            ", ".join(self._config.agents) or "none",
            self._config.socket_path,
        )
        self._spawn(self._warming, self._warm(), "edged.warm")
        tasks += self._warming

    async def _preload(self, model: str) -> None:
        """Bring a model in, or have its server do so."""
        await (self._served.warm(model) if model in self._served else self._governor.load(model))

    async def _warm(self) -> None:
        """What makes later requests quicker and must not hold up the start."""
        await asyncio.to_thread(self._snapshots.start)
        await self._warmer.run()
        await self._stop.wait()  # a task that is watched does not end by itself

    def _spawn(self, tasks: list[asyncio.Task[Any]], work: Coroutine[Any, Any, None], name: str) -> None:
        tasks.append(asyncio.create_task(work, name=name))

    async def _until_stopped(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Returns at a signal; raises what a task or the engine thread died of."""
        assert self._failed is not None
        stop = asyncio.create_task(self._stop.wait(), name="edged.stop")
        watched: list[asyncio.Future[Any]] = [self._failed, *tasks]
        try:
            await asyncio.wait([stop, *watched], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        for ended in watched:
            if ended.done() and not self._stop.is_set():
                ended.result()
                raise RuntimeError(f"{ended} ended without being asked to")

    async def _shut_down(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Stop in the order in which nothing is lost: take no more, finish or put back, send, disconnect, close."""
        logger.info("making room for the new configuration" if self._reloading else "stopping")
        if not self._reloading:
            self._manager.stopping()
            self._listeners.close()
        self._http.stop_taking()
        self._unix.stop_taking()  # who connects from now on is served by the next start, where systemd holds the socket
        if self._mqtt:
            self._mqtt.stop_taking()  # what comes now stays with the broker
        self._note(AuditEntry(what="daemon.stopping", who="edged", about={"reloading": self._reloading}))
        await _end(self._warming)  # it would compete with the requests that are to be finished
        await self._updater.stop()
        if tasks:  # else it did not come so far: there is nothing to finish, and perhaps no store
            await self._pipeline.stop()
        if self._mqtt:
            await self._mqtt.stop()
        await self._unix.stop()
        await self._http.stop()
        await _end(tasks)
        await self._cloud.stop()
        await self._served.stop()
        await self._engine.stop()
        await asyncio.to_thread(self._snapshots.close)
        await self._toolbox.stop()
        await self._database.stop()

    # -- parts -----------------------------------------------------------------------------------------------------

    def _make_engine(self) -> Runtime:
        ours = [model for model in self._config.models.values() if not model.is_served]
        follows = [source.startswith(scripted.SCHEME) for model in ours for source in model.sources]
        if not any(follows):
            return self._make_engines()
        if not all(follows):
            raise ConfigError(self._config.files[0], "models", "scripted models and others cannot be mixed")
        return scripted.ScriptedEngine()

    def _make_engines(self) -> Engines:
        """Those that the models need; llama.cpp's always, so that there is one."""
        threads = self._config.threads()
        llama = LlamaEngine(threads=threads, on_fatal=self._engine_died, snapshots=self._snapshots)
        generators: dict[EngineKind, Generator] = {EngineKind.LLAMA: llama}
        embedders: dict[EngineKind, EmbeddingEngine] = {}
        if any(spec.engine is EngineKind.ONNX for spec in self._specs):
            embedders[EngineKind.ONNX] = OnnxEngine(threads=threads, on_fatal=self._engine_died)
        return Engines({spec.name: spec for spec in self._specs}, generators=generators, embedders=embedders)

    def _make_updater(self, aliases: dict[str, Alias]) -> Updater:
        """For models of one file; where there are variants, the configuration says which."""
        single = {name: alias.variants[0] for name, alias in aliases.items() if len(alias.variants) == 1}
        return Updater(
            {name: self._config.models[name].source for name in single},
            single,
            self._config.models_dir,
            Ledger(self._config.state_dir),
            self._governor,
            self._engine,
            dialect=self._dialect,
            is_resident=self._is_resident,
            tell=self._tell,
        )

    def _make_pressure(self, chats: Chats, embeds: Embeds) -> Pressure:
        strain = Strain()
        return Pressure(
            Parts(
                relief=self._governor,
                engine=self._engine,
                forget=self._snapshots.forget_queued,
                pause=(self._pipeline.pause_batch, self._engine.pause_batch),
                refuse=(self._pipeline.refuse, chats.refuse, embeds.refuse),
            ),
            Floor(self._config.reserve_bytes),
            manager=systemd.memory_pressure(),
            strain=strain.look if strain.exists else None,
            tell=self._tell,
            pace=PRESSURE_PACE,
        )

    def _make_sizer(self) -> ByEngine | Weightless:
        if isinstance(self._engine, scripted.ScriptedEngine):
            return Weightless()
        llama = Estimate(
            identity=self._present(predict.identity),
            least=predict.least_bytes,
            ask=predict.dry_run,
            ask_bytes=predict.dry_run_bytes,
            calculate=predict.predict,
            libraries=predict.library_bytes,
        )
        onnx = Estimate(
            identity=self._present(onnx_sizes.identity),
            least=onnx_sizes.least_bytes,
            ask=onnx_sizes.predicted_need,
            ask_bytes=lambda _: 0,
            calculate=onnx_sizes.predicted_need,
            libraries=onnx_sizes.library_bytes,
        )
        most, book = self._config.budget_bytes(probe.board_bytes()), Sizes(self._database)
        return ByEngine(
            {
                kind: Sizer(estimate, book, most=most, spare=self._room)
                for kind, estimate in ((EngineKind.LLAMA, llama), (EngineKind.ONNX, onnx))
            }
        )

    def _room(self) -> int:
        return self._governor.room()

    def _present(self, identity: Callable[[ModelSpec], str]) -> Callable[[ModelSpec], str]:
        """Of models that are installed; the others' error says how to pull them."""

        def checked(spec: ModelSpec) -> str:
            self._check_present(spec)
            return identity(spec)

        return checked

    def _store_is_damaged(self, error: BaseException) -> None:
        if self._failed and not self._failed.done():
            self._failed.set_exception(RuntimeError(f"the store is damaged, the next start salvages it: {error}"))

    def _engine_died(self, error: BaseException) -> None:
        if self._failed and not self._failed.done():
            self._failed.set_exception(RuntimeError(f"an engine's thread died: {error!r}"))

    def _is_tool(self, pid: int) -> bool:
        return self._toolbox.started(pid)

    def _make_mqtt(self) -> MqttTransport | None:
        mqtt = self._config.mqtt
        if mqtt is None:
            return None
        settings = Settings(
            url=mqtt.url,
            node_id=self._config.node.id,
            agents=tuple(self._config.agents),
            version=mqtt.version,
            ca_file=mqtt.ca_file,
            cert_file=mqtt.cert_file,
            key_file=mqtt.key_file,
            username=mqtt.username,
            password=config.secret(mqtt.password_file) if mqtt.password_file else None,
            default_expiry_s=mqtt.default_expiry_s,
        )
        return MqttTransport(
            settings,
            accept=self._accept_mqtt,
            cancel=self._cancel_mqtt,
            session_lost=self._session_lost,
            state=self._state,
            identify=self._gate.policy.mqtt,
            refused=self._gate.unread,
        )

    async def _accept_mqtt(self, ask: Ask) -> Accepted:
        delta = None
        if ask.request.stream and ask.address and self._mqtt:
            delta = functools.partial(self._mqtt.delta, ask.address)
        return await self._pipeline.accept(ask, delta)

    async def _cancel_mqtt(self, name: str, topic: str) -> None:
        """Nobody knows who published. Where roles decide, a role that may not manage ends what came over MQTT and was
        let in by the same role."""
        caller = self._gate.policy.mqtt(f"mqtt:{topic}", topic)
        self._gate.enter(caller, "")
        mine = {} if caller.manage else {"role": caller.role, "transport": "mqtt"}
        if (row := await self._pipeline.find(name, **mine)) is not None:
            await self._pipeline.cancel(row.rid)

    def _note(self, entry: AuditEntry) -> None:
        """To the audit log; refusals to the other one as well."""
        self._audit.note(entry)
        if entry.what.endswith(".refused"):
            logger.info("%s: %s by %s: %s", entry.what, entry.outcome, entry.who, entry.about.get("reason"))

    async def _session_lost(self) -> None:
        await self._database.write(requests.forget_packets)

    async def _file(self, model: str) -> str:
        """The file that a request to a model is answered with. Where it has several variants, the model is brought in:
        which of them fits is not known before."""
        if len(self._governor.aliases[model].variants) > 1:
            await self._governor.load(model)
        spec = self._governor.spec(model)
        if spec.engine is EngineKind.ONNX:
            raise embeds_only(model)
        self._check_present(spec)
        return spec.path

    def _lost_s(self, model: str) -> float:
        """Seconds to compute again what a model holds; nothing where states of prefixes are kept on the disk."""
        if self._config.snapshot_bytes:
            return 0.0
        held = next((stats for stats in self._engine.stats() if stats.name == model), None)
        if not isinstance(held, ModelStats) or not held.prefill_tokens_s:
            return 0.0
        return held.cells_used / held.prefill_tokens_s

    def _template(self, path: str) -> tuple[str | None, dict[str, str]]:
        """The chat template in a model's file and the special tokens it uses."""
        if isinstance(self._engine, scripted.ScriptedEngine):
            return None, {}
        pairs = gguf.metadata(Path(path))
        template = pairs.get("tokenizer.chat_template")
        source = template if isinstance(template, str) else None
        used = source and ("bos_token" in source or "eos_token" in source)
        return source, gguf.special_tokens(Path(path), pairs) if used else {}

    async def _dialect(self, spec: ModelSpec) -> Dialect:
        """How the model in a file is spoken to."""
        return Dialect(*await asyncio.to_thread(self._template, spec.path))

    def _check_present(self, spec: ModelSpec) -> None:
        if isinstance(self._engine, scripted.ScriptedEngine) or Path(spec.path).is_file():
            return
        source = self._sources.get(spec.path)
        raise ModelUnavailable(
            not_installed(spec.name, source) if source else f"model {spec.name!r}: there is no file {spec.path}"
        )

    def _is_resident(self, model: str) -> bool:
        return bool(self._governor.status()["models"][model]["state"] == ModelState.READY)

    def _warn_of_the_disk(self) -> None:
        mount = mounts.mount_of(self._config.state_dir.resolve(), mounts.read())
        if mount is not None and (danger := mounts.danger(mount)) is not None:
            logger.warning("the store is on %s at %s: %s; %s", mount.kind, mount.point, danger.what, danger.do)

    def _warn_of_missing_models(self) -> None:
        for spec in self._specs:
            try:
                self._check_present(spec)
            except ModelUnavailable as error:
                logger.warning("%s", error.message)

    # -- what others see -------------------------------------------------------------------------------------------

    def _tell(self, name: str, data: dict[str, JSON]) -> None:
        """An event, to everybody who may want it."""
        self._meter.happened(name, data)
        if name in AUDITED:
            outcome = str(data.get("code") or ("failed" if name.endswith("_failed") else "ok"))
            self._note(AuditEntry(what=name.replace("_", ".", 1), who="edged", outcome=outcome, about=data))
        self._api.events.publish(name, data)
        if self._mqtt:
            self._mqtt.event(name, data)
        self._changed.set()

    def _speeds(self) -> dict[str, Speed]:
        """The loaded models whose speed was measured."""
        return {
            stats.name: Speed(stats.prefill_tokens_s, stats.decode_tokens_s, stats.batch_tokens_s)
            for stats in self._engine.stats()
            if isinstance(stats, ModelStats)
            and stats.prefill_tokens_s
            and stats.decode_tokens_s
            and stats.batch_tokens_s
        }

    def _unready(self) -> dict[str, str]:
        """The parts that are not ready, each with the reason."""
        if self._stop.is_set():
            return {"daemon": "stopping"}
        return {} if self.ready.is_set() else {"daemon": "starting"}

    def _snapshot(self) -> Snapshot:
        """For the gauges; requests as they were counted within the last second or so."""
        memory, counted = self._governor.status(), self._counts.get("requests", {})
        states = (ModelState.READY, ModelState.UNLOADING)
        return Snapshot(
            queue_waiting=sum(counted.get(state, 0) for state in lifecycle.WAITING),
            outbox_waiting=self._counts.get("outbox_waiting", 0),
            memory_budget_bytes=memory["budget_bytes"],
            memory_used_bytes=memory["private_bytes"] + memory["mapped_bytes"],
            threads_in_use=sum(stats.threads for stats in self._engine.stats()),
            store_syncs=self._database.written.syncs,
            store_written_bytes=self._database.written.bytes,
            models={
                name: (model["measured_bytes"] if model["state"] in states else 0, model["predicted_bytes"])
                for name, model in memory["models"].items()
            },
            links={upstream.name: upstream.up for upstream in self._cloud.facts(self._config.upstreams)},
        )

    def _link_changed(self) -> None:
        self._pipeline.link_changed()
        self._changed.set()

    def _state(self) -> dict[str, JSON]:
        """The document of base/state."""
        return {
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._started_at, 1),
            "memory": {k: v for k, v in self._governor.status().items() if k != "models"},
            "pressure": self._pressure.status(),
            "models": self._models(),
            "queue": self._counts,
            "store": {"damaged": self._database.salvaged.aside if self._database.salvaged else None},
            "link": self._cloud.status(),
            "snapshots": self._snapshot_counts(),
        }

    def _snapshot_counts(self) -> dict[str, JSON]:
        stats = self._snapshots.stats
        return {name: getattr(stats, name) for name in ("files", "bytes", "written_bytes", "restored", "refused")}

    def _models(self) -> dict[str, JSON]:
        """What is known of the models; of those that were seen at work their speed as well."""
        models: dict[str, JSON] = self._api.models.status()
        rates = ("prefill_tokens_s", "decode_tokens_s")
        for stats in self._engine.stats():
            if stats.name not in models:  # a file on trial, see `updates`
                continue
            measured = {name: value for name, value in _plain(stats).items() if name in rates and value is not None}
            models[stats.name] = {**models[stats.name], **measured}
        for name in self._config.models:
            models[name] = {**models[name], "update": self._updater.status(name)}
        return models

    async def _status(self) -> dict[str, JSON]:
        """`edged status`."""
        self._counts = await self._pipeline.counts()
        loaded = {stats.name: stats for stats in self._engine.stats()}
        return {
            "node": self._config.node.id,
            "pid": os.getpid(),
            "tasks": len(asyncio.all_tasks()),
            **self._state(),
            "engine": {name: _plain(stats) for name, stats in loaded.items()},
            "mqtt": self._mqtt.status() if self._mqtt else None,
            "http": {"listeners": [_address(each) for each in self._http.addresses]},
        }

    async def _publish_state(self) -> None:
        """Keeps base/state and the service manager's line true: on change, and every STATE_S."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATE_S):
                    await self._changed.wait()
            await asyncio.sleep(STATE_PACE_S)
            self._changed.clear()
            self._counts = await self._pipeline.counts(exactly=False)
            ready = [n for n, m in self._governor.status()["models"].items() if m["state"] == "ready"]
            self._manager.status(f"{self._counts['running']} running, models loaded: {', '.join(ready) or 'none'}")
            if self._mqtt:
                self._mqtt.state_changed()

    async def _feed_watchdog(self, period_s: float) -> None:
        """From the loop, and only while the threads get on with their work: what hangs is started again."""
        parts = [("engine", self._engine.progress), ("store", self._database.progress)]
        while True:
            if stuck := systemd.stalled(parts, STALL_S):
                logger.error("no progress for %.0f s in: %s; the watchdog is not fed", STALL_S, ", ".join(stuck))
            else:
                self._manager.alive()
            await asyncio.sleep(period_s)


def _address(address: str | tuple[str, int]) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


def addresses(settings: Config) -> tuple[Address, ...]:
    """Where clients connect to a daemon of this configuration."""
    return (settings.socket_path, *settings.http_listeners)


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def socket_group(settings: Config) -> str | None:
    """The socket's group: as configured, else `edged` where there is one and we may give it away."""
    if settings.group_given:
        return settings.ipc.group
    try:
        gid = grp.getgrnam(settings.ipc.group).gr_gid
    except KeyError:
        return None
    return settings.ipc.group if os.geteuid() == 0 or gid in os.getgroups() else None


def _plain(stats: Any) -> dict[str, JSON]:
    """The figures of a model, fractions to a tenth."""
    values = {name: getattr(stats, name) for name in stats.__struct_fields__ if name != "name"}
    return {name: round(value, 1) if isinstance(value, float) else value for name, value in values.items()}
