"""What `GET /metrics` tells (CONTRACT section 9): counters that others feed, gauges that are asked for at scrape time.

prometheus_client is imported when a `Metrics` is made. Labels are names of the configuration and words of our own code,
never what a client wrote: a series lives as long as the daemon does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from edged.agent.minds import MINDS
from edged.host import process
from edged.types import Status

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

# From a tool call with everything computed before (a few ms on a fast board, tens on a slow one) to a first answer
# whose prompt a Pi 4 computes for minutes, behind others; about three steps a decade are what a p95 needs.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# Below 1 ms the timer itself is late; from 1 s on keep-alives and the watchdog are in danger.
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LAG_PERIOD_S = 1.0  # a stall shorter than this may be missed, and a wake-up a second costs a sleeping board nothing
OTHER = "(other)"  # instead of a name the configuration does not have; no name there holds a parenthesis
KINDS = ("prompt", "cached", "generated", "forced")
RESULTS = {True: "ok", False: "failed"}
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of the text format that every Prometheus reads


class Snapshot(Struct, frozen=True, kw_only=True):
    """What the gauges show, now. Sizes in bytes; None where it is not known.

    models: name -> (resident, predicted) bytes; links: upstream -> whether it can be used. store_syncs,
    store_written_bytes: what edged's own database has cost the medium since the start.
    """

    queue_waiting: int
    outbox_waiting: int
    memory_budget_bytes: int
    memory_used_bytes: int | None
    threads_in_use: int
    store_syncs: int = 0
    store_written_bytes: int = 0
    models: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    links: dict[str, bool] = field(default_factory=dict)


class Metrics:
    """All metrics of the daemon. Counting never raises and costs microseconds.

    Args:
        agents, models, tools: names that may become labels; `models` are the board's and those of the upstreams.
    """

    def __init__(
        self,
        *,
        agents: Collection[str],
        models: Collection[str],
        tools: Collection[str],
    ) -> None:
        import prometheus_client as prometheus

        # The time a series began, beside each of them: half as many lines again that nobody reads.
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]  # published without types
        self._agents, self._models, self._tools = frozenset(agents), frozenset(models), frozenset(tools)
        self._wheres = frozenset(mind.where for mind in MINDS)
        self._registry = prometheus.CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self._requests = prometheus.Counter(
            "edged_requests_total", "Requests that have their outcome.", ("agent", "where", "status"), **own
        )
        self._outcomes = prometheus.Counter("edged_outcomes_total", "Answers.", ("agent", "outcome"), **own)
        self._request_s = prometheus.Histogram(
            "edged_request_seconds", "From the acceptance to the outcome.", buckets=SECONDS, **own
        )
        self._first_token_s = prometheus.Histogram(
            "edged_first_token_seconds", "From the acceptance to the first token of a model.", buckets=SECONDS, **own
        )
        self._tokens = prometheus.Counter(
            "edged_tokens_total",
            "Tokens: prompt, of these cached; generated, of these forced.",
            ("model", "kind"),
            **own,
        )
        self._steps = prometheus.Counter(
            "edged_decode_steps_total", "Steps of a model that generated.", ("model",), **own
        )
        self._loads = prometheus.Counter("edged_model_loads_total", "Loads of a model.", ("model", "result"), **own)
        self._unloads = prometheus.Counter(
            "edged_model_unloads_total", "Unloads of a model.", ("model", "reason"), **own
        )
        self._calls = prometheus.Counter("edged_tool_calls_total", "Calls of a tool.", ("tool", "result"), **own)
        self._ignored = prometheus.Counter(
            "edged_ignored_parameters_total", "Parameters of HTTP requests that had no effect.", **own
        )
        self._lag_s = prometheus.Histogram(
            "edged_loop_lag_seconds", "How late the event loop runs what is due.", buckets=LAG_SECONDS, **own
        )
        self._gauges = _Gauges()
        self._registry.register(self._gauges)
        self._begin_at_zero()

    def settled(self, agent: str, where: str, status: Status, seconds: float, first_token_s: float | None) -> None:
        """A request has its outcome. where: the mind's word; seconds from the acceptance, also to the first token."""
        self._requests.labels(_known(agent, self._agents), _known(where, self._wheres), status.value).inc()
        self._request_s.observe(seconds)
        if first_token_s is not None:
            self._first_token_s.observe(first_token_s)

    def answered(self, agent: str, outcome: str) -> None:
        """A request was answered; outcome: see types.AnswerKind."""
        self._outcomes.labels(_known(agent, self._agents), outcome).inc()

    def generated(
        self, model: str, *, prompt: int, cached: int, generated: int, forced: int, decode_steps: int
    ) -> None:
        """A generation ended: its tokens and its steps."""
        name = _known(model, self._models)
        for kind, count in zip(KINDS, (prompt, cached, generated, forced), strict=True):
            self._tokens.labels(name, kind).inc(count)
        self._steps.labels(name).inc(decode_steps)

    def tool_called(self, tool: str, ok: bool) -> None:
        """A tool was called."""
        self._calls.labels(_known(tool, self._tools), RESULTS[ok]).inc()

    def model_loaded(self, model: str, result: str) -> None:
        """A load ended. result: "ok", or the code of its error."""
        self._loads.labels(_known(model, self._models), result).inc()

    def model_unloaded(self, model: str, reason: str) -> None:
        """A model was unloaded. reason: the governor's word."""
        self._unloads.labels(_known(model, self._models), reason).inc()

    def parameters_ignored(self, count: int) -> None:
        """A request over HTTP named so many parameters that have no effect."""
        self._ignored.inc(count)

    def lag(self, seconds: float) -> None:
        """The event loop was so late once."""
        self._lag_s.observe(seconds)

    def render(self, now: Snapshot) -> tuple[bytes, str]:
        """The page and its content type. now: what the gauges show."""
        from prometheus_client import generate_latest

        self._gauges.now = now
        return generate_latest(self._registry), CONTENT_TYPE

    def _begin_at_zero(self) -> None:
        """A series that appears with its first event hides that event from every rate()."""
        for agent in sorted(self._agents):
            for where in sorted(self._wheres):
                for status in Status:
                    self._requests.labels(agent, where, status.value)
        for model in sorted(self._models):
            for kind in KINDS:
                self._tokens.labels(model, kind)
            self._steps.labels(model)
        for tool in sorted(self._tools):
            for result in RESULTS.values():
                self._calls.labels(tool, result)


