"""From a configuration to the parts of a daemon: the only place that knows every concrete class. Nothing runs here, and
nothing calls here once the parts are made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from edged.access.gate import Gate
from edged.access.policy import Policy
from edged.agent.dialects import Dialects
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
from edged.daemon.events import EventBus, Signal
from edged.daemon.metering import Meter, MeteredEngine
from edged.daemon.metrics import Metrics
from edged.daemon.parts import Failure, Parts
from edged.daemon.status import Status
from edged.daemon.subscribers import SUBSCRIBERS
from edged.engines import scripted
from edged.engines.llama import LlamaEngine, predict
from edged.engines.llama.snapshots import Snapshots
from edged.engines.onnx import OnnxEngine
from edged.engines.onnx import sizes as onnx_sizes
from edged.engines.registry import EmbeddingEngine, Engines, Generator, Runtime
from edged.engines.speeds import Speeds
from edged.host import memory, systemd
from edged.host.thermal import Strain
from edged.models.files import model_aliases
from edged.models.installed import Installed, Lookup
from edged.models.updates.ledger import Ledger
from edged.models.updates.updater import Updater
from edged.requests.pipeline import Pipeline
from edged.residency.governor import Governor
from edged.residency.pressure import pressure as relief
from edged.residency.pressure.low_memory import Floor
from edged.residency.pressure.pressure import Pressure, PressureTiming
from edged.residency.sizing import ByEngine, Estimate, Sizer, Weightless
from edged.store.audit import AuditLog
from edged.store.database import Database
from edged.store.recovery import mend
from edged.store.schema import MIGRATIONS
from edged.store.sizes import Sizes
from edged.store.spending import Spending
from edged.tools.toolbox import Toolbox
from edged.transport import http, mqtt, unix
from edged.transport.base import Transport, carriers
from edged.transport.mqtt.transport import MqttTransport
from edged.types import Alias, EngineKind, ModelSpec
from edged.upstreams import Cloud, LocalServers

PRESSURE_PACE = PressureTiming()

# Each makes a transport of the configuration, or none where that has no use for it. They are started in this order and
# stopped in the reverse one: the broker is the last to learn that there is a daemon, and the first that there is none.
TRANSPORTS: list[Callable[[Config], Transport | None]] = [unix.make, http.make, mqtt.make]


def assemble(settings: Config) -> Parts:
    """All parts, wired. Python tools of `settings` are resolved.

    Raises:
        ConfigError: something in the configuration cannot be what it says.
    """
    failure, changed, events, link_changed = Failure(), asyncio.Event(), EventBus(), Signal()
    metrics = Metrics(
        agents=settings.agents,
        models=(*settings.models, *(upstream.model for upstream in settings.upstreams.values())),
        tools=settings.tools,
    )
    meter = Meter(metrics)
    database = Database(settings.store_path, MIGRATIONS, mend=mend.mend, on_damage=failure.store_damaged)
    audit = AuditLog(database)
    transports = tuple(made for make in TRANSPORTS if (made := make(settings)) is not None)

    aliases = {  # of the models that take memory here
        name: alias for name, alias in model_aliases(settings).items() if not settings.models[name].is_served
    }
    specs = tuple(spec for alias in aliases.values() for spec in alias.variants)
    follows_script = _follows_script(settings)
    installed = Installed(_sources(settings, aliases), scripted=follows_script)
    snapshots = Snapshots(settings.snapshots_dir, settings.snapshot_bytes)
    engine: Runtime = scripted.ScriptedEngine() if follows_script else _engines(settings, specs, snapshots, failure)

    def room() -> int:
        return governor.room()

    speeds = Speeds(engine, keeps_states=bool(settings.snapshot_bytes))
    governor = Governor(
        aliases,
        engine,
        sizer=Weightless() if follows_script else _sizer(settings, installed, database, room),
        budget_bytes=settings.budget_bytes(memory.board_bytes()),
        reserve_bytes=settings.reserve_bytes,
        idle_unload_s=settings.memory.idle_unload_s,
        lost_s=speeds.lost_s,
        tell=events.publish,
    )
    engine.residency = governor
    metered = MeteredEngine(engine, metrics, governor.variant)

    broker = next((each for each in transports if isinstance(each, MqttTransport)), None)
    toolbox = Toolbox(settings, broker, called=metrics.tool_called)
    gate = Gate(Policy(settings.agents, settings.roles, settings.access), audit=audit.note, is_tool=toolbox.owns)
    cloud = Cloud(
        settings.upstreams,
        Spending(database),
        tell=events.publish,
        changed=link_changed,
        answered=meter.answered,
    )
    served = LocalServers(settings.served, tell=events.publish, answered=meter.answered)
    lookup = Lookup(installed, governor, served)
    dialects = Dialects(installed.template, lookup.file)
    speak = PromptBook(settings.agents, toolbox.tools, dialects, settings.may_escalate)
    pipeline = Pipeline(
        settings,
        database,
        Dispatcher(
            Resources(
                config=settings,
                tools=toolbox.tools,
                engine=metered,
                served=served,
                cloud=cloud,
                speak=speak,
                audit=audit.note,
            )
        ),
        toolbox,
        cloud,
        gate,
        deliverers=carriers(transports),
        tell=events.publish,
        changed=changed.set,
        settled=events.request_ended,
        speeds=speeds.measured,
    )
    waiting = settings.queue.max_waiting
    chats = Chats(metered, settings.models, dialects, max_waiting=waiting, served=served)
    embeds = Embeds(metered, settings.models, max_waiting=waiting)
    pressure = _pressure(settings, governor, engine, snapshots, pipeline, chats, embeds, events)
    updater = _updater(settings, aliases, governor, engine, dialects, events)
    status = Status(
        settings,
        database=database,
        governor=governor,
        engine=engine,
        snapshots=snapshots,
        pressure=pressure,
        updater=updater,
        pipeline=pipeline,
        cloud=cloud,
        served=served,
        transports=transports,
        metrics=metrics,
        changed=changed,
    )
    parts = Parts(
        settings=settings,
        failure=failure,
        changed=changed,
        events=events,
        metrics=metrics,
        meter=meter,
        database=database,
        audit=audit,
        snapshots=snapshots,
        specs=specs,
        installed=installed,
        engine=engine,
        governor=governor,
        transports=transports,
        toolbox=toolbox,
        cloud=cloud,
        served=served,
        gate=gate,
        pipeline=pipeline,
        warmer=Warmer(settings.models, settings.agents, metered, speak, load=lookup.bring_in, tell=events.publish),
        updater=updater,
        pressure=pressure,
        status=status,
        api=Api(
            requests=Requests(settings, pipeline, gate),
            models=Models(settings, governor, chats, embeds, updater, served=served, gate=gate),
            tools=Tools(toolbox, gate),
            events=Events(settings, status.full, events),
        ),
    )
    toolbox.subscribe(speak.forget)
    toolbox.subscribe(lambda: events.publish("tools_changed", {"tools": list(toolbox.tools)}))
    link_changed.subscribe(pipeline.link_changed)
    link_changed.subscribe(changed.set)
    for make in SUBSCRIBERS:
        if (heard := make(parts)) is not None:
            events.subscribe(make.__name__, heard)
    return parts


def _follows_script(settings: Config) -> bool:
    """Whether the models follow scripts. ConfigError where some do."""
    ours = [model for model in settings.models.values() if not model.is_served]
    follows = [source.startswith(scripted.SCHEME) for model in ours for source in model.sources]
    if any(follows) and not all(follows):
        raise settings.error(("models",), "scripted models and others cannot be mixed")
    return any(follows)


def _sources(settings: Config, aliases: Mapping[str, Alias]) -> dict[str, str]:
    """How each file is pulled, by its path."""
    return {
        spec.path: source
        for name, alias in aliases.items()
        for spec, source in zip(alias.variants, settings.models[name].sources, strict=True)
    }


def _engines(settings: Config, specs: tuple[ModelSpec, ...], snapshots: Snapshots, failure: Failure) -> Engines:
    """Those that the models need; llama.cpp's always, so that there is one."""
    threads = settings.threads()
    llama = LlamaEngine(threads=threads, on_fatal=failure.engine_died, snapshots=snapshots)
    generators: dict[EngineKind, Generator] = {EngineKind.LLAMA: llama}
    embedders: dict[EngineKind, EmbeddingEngine] = {}
    if any(spec.engine is EngineKind.ONNX for spec in specs):
        embedders[EngineKind.ONNX] = OnnxEngine(threads=threads, on_fatal=failure.engine_died)
    return Engines({spec.name: spec for spec in specs}, generators=generators, embedders=embedders)


