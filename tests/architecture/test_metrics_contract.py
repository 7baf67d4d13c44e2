"""The metrics users build dashboards and alarms on: names and labels, as they are documented."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from edged.daemon.metrics import Metrics, Snapshot
from edged.types import Status

ROOT = Path(__file__).parents[2]

# A name or a label that changes here breaks somebody's alarm.
CONTRACT: dict[str, set[str]] = {
    "edged_requests_total": {"agent", "where", "status"},
    "edged_outcomes_total": {"agent", "outcome"},
    "edged_request_seconds": set(),
    "edged_first_token_seconds": set(),
    "edged_queue_waiting": set(),
    "edged_tokens_total": {"model", "kind"},
    "edged_decode_steps_total": {"model"},
    "edged_model_resident_bytes": {"model"},
    "edged_model_predicted_bytes": {"model"},
    "edged_memory_budget_bytes": set(),
    "edged_memory_used_bytes": set(),
    "edged_model_loads_total": {"model", "result"},
    "edged_model_unloads_total": {"model", "reason"},
    "edged_link_up": {"upstream"},
    "edged_outbox_waiting": set(),
    "edged_tool_calls_total": {"tool", "result"},
    "edged_ignored_parameters_total": set(),
    "edged_disk_written_bytes_total": set(),
    "edged_store_syncs_total": set(),
    "edged_store_written_bytes_total": set(),
    "edged_loop_lag_seconds": set(),
    "edged_threads_in_use": set(),
}
TOKEN_KINDS = {"prompt", "cached", "generated", "forced"}


def shown() -> dict[str, list[dict[str, str]]]:
    """Everything a daemon can show, by name: the labels of each sample."""
    snapshot = Snapshot(
        queue_waiting=1,
        outbox_waiting=1,
        memory_budget_bytes=1,
        memory_used_bytes=1,
        threads_in_use=1,
        models={"small": (1, 1)},
        links={"cloud": True},
    )
    metrics = Metrics(agents=["house"], models=["small"], tools=["lamp"])
    metrics.settled("house", "local", Status.DONE, 1.0, 1.0)
    metrics.answered("house", "acted")
    metrics.generated("small", prompt=1, cached=1, generated=1, forced=1, decode_steps=1)
    metrics.tool_called("lamp", True)
    metrics.model_loaded("small", "ok")
    metrics.model_unloaded("small", "idle")
    metrics.parameters_ignored(1)
    metrics.lag(0.1)
    families = list(text_string_to_metric_families(metrics.render(snapshot)[0].decode()))
    suffix = {"counter": "_total"}
    return {family.name + suffix.get(family.type, ""): [s.labels for s in family.samples] for family in families}


def test_code_shows_what_the_contract_names_and_nothing_else() -> None:
    """Both ways: nothing is missing, nothing is undocumented; each with a sample and just its labels."""
    found = shown()
    assert set(found) == set(CONTRACT)
    for name, samples in found.items():
        assert samples, name
        for labels in samples:
            assert set(labels) - {"le"} == CONTRACT[name], name


def test_tokens_are_of_the_four_kinds() -> None:
    """A dashboard adds them up by name."""
    assert {labels["kind"] for labels in shown()["edged_tokens_total"]} == TOKEN_KINDS


def test_readme_that_lists_metrics_lists_all_of_them() -> None:
    """With the prefix or, as in a table, without it."""
    readme = (ROOT / "README.md").read_text()
    if "edged_requests_total" in readme or "`requests_total" in readme:
        short = {name: name.removeprefix("edged_") for name in CONTRACT}
        assert not [name for name in CONTRACT if name not in readme and f"`{short[name]}" not in readme]
