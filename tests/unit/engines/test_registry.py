"""Dispatch: what a model is asked goes to the engine that runs it, and the governor sees one engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edged.engines.registry import Engines
from edged.engines.scripted import ScriptedEngine
from edged.errors import BadRequest, ModelUnavailable
from edged.residency.governor import Governor
from edged.types import EmbedJob, Job, ModelSpec, Segment
from tests.support.memory import Even, plenty

SCRIPTS = {"talks": "", "embeds": "dimensions = 8", "more": "dimensions = 4"}
EMBED = EmbedJob(model="embeds", texts=("one two", "one two", "three"))


def job(model: str) -> Job:
    return Job(rid="r", model=model, prefix=(), turn=(Segment("hello", literal=True),), max_tokens=9)


class Board:
    """Two engines as one, with a governor that has room for two models of three."""

    def __init__(self, folder: Path) -> None:
        self.events: list[tuple[str, str]] = []
        self.llama, self.onnx = ScriptedEngine(), ScriptedEngine()
        specs = {}
        for name, script in SCRIPTS.items():
            (folder / name).write_text(script)
            kind = "llama.cpp" if name == "talks" else "onnx"
            specs[name] = ModelSpec(name=name, path=str(folder / name), context=256, engine=kind)
        self.engines = Engines(specs, {"llama.cpp": self.llama, "onnx": self.onnx})
        self.governor = self.engines.residency = Governor(
            specs,
            self.engines,
            sizer=Even(40),
            budget_bytes=100,
            reserve_bytes=0,
            idle_unload_s=1e6,
            tell=lambda name, data: self.events.append((name, data["model"])),
        )


@asynccontextmanager
async def board(folder: Path) -> AsyncIterator[Board]:
    """At work."""
    made = Board(folder)
    await made.engines.start()
    task = asyncio.create_task(made.governor.run())
    yield made
    task.cancel()
    await asyncio.wait([task])
    await made.engines.stop()


async def test_models_go_to_their_engine_and_are_evicted_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least recently used first, whatever runs them."""
    plenty(monkeypatch)
    async with board(tmp_path) as at:
        assert (await at.engines.generate(job("talks"))).text == "hello"
        made = await at.engines.embed(EMBED)
        assert made.tokens == 5
        assert made.vectors[0] == made.vectors[1] != made.vectors[2]
        await at.engines.embed(EmbedJob(model="more", texts=("x",)))
        await at.engines.warm(job("talks"))
        assert at.events == [
            *(("model_loaded", "talks"), ("model_loaded", "embeds")),
            *(("model_unloaded", "talks"), ("model_loaded", "more")),
            *(("model_unloaded", "embeds"), ("model_loaded", "talks")),
        ]


async def test_wrong_kind_of_model_is_told_by_name(tmp_path: Path) -> None:
    """Nothing is loaded for it."""
    async with board(tmp_path) as at:
        with pytest.raises(BadRequest, match="'embeds' is an embedding model: it does not generate"):
            await at.engines.generate(job("embeds"))
        with pytest.raises(BadRequest, match="'embeds' is an embedding model"):
            await at.engines.warm(job("embeds"))
        with pytest.raises(BadRequest, match=r"'talks' is a language model .* those that do are embeds, more"):
            await at.engines.embed(EmbedJob(model="talks", texts=("x",)))
        with pytest.raises(ModelUnavailable, match="no model 'none' is configured"):
            await at.engines.generate(job("none"))
        assert at.events == []


async def test_progress_is_of_the_engine_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gets on does not hide it; an idle one is not stuck."""
    async with board(tmp_path) as at:
        began = time.monotonic()
        assert at.engines.progress()[0] is False
        assert at.engines.progress()[1] >= began
        monkeypatch.setattr(at.llama, "progress", lambda: (True, 50.0))
        monkeypatch.setattr(at.onnx, "progress", lambda: (True, 9.0))
        assert at.engines.progress() == (True, 9.0)
        monkeypatch.setattr(at.onnx, "progress", lambda: (False, 1.0))
        assert at.engines.progress() == (True, 50.0)
