"""What the page at /metrics says after what was counted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edged.daemon import metrics
from edged.daemon.metrics import LAG_SECONDS, OTHER, SECONDS, Metrics, Snapshot, watch_loop
from edged.host import process
from edged.types import Status

NOTHING = Snapshot(queue_waiting=0, outbox_waiting=0, memory_budget_bytes=0, memory_used_bytes=None, threads_in_use=0)


def made() -> Metrics:
    """Metrics of a small board."""
    return Metrics(agents=["house"], models=["small"], tools=["lamp"])


def page(of: Metrics, now: Snapshot = NOTHING) -> dict[str, float]:
    """The page as a scraper reads it: `name{label=value,...}` -> value."""
    body, kind = of.render(now)
    assert kind.startswith("text/plain; version=0.0.4")
    samples = [s for family in text_string_to_metric_families(body.decode()) for s in family.samples]
    return {f"{s.name}{{{','.join(f'{k}={v}' for k, v in sorted(s.labels.items()))}}}": s.value for s in samples}


def test_request_is_counted_by_agent_place_and_outcome() -> None:
    """Its time and its first token go into the buckets, where it had one."""
    of = made()
    of.settled("house", "local", Status.DONE, 0.3, 0.02)
    of.settled("house", "cloud", Status.EXPIRED, 700.0, None)
    shown = page(of)
    assert shown["edged_requests_total{agent=house,status=done,where=local}"] == 1
    assert shown["edged_requests_total{agent=house,status=expired,where=cloud}"] == 1
    assert shown["edged_request_seconds_bucket{le=0.25}"] == 0
    assert shown["edged_request_seconds_bucket{le=0.5}"] == 1
    assert shown["edged_request_seconds_bucket{le=600.0}"] == 1
    assert shown["edged_request_seconds_count{}"] == 2
    assert shown["edged_first_token_seconds_sum{}"] == 0.02
    assert shown["edged_first_token_seconds_count{}"] == 1


def test_generation_adds_its_tokens_and_steps() -> None:
    """Each kind apart."""
    of = made()
    for _ in range(2):
        of.generated("small", prompt=400, cached=380, generated=21, forced=15, decode_steps=6)
    shown = page(of)
    counted = {kind: shown[f"edged_tokens_total{{kind={kind},model=small}}"] for kind in metrics.KINDS}
    assert counted == {"prompt": 800, "cached": 760, "generated": 42, "forced": 30}
    assert shown["edged_decode_steps_total{model=small}"] == 12


def test_tools_and_models_are_counted_by_what_came_of_it() -> None:
    """Calls by result, loads by result, unloads by reason."""
    of = made()
    of.tool_called("lamp", True)
    of.tool_called("lamp", False)
    of.model_loaded("small", "ok")
    of.model_loaded("small", "no_memory")
    of.model_unloaded("small", "idle")
    shown = page(of)
    assert shown["edged_tool_calls_total{result=ok,tool=lamp}"] == 1
    assert shown["edged_tool_calls_total{result=failed,tool=lamp}"] == 1
    assert shown["edged_model_loads_total{model=small,result=ok}"] == 1
    assert shown["edged_model_loads_total{model=small,result=no_memory}"] == 1
    assert shown["edged_model_unloads_total{model=small,reason=idle}"] == 1


def test_series_of_known_names_begin_at_zero() -> None:
    """The first failure is an increase, not a series that nobody saw before."""
    shown = page(made())
    assert shown["edged_requests_total{agent=house,status=failed,where=local}"] == 0
    assert shown["edged_tokens_total{kind=forced,model=small}"] == 0
    assert shown["edged_tool_calls_total{result=failed,tool=lamp}"] == 0


def test_names_nobody_configured_share_one_label() -> None:
    """However many there are: a series is never given back."""
    of = made()
    of.settled("a0", "elsewhere", Status.FAILED, 1.0, None)
    before = len(page(of))
    for number in range(100):
        of.settled(f"a{number}", "elsewhere", Status.FAILED, 1.0, None)
        of.tool_called(f"t{number}", True)
        of.generated(f"m{number}", prompt=1, cached=0, generated=1, forced=0, decode_steps=1)
    shown = page(of)
    assert shown[f"edged_requests_total{{agent={OTHER},status=failed,where={OTHER}}}"] == 101
    assert shown[f"edged_tool_calls_total{{result=ok,tool={OTHER}}}"] == 100
    assert len(shown) == before + 1 + len(metrics.KINDS) + 1  # one tool, one model with its tokens and steps


def test_gauges_are_those_of_the_moment() -> None:
    """Asked for once a scrape; a model or an upstream that is gone leaves no series behind."""
    first = Snapshot(
        queue_waiting=3,
        outbox_waiting=2,
        memory_budget_bytes=1000,
        memory_used_bytes=600,
        threads_in_use=4,
        models={"small": (500, 550), "large": (None, 900)},
        links={"cloud": True, "lan": False},
    )
    of = made()
    shown = page(of, first)
    assert shown["edged_queue_waiting{}"] == 3
    assert shown["edged_outbox_waiting{}"] == 2
    assert (shown["edged_memory_budget_bytes{}"], shown["edged_memory_used_bytes{}"]) == (1000, 600)
    assert shown["edged_threads_in_use{}"] == 4
    assert shown["edged_model_resident_bytes{model=small}"] == 500
    assert shown["edged_model_predicted_bytes{model=large}"] == 900
    assert "edged_model_resident_bytes{model=large}" not in shown
    assert (shown["edged_link_up{upstream=cloud}"], shown["edged_link_up{upstream=lan}"]) == (1, 0)
    later = page(of)
    assert later["edged_queue_waiting{}"] == 0
    assert not [name for name in later if "edged_memory_used" in name or "link_up" in name or "resident" in name]


def test_written_bytes_are_what_the_kernel_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what was handed to the page cache and thrown away; without the file there is no series."""
    own = tmp_path / "io"
    own.write_text("rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 0\n")
    monkeypatch.setattr(process, "IO", own)
    of = made()
    assert page(of)["edged_disk_written_bytes_total{}"] == 4096
    own.unlink()
    assert "edged_disk_written_bytes_total{}" not in page(of)