def _sizer(settings: Config, installed: Installed, database: Database, room: Callable[[], int]) -> ByEngine:
    llama = Estimate(
        identity=installed.checked(predict.identity),
        least=predict.least_bytes,
        ask=predict.dry_run,
        ask_bytes=predict.dry_run_bytes,
        calculate=predict.predict,
        libraries=predict.library_bytes,
    )
    onnx = Estimate(
        identity=installed.checked(onnx_sizes.identity),
        least=onnx_sizes.least_bytes,
        ask=onnx_sizes.predicted_need,
        ask_bytes=lambda _: 0,
        calculate=onnx_sizes.predicted_need,
        libraries=onnx_sizes.library_bytes,
    )
    most, book = settings.budget_bytes(memory.board_bytes()), Sizes(database)
    return ByEngine(
        {
            kind: Sizer(estimate, book, most=most, spare=room)
            for kind, estimate in ((EngineKind.LLAMA, llama), (EngineKind.ONNX, onnx))
        }
    )


def _pressure(
    settings: Config,
    governor: Governor,
    engine: Runtime,
    snapshots: Snapshots,
    pipeline: Pipeline,
    chats: Chats,
    embeds: Embeds,
    events: EventBus,
) -> Pressure:
    strain = Strain()
    return Pressure(
        relief.Parts(
            relief=governor,
            engine=engine,
            forget=snapshots.forget_queued,
            pause=(pipeline.pause_batch, engine.pause_batch),
            refuse=(pipeline.refuse, chats.refuse, embeds.refuse),
        ),
        Floor(settings.reserve_bytes),
        manager=systemd.memory_pressure(),
        strain=strain.look if strain.exists else None,
        tell=events.publish,
        pace=PRESSURE_PACE,
    )


def _updater(
    settings: Config,
    aliases: Mapping[str, Alias],
    governor: Governor,
    engine: Runtime,
    dialects: Dialects,
    events: EventBus,
) -> Updater:
    """For models of one file; where there are variants, the configuration says which."""
    single = {name: alias.variants[0] for name, alias in aliases.items() if len(alias.variants) == 1}
    return Updater(
        {name: settings.models[name].source for name in single},
        single,
        settings.models_dir,
        Ledger(settings.state_dir),
        governor,
        engine,
        dialect=lambda spec: dialects.of_file(spec.path),
        is_resident=governor.is_resident,
        tell=events.publish,
    )