async def watch_loop(metrics: Metrics, *, period_s: float = LAG_PERIOD_S) -> None:
    """Measure the event loop's lag by the lateness of a timer, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + period_s
        await asyncio.sleep(period_s)
        metrics.lag(max(0.0, loop.time() - due))


class _Gauges:
    """A collector of prometheus_client: everything that somebody else knows. now: set before each scrape."""

    now: Snapshot | None = None

    def collect(self) -> Iterator[Metric]:
        """One family a gauge."""
        from prometheus_client.core import CounterMetricFamily

        if (now := self.now) is None:  # prometheus_client asks for the names when the collector is registered
            return
        yield _gauge("queue_waiting", "Requests that wait for their turn or a link.", now.queue_waiting)
        yield _gauge("outbox_waiting", "Replies that are not delivered yet.", now.outbox_waiting)
        yield _gauge("memory_budget_bytes", "What all models may take together.", now.memory_budget_bytes)
        yield _gauge("memory_used_bytes", "Memory the daemon takes, models included.", now.memory_used_bytes)
        yield _gauge("threads_in_use", "Threads the models compute with.", now.threads_in_use)
        resident = {name: sizes[0] for name, sizes in now.models.items()}
        predicted = {name: sizes[1] for name, sizes in now.models.items()}
        yield _gauges("model_resident_bytes", "What a model takes now.", "model", resident)
        yield _gauges("model_predicted_bytes", "What a model was expected to take.", "model", predicted)
        links = {name: int(up) for name, up in now.links.items()}
        yield _gauges("link_up", "Whether an upstream can be used.", "upstream", links)
        help = "Times that edged's own database had the medium write everything down (fsync)."
        yield CounterMetricFamily("edged_store_syncs", help, value=now.store_syncs)
        help = "Bytes that edged's own database wrote, its log included, at most."
        yield CounterMetricFamily("edged_store_written_bytes", help, value=now.store_written_bytes)
        if (written := process.written_bytes()) is not None:
            help = "Bytes this process had written to the disk: what wears flash."
            yield CounterMetricFamily("edged_disk_written_bytes", help, value=written)


def _gauge(name: str, help: str, value: float | None) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"edged_{name}", help, value=value)  # None: named, without a value


def _gauges(name: str, help: str, label: str, values: Mapping[str, int | None]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"edged_{name}", help, labels=(label,))
    for key, value in values.items():
        if value is not None:
            family.add_metric((key,), value)
    return family


def _known(name: str, names: Collection[str]) -> str:
    return name if name in names else OTHER