def test_page_of_this_process_tells_its_own_writes() -> None:
    """/proc/self/io as this kernel writes it."""
    if not process.IO.exists():
        pytest.skip("a kernel without I/O accounting")
    assert page(made())["edged_disk_written_bytes_total{}"] >= 0


async def test_loop_that_is_blocked_shows_as_lag() -> None:
    """What ran for 0.3 s on the loop is seen in the buckets above a quarter."""
    of = made()
    watching = asyncio.create_task(watch_loop(of, period_s=0.01))
    await asyncio.sleep(0)  # the timer is set
    time.sleep(0.3)  # noqa: ASYNC251  # what is to be seen
    await asyncio.sleep(0.05)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    shown = page(of)
    assert shown["edged_loop_lag_seconds_count{}"] - shown["edged_loop_lag_seconds_bucket{le=0.25}"] >= 1
    assert shown["edged_loop_lag_seconds_sum{}"] >= 0.28


def test_buckets_reach_from_a_tool_call_to_a_cold_board() -> None:
    """5 ms to 10 minutes, in order; a lag that endangers the watchdog is told apart."""
    assert (SECONDS[0], SECONDS[-1]) == (0.005, 600.0)
    assert list(SECONDS) == sorted(set(SECONDS))
    assert list(LAG_SECONDS) == sorted(set(LAG_SECONDS))
    assert LAG_SECONDS[-1] >= 5


def test_importing_the_module_does_not_load_the_library() -> None:
    """A daemon that serves no metrics does not carry it."""
    code = "import edged.daemon.metrics, sys; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_two_daemons_in_one_process_do_not_share_a_registry() -> None:
    """Tests and programs that embed it make more than one."""
    one, other = made(), made()
    one.tool_called("lamp", True)
    assert page(other)["edged_tool_calls_total{result=ok,tool=lamp}"] == 0
    assert not [name for name in page(made()) if name.startswith(("process_", "python_"))]
