"""From a configuration to the parts of a daemon: the only place that knows every concrete class. Nothing runs here, and
nothing calls here once the parts are made."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edged.access.gate import Gate
from edged.access.policy import Policy
from edged.agent.clock import BoardClock
from edged.agent.dialects import Dialects
from edged.agent.dispatch import Dispatcher
from edged.agent.examples import ByMeaning, Embed, Examples, configured
from edged.agent.learning import Learning
from edged.agent.minds.base import Resources
from edged.agent.prompts import PromptBook
from edged.agent.warm import Warmer
from edged.api import Api
from edged.api.calibrate import Calibrate
from edged.api.events import Events
from edged.api.learnt import Learnt
from edged.api.library import Library
from edged.api.mcp import McpServers
from edged.api.models import Models
from edged.api.requests import Requests
from edged.api.responses import Responses
from edged.api.tools import Tools
from edged.completions.embeddings import EmbeddingModels
from edged.completions.plain import Completions
from edged.config import Config
from edged.daemon.checks.finding import Finding
from edged.daemon.events import EventBus, Signal
from edged.daemon.faults import Faults
from edged.daemon.metering import Meter, MeteredEngine
from edged.daemon.metrics import Metrics
from edged.daemon.parts import Failure, Parts
from edged.daemon.status import Status
from edged.daemon.subscribers import SUBSCRIBERS
from edged.engines import registry
from edged.engines.kind import Surroundings
from edged.engines.registry import Engines
from edged.host import last_end, memory, systemd
from edged.host.thermal import Strain
from edged.interfaces import Embedder
from edged.models import calibrations
from edged.models.calibrations import Calibrations
from edged.models.cards import Cards
from edged.models.digests import Digests, Hasher
from edged.models.files import adapter_of, hang_on_digests, model_aliases
from edged.models.installed import Installed, Lookup
from edged.models.preparing import Preparer
from edged.models.updates.ledger import Ledger
from edged.models.updates.updater import Updater
from edged.requests.pipeline import Pipeline
from edged.residency.governor import Governor
from edged.residency.pressure import pressure as relief
from edged.residency.pressure.low_memory import LowMemory
from edged.residency.pressure.pressure import Pressure, PressureTiming
from edged.residency.sizing import ByEngine
from edged.store.audit import AuditLog
from edged.store.database import Database
from edged.store.recovery import mend
from edged.store.schema import MIGRATIONS
from edged.store.sizes import Sizes
from edged.store.spending import Spending
from edged.tools.toolbox import Toolbox
from edged.transport import http, mqtt, unix, wyoming
from edged.transport.base import Transport, deliverers
from edged.transport.mqtt.transport import MqttTransport
from edged.types import Alias, ModelSpec
from edged.upstreams import Cloud, LocalServers

PRESSURE_PACE = PressureTiming()

# Each makes a transport of the configuration, or none where that has no use for it. They are started in this order and
# stopped in the reverse one: the broker is the last to learn that there is a daemon, and the first that there is none.
TRANSPORTS: list[Callable[[Config], Transport | None]] = [unix.make, http.make, wyoming.make, mqtt.make]


def assemble(settings: Config, prepared: Sequence[Finding] = ()) -> Parts:
    """All parts, wired.

    Args:
        settings, prepared: as `checks.tools.prepare` gave them.

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
    clock = BoardClock(settings.node.timezone, _written(settings))  # before the store is opened and written
    database = Database(settings.store_path, MIGRATIONS, mend=mend.mend, on_damage=failure.store_damaged)
    audit = AuditLog(database)
    transports = tuple(made for make in TRANSPORTS if (made := make(settings)) is not None)

    aliases = {  # of the models that take memory here
        name: alias for name, alias in model_aliases(settings).items() if not settings.models[name].is_served
    }
    specs = tuple(spec for alias in aliases.values() for spec in alias.variants)
    installed = Installed(settings, aliases)
    engine = registry.make_engines(
        specs,
        Surroundings(
            threads=settings.threads(),
            on_fatal=failure.engine_died,
            states_dir=settings.snapshots_dir,
            states_bytes=settings.snapshot_bytes,
        ),
    )
    budget_bytes = settings.budget_bytes(memory.board_bytes())
    governor = Governor(
        aliases,
        engine,
        sizer=ByEngine(
            {kind.name: kind.sizes for kind in registry.KINDS},
            Sizes(database),
            must_be_here=installed.check,
            most=budget_bytes,
        ),
        budget_bytes=budget_bytes,
        reserve_bytes=settings.reserve_bytes,
        idle_unload_s=settings.memory.idle_unload_s,
        lost_s=engine.lost_s,
        tell=events.publish,
    )
    metered = MeteredEngine(engine, metrics, governor.variant)

    broker = next((each for each in transports if isinstance(each, MqttTransport)), None)
    toolbox = Toolbox(settings, broker, called=metrics.tool_called, tell=events.publish)
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
    faults = Faults(settings, prepared, toolbox, installed.examined, events.publish)
    dialects = Dialects(registry.chat_template, lookup.spec, registry.text_format)
    speak = PromptBook(settings.agents, toolbox.tools, dialects, settings.may_escalate, check=faults.check_agent)
    calibrated = _calibrations(settings, lookup, dialects)
    learning = Learning(settings, toolbox, database)
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
                calibration=calibrated.of,
                examples=Examples((configured, learning.examples), _embed(aliases, metered)),
                audit=audit.note,
                clock=clock,
            )
        ),
        toolbox,
        cloud,
        gate,
        learning,
        deliverers=deliverers(transports),
        last_end=functools.partial(last_end.take, Path(settings.node.runtime_dir)),
        tell=events.publish,
        changed=changed.set,
        settled=events.request_ended,
        speeds=engine.speeds,
    )
    requests = Requests(settings, pipeline, gate)
    waiting = settings.queue.max_waiting
    completions = Completions(metered, settings.models, dialects, max_waiting=waiting, served=served)
    embeddings = EmbeddingModels(metered, settings.models, max_waiting=waiting)
    pressure = _pressure(settings, governor, engine, pipeline, completions, embeddings, events)
    digests = Digests(settings.state_dir)
    updater = _updater(settings, aliases, governor, engine, dialects, events, digests)
    hasher = Hasher(
        digests,
        functools.partial(hang_on_digests, settings, aliases, updater.versions),
        updater.teach,
    )
    preparer = Preparer(
        functools.partial(_single, governor),
        governor,
        governor.room,
        governor.is_resident,
        updater.runs,
    )
    status = Status(
        settings,
        database=database,
        governor=governor,
        engine=engine,
        pressure=pressure,
        updater=updater,
        faults=faults,
        pipeline=pipeline,
        cloud=cloud,
        served=served,
        transports=transports,
        metrics=metrics,
        changed=changed,
    )
    requests = Requests(settings, pipeline, gate)
    parts = Parts(
        settings=settings,
        failure=failure,
        changed=changed,
        events=events,
        metrics=metrics,
        meter=meter,
        database=database,
        audit=audit,
        specs=specs,
        installed=installed,
        engine=engine,
        governor=governor,
        transports=transports,
        toolbox=toolbox,
        faults=faults,
        cloud=cloud,
        served=served,
        gate=gate,
        pipeline=pipeline,
        warmer=Warmer(settings.models, settings.agents, metered, speak, load=lookup.bring_in, tell=events.publish),
        updater=updater,
        hasher=hasher,
        preparer=preparer,
        pressure=pressure,
        status=status,
        api=Api(
            requests=requests,
            responses=Responses(settings, database, requests, pipeline.crowded),
            models=Models(settings, governor, completions, embeddings, updater, served=served, gate=gate),
            library=Library(
                settings,
                governor,
                Cards(settings, governor),
                bring_in=lookup.bring_in,
                served=served,
                gate=gate,
            ),
            tools=Tools(toolbox, gate),
            calibrate=Calibrate(settings, toolbox.tools, pipeline, calibrated, gate),
            learnt=Learnt(database, learning, gate, requests.find),
            events=Events(settings, status.full, events),
            mcp=McpServers(toolbox.mcp, gate),
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


def _calibrations(settings: Config, lookup: Lookup, dialects: Dialects) -> Calibrations:
    here = {name: agent for name, agent in settings.agents.items() if agent.model not in settings.served}
    return Calibrations(settings.state_dir / calibrations.FOLDER, here, lookup.spec, dialects.of_spec)


def _single(governor: Governor) -> dict[str, ModelSpec]:
    """The models of one file, as they are in force; with their whole context, also while memory has room for less."""
    return {name: alias.variants[0] for name, alias in governor.aliases.items() if len(alias.variants) == 1}


def _embed(aliases: Mapping[str, Alias], engine: Embedder) -> Embed | None:
    """By the first embedding model of the configuration; None: there is none."""
    names = [name for name, alias in aliases.items() if not registry.kind(alias.variants[0].engine).generates]
    return ByMeaning(engine, names[0]).vectors if names else None


def _pressure(
    settings: Config,
    governor: Governor,
    engine: Engines,
    pipeline: Pipeline,
    completions: Completions,
    embeddings: EmbeddingModels,
    events: EventBus,
) -> Pressure:
    strain = Strain()
    return Pressure(
        relief.Parts(
            relief=governor,
            engine=engine,
            pause=(pipeline.pause_batch, engine.pause_batch),
            refuse=(pipeline.refuse, completions.refuse, embeddings.refuse),
        ),
        LowMemory(settings.reserve_bytes),
        manager=systemd.memory_pressure(),
        strain=strain.look if strain.exists else None,
        tell=events.publish,
        pace=PRESSURE_PACE,
    )


def _written(settings: Config) -> tuple[Path, ...]:
    """The files that a daemon writes with every request."""
    return settings.store_path, settings.store_path.with_name(f"{settings.store_path.name}-wal")


def _updater(
    settings: Config,
    aliases: Mapping[str, Alias],
    governor: Governor,
    engine: Engines,
    dialects: Dialects,
    events: EventBus,
    digests: Digests,
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
        dialect=dialects.of_spec,
        is_resident=governor.is_resident,
        tell=events.publish,
        adapter=functools.partial(adapter_of, settings, aliases, digests),
    )
