"""What stands between the engine and those who ask it counts, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.daemon.metering import MeteredEngine
from edged.daemon.metrics import Metrics, Snapshot
from edged.engines.scripted import ScriptedEngine
from edged.errors import ModelUnavailable
from edged.types import Job, ModelSpec, Segment

JOB = Job(rid="r", model="small", prefix=(Segment("a b"),), turn=(Segment("hello there", True),), max_tokens=9)

NOTHING = Snapshot(queue_waiting=0, outbox_waiting=0, memory_budget_bytes=0, memory_used_bytes=None, threads_in_use=0)


async def test_warming_is_passed_on_and_counted_nowhere() -> None:
    """A generation is: its tokens are somebody's request."""
    metrics = Metrics(agents=[], models=["small"], tools=[])
    scripted = ScriptedEngine()
    engine = MeteredEngine(scripted, metrics)
    before = metrics.render(NOTHING)
    await engine.warm(JOB)
    assert scripted.warmed == [JOB]
    assert scripted.jobs == []
    assert metrics.render(NOTHING) == before
    await engine.generate(JOB)
    assert scripted.jobs == [JOB]
    assert 'edged_tokens_total{kind="prompt",model="small"} 4.0' in metrics.render(NOTHING)[0].decode()


async def test_a_script_that_is_missing_is_a_model_that_is_unavailable(tmp_path: Path) -> None:
    """As every Loader says it: the daemon goes on without."""
    with pytest.raises(ModelUnavailable, match="no script"):
        await ScriptedEngine().load(ModelSpec(name="small", path=str(tmp_path / "none.toml"), context=4096))
