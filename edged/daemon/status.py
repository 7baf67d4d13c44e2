"""What the daemon shows of itself: base/state, `edged status`, the gauges, the service manager's line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

from edged import __version__
from edged.api.models import known_models
from edged.config import Config
from edged.daemon.faults import Faults
from edged.daemon.metrics import Metrics, Snapshot
from edged.engines.registry import Engines
from edged.host import systemd
from edged.models.updates.updater import Updater
from edged.requests.pipeline import Pipeline
from edged.residency.governor import Governor
from edged.residency.pressure.pressure import Pressure
from edged.store import lifecycle
from edged.store.database import Database
from edged.transport.base import Transport
from edged.types import JSON, ModelState
from edged.upstreams import Cloud, LocalServers

STATE_S = 30.0  # CONTRACT section 4: how often base/state is refreshed
SNAPSHOTS = ("files", "bytes", "written_bytes", "restored", "refused")  # states of prefixes on the disk
STATE_PACE_S = 1.0  # and how soon after a change; under load it changes with every request


class Status:
    """Asks the parts when somebody wants to know; keeps nothing but the counts of requests, which cost a query.

    Args:
        changed: set by the parts whenever the document is another one.
    """

    def __init__(
        self,
        settings: Config,
        *,
        database: Database,
        governor: Governor,
        engine: Engines,
        pressure: Pressure,
        updater: Updater,
        faults: Faults,
        pipeline: Pipeline,
        cloud: Cloud,
        served: LocalServers,
        transports: Sequence[Transport],
        metrics: Metrics,
        changed: asyncio.Event,
    ) -> None:
        self._config = settings
        self._database = database
        self._governor = governor
        self._engine = engine
        self._pressure = pressure
        self._updater = updater
        self._faults = faults
        self._pipeline = pipeline
        self._cloud = cloud
        self._served = served
        self._transports = transports
        self._metrics = metrics
        self._changed = changed
        self._started_at = time.monotonic()
        self._counts: dict[str, JSON] = {}

    async def run(self, manager: systemd.ServiceManager) -> None:
        """Keep base/state and the service manager's line true, on change and every STATE_S, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATE_S):
                    await self._changed.wait()
            await asyncio.sleep(STATE_PACE_S)
            self._changed.clear()
            self._counts = await self._pipeline.counts(exactly=False)
            ready = [n for n, m in self._governor.status()["models"].items() if m["state"] == "ready"]
            manager.status(f"{self._counts['running']} running, models loaded: {', '.join(ready) or 'none'}")
            for transport in self._transports:
                transport.state_changed()

    def state(self) -> dict[str, JSON]:
        """The document of base/state; requests as they were counted within the last second or so."""
        return {
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._started_at, 1),
            "memory": {k: v for k, v in self._governor.status().items() if k != "models"},
            "pressure": self._pressure.status(),
            "models": self._models(),
            "queue": self._counts,
            "store": {"damaged": self._database.salvaged.aside if self._database.salvaged else None},
            "faults": self._faults.brief(),
            "link": self._cloud.status(),
            "snapshots": dict.fromkeys(SNAPSHOTS, 0),  # of engines that keep none
            **self._engine.status(),
        }

    async def full(self) -> dict[str, JSON]:
        """The document of `edged status`: `state`, with requests counted now, and
        {node, pid, tasks, engine: {model: figures}, NAME: of each transport that has something to say}."""
        self._counts = await self._pipeline.counts()
        said = {transport.name: transport.status() for transport in self._transports}
        return {
            "node": self._config.node.id,
            "pid": os.getpid(),
            "tasks": len(asyncio.all_tasks()),
            **self.state(),
            "faults": self._faults.document(),
            "engine": {stats.name: _plain(stats) for stats in self._engine.stats()},
            "mqtt": None,
            **{name: status for name, status in said.items() if status is not None},
        }

    def metrics(self) -> tuple[bytes, str]:
        """The page at /metrics, and its content type."""
        return self._metrics.render(self.gauges())

    def gauges(self) -> Snapshot:
        """Requests as they were counted within the last second or so."""
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

    def _models(self) -> dict[str, JSON]:
        """What is known of the models; of those that were seen at work their speed as well."""
        models = known_models(self._config, self._governor, self._served)
        rates = ("prefill_tokens_s", "decode_tokens_s")
        for stats in self._engine.stats():
            if stats.name not in models:  # a file on trial, see `updates`
                continue
            measured = {name: value for name, value in _plain(stats).items() if name in rates and value is not None}
            models[stats.name] = {**models[stats.name], **measured}
        for name in self._config.models:
            models[name] = {**models[name], "update": self._updater.status(name)}
        return models


def _plain(stats: Any) -> dict[str, JSON]:
    """The figures of a model, fractions to a tenth."""
    values = {name: getattr(stats, name) for name in stats.__struct_fields__ if name != "name"}
    return {name: round(value, 1) if isinstance(value, float) else value for name, value in values.items()}
