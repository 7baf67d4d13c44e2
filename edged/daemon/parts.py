"""All parts of a daemon, as `assembly` makes them: a value, which nobody changes."""

from __future__ import annotations

import asyncio
import logging

from msgspec import Struct

from edged.access.gate import Gate
from edged.agent.warm import Warmer
from edged.api import Api
from edged.config import Config
from edged.daemon.events import EventBus
from edged.daemon.faults import Faults
from edged.daemon.metering import Meter
from edged.daemon.metrics import Metrics
from edged.daemon.status import Status
from edged.engines.registry import Engines
from edged.models.digests import Hasher
from edged.models.installed import Installed
from edged.models.preparing import Preparer
from edged.models.updates.updater import Updater
from edged.requests.pipeline import Pipeline
from edged.residency.governor import Governor
from edged.residency.pressure.pressure import Pressure
from edged.store.audit import AuditLog
from edged.store.database import Database
from edged.tools.toolbox import Toolbox
from edged.transport.base import Transport
from edged.types import ModelSpec
from edged.upstreams import Cloud, LocalServers

log = logging.getLogger("edged.daemon")


class Failure:
    """Reasons for which this daemon cannot go on. The part that meets one calls here, on the event loop."""

    def __init__(self) -> None:
        self.happened = asyncio.Event()
        self.error: Exception | None = None

    def engine_died(self, error: BaseException) -> None:
        """An engine's thread is gone."""
        log.critical("an engine's thread died: %r", error, extra={"event": "engine_died"})
        self._fail(f"an engine's thread died: {error!r}")

    def store_damaged(self, error: BaseException) -> None:
        """The store's file is no database any more."""
        log.critical("the store is damaged: %s", error, extra={"event": "store_damage_met"})
        self._fail(f"the store is damaged, the next start salvages it: {error}")

    def _fail(self, reason: str) -> None:
        if self.error is None:
            self.error = RuntimeError(reason)
        self.happened.set()


class Parts(Struct, frozen=True, kw_only=True):
    """changed: set whenever the document of base/state is another one. specs: the files of all models that take memory
    here, in all variants."""

    settings: Config
    failure: Failure
    changed: asyncio.Event
    events: EventBus
    metrics: Metrics
    meter: Meter
    database: Database
    audit: AuditLog
    specs: tuple[ModelSpec, ...]
    installed: Installed
    engine: Engines
    governor: Governor
    transports: tuple[Transport, ...]
    toolbox: Toolbox
    faults: Faults
    cloud: Cloud
    served: LocalServers
    gate: Gate
    pipeline: Pipeline
    warmer: Warmer
    updater: Updater
    hasher: Hasher
    preparer: Preparer
    pressure: Pressure
    status: Status
    api: Api
