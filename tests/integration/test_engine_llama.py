"""The engine as the rest of edged uses it: a thread, a loop, a real model."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edged.engines.llama import LlamaEngine, sizes
from edged.engines.llama.runner import Runner
from edged.errors import BadRequest, Cancelled, ContextExceeded, Internal, ModelUnavailable
from edged.interfaces import Engine, Loader
from edged.types import Completion, Finish, Job, ModelSpec, Segment

pytestmark = pytest.mark.model

CONTEXT = 1024
MIB = 2**20
SYSTEM = "<|im_start|>system\nYou are the assistant of a small board in a house. Answer in short sentences.<|im_end|>\n"
LONG = "Tell me a very long story about a robot and a cat."


def model_path() -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("EDGED_TEST_MODELS_DIR") or cache / "edged" / "models")
    path = folder / "smollm2-135m-instruct-q4_1.gguf"
    if not path.is_file():
        pytest.fail(f"{path} is missing: pull the test models, or set EDGED_TEST_MODELS_DIR to their folder")
    return str(path)


def spec(name: str = "small", **more: Any) -> ModelSpec:
    return ModelSpec(**{"name": name, "path": model_path(), "context": CONTEXT, **more})


def job(question: str, model: str = "small", **more: Any) -> Job:
    fields: dict[str, Any] = {
        "rid": question[:8],
        "model": model,
        "prefix": (Segment(SYSTEM),),
        "turn": (
            Segment("<|im_start|>user\n"),
            Segment(question, literal=True),
            Segment("<|im_end|>\n<|im_start|>assistant\n"),
        ),
        "max_tokens": 12,
    }
    return Job(**{**fields, **more})


class Loads:
    """A residency that loads what it is asked for and never evicts. `held`: who uses a model at the moment."""

    def __init__(self) -> None:
        self.engine: LlamaEngine | None = None
        self.held = 0

    @asynccontextmanager
    async def hold(self, model: str) -> AsyncIterator[float]:
        assert self.engine is not None
        await self.engine.load(spec(model))
        self.held += 1
        try:
            yield 5.0
        finally:
            self.held -= 1


@pytest.fixture
async def engine() -> AsyncIterator[LlamaEngine]:
    residency = Loads()
    engine = LlamaEngine(residency, checked=True)
    residency.engine = engine
    await engine.start()
    yield engine
    await engine.stop()


class Text:
    """Collects a stream, and says when something has come."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.began = asyncio.Event()

    def __call__(self, text: str) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.parts.append(text)
        self.began.set()


async def begun(engine: LlamaEngine, what: Job) -> asyncio.Task[Completion]:
    """A generation whose first text has come."""
    text = Text()
    task = asyncio.create_task(engine.generate(what, text))
    await text.began.wait()
    return task


def test_it_is_what_the_interfaces_ask_for() -> None:
    def accepts(engine: Engine, loader: Loader) -> bool:
        return (engine, loader) is not None  # mypy does the checking

    both = LlamaEngine()
    assert accepts(both, both)


async def test_generate_streams_the_text_it_returns(engine: LlamaEngine) -> None:
    text = Text()
    done = await engine.generate(job(LONG), text)
    assert "".join(text.parts) == done.text
    assert len(text.parts) > 1
    assert all(text.parts)
    assert done.finish is Finish.LENGTH
    assert done.completion_tokens == 12
    assert done.load_ms == 5.0
    assert done.first_token_ms >= done.prefill_ms > 0
    assert done.decode_steps == 11


async def test_times_until_the_first_token_are_all_named(engine: LlamaEngine) -> None:
    """Tokenising and compiling a grammar are not lost between the two."""
    await engine.load(spec())
    done = await engine.generate(job("Hi", grammar="start: /[a-z ]+/"))
    assert done.first_token_ms - done.queue_ms - done.prefill_ms < 10  # the fixture's load of 5 ms is none


async def test_many_at_once_end_and_share_the_prefix(engine: LlamaEngine) -> None:
    done = await asyncio.gather(*(engine.generate(job(f"What is {i} plus {i}?")) for i in range(20)))
    assert all(d.text for d in done)
    assert sum(d.cached_tokens > 0 for d in done) == 19
    (stats,) = engine.stats()
    assert stats.running == stats.waiting == 0
    assert stats.prefixes == 1


async def test_two_models_are_served_in_turn(engine: LlamaEngine) -> None:
    slow = await begun(engine, job(LONG, model="one", max_tokens=400))
    done = await engine.generate(job("Hi", model="two"))
    assert done.text
    assert not slow.done()
    slow.cancel()
    assert {s.name for s in engine.stats()} == {"one", "two"}


async def test_cancel_returns_when_the_cells_are_free_and_others_go_on(engine: LlamaEngine) -> None:
    victim = await begun(engine, job(LONG, max_tokens=800))
    other = await begun(engine, job("Name many colours.", max_tokens=30))
    victim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await victim
    assert engine.stats()[0].running <= 1
    assert (await other).text
    await engine.unload("small")  # nothing uses it any more, or this would be refused


async def test_cancel_before_the_sequence_has_begun(engine: LlamaEngine) -> None:
    await engine.load(spec())
    running = [await begun(engine, job(LONG, max_tokens=60)) for _ in range(sizes.MAX_RUNNING)]
    waiting = asyncio.create_task(engine.generate(job("Hi")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert engine.stats()[0].running == 0


async def test_impatient_cancels_do_not_release_the_model_early(engine: LlamaEngine) -> None:
    residency = engine.residency
    assert isinstance(residency, Loads)
    task = await begun(engine, job(LONG, max_tokens=800))
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert residency.held == 0
    await engine.unload("small")


async def test_broken_on_text_does_not_break_the_generation(
    engine: LlamaEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_text: str) -> None:
        raise ValueError("no")

    done = await engine.generate(job(LONG), broken)
    assert done.completion_tokens == 12
    assert "on_text failed" in caplog.text


async def test_slow_on_text_does_not_hold_up_the_thread(engine: LlamaEngine) -> None:
    """While the loop is blocked the thread goes on; what it did meanwhile comes afterwards."""
    calls: list[str] = []

    def slow(text: str) -> None:
        calls.append(text)
        if len(calls) == 1:
            before = engine.stats()[0].decode_steps
            deadline = time.monotonic() + 20
            while engine.stats()[0].decode_steps < before + 5 and time.monotonic() < deadline:
                time.sleep(0.001)  # blocking the loop is what is tested
            assert engine.stats()[0].decode_steps >= before + 5

    done = await engine.generate(job(LONG), slow)
    assert "".join(calls) == done.text


async def test_refusals_come_back_to_the_caller(engine: LlamaEngine) -> None:
    with pytest.raises(ContextExceeded):
        await engine.generate(job("word " * CONTEXT))
    with pytest.raises(BadRequest, match="grammar"):
        await engine.generate(job("Hi", grammar="start: ((("))
    assert (await engine.generate(job("Hi"))).text


async def test_progress_is_busy_only_while_there_is_work(engine: LlamaEngine) -> None:
    await engine.load(spec())
    await _idle(engine)
    _, before = engine.progress()
    task = await begun(engine, job(LONG, max_tokens=200))
    busy, after = engine.progress()
    assert busy
    assert after > before
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await _idle(engine)


async def _idle(engine: LlamaEngine) -> None:
    """The thread sets no event when it falls asleep: the watchdog's view of it is what is tested."""
    async with asyncio.timeout(10):
        while engine.progress()[0]:
            await asyncio.sleep(0.001)


# Loading


async def test_load_twice_is_one_load(engine: LlamaEngine) -> None:
    await engine.load(spec())
    await engine.load(spec())
    assert len(engine.stats()) == 1
    with pytest.raises(Internal, match="other settings"):
        await engine.load(spec(context=2 * CONTEXT))


async def test_load_of_a_damaged_file_says_why_and_leaves_the_engine_usable(
    engine: LlamaEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    garbage, cut = tmp_path / "garbage.gguf", tmp_path / "cut.gguf"
    garbage.write_bytes(b"no model at all" * 100)
    cut.write_bytes(Path(model_path()).read_bytes()[: 5 * MIB])
    for path, reason in (
        (garbage, "no GGUF file"),
        (cut, "cut off|tensor|file|read"),
        (tmp_path / "none.gguf", "not a file"),
    ):
        with pytest.raises(ModelUnavailable, match=reason):
            await engine.load(spec("broken", path=str(path)))
    assert (await engine.generate(job("Hi"))).text
    assert capfd.readouterr() == ("", "")


async def test_load_that_is_cancelled_leaves_nothing_loaded(engine: LlamaEngine) -> None:
    for _ in range(3):
        task = asyncio.create_task(engine.load(spec()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine.stats()
    assert (await engine.generate(job("Hi"))).text


async def test_unload_is_refused_while_in_use_and_needs_no_model(engine: LlamaEngine) -> None:
    task = await begun(engine, job(LONG, max_tokens=400))
    with pytest.raises(Internal, match="use it"):
        await engine.unload("small")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await engine.unload("small")
    await engine.unload("small")
    assert not engine.stats()


async def test_generate_without_a_loaded_model_is_model_unavailable(engine: LlamaEngine) -> None:
    class Nothing:
        @asynccontextmanager
        async def hold(self, _model: str) -> AsyncIterator[float]:
            yield 0.0

    engine.residency = Nothing()
    with pytest.raises(ModelUnavailable, match="not loaded"):
        await engine.generate(job("Hi"))


MEMORY_CHILD = """
import asyncio, sys
from contextlib import asynccontextmanager
from edged.engines.llama import LlamaEngine
from edged.types import Job, ModelSpec, Segment

def private_bytes():
    # Dirty pages only: clean ones of the libraries' files count as private or shared by who else runs at the moment.
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(l.split()[1]) for l in file if l.startswith("Private_Dirty:")) * 1024

class Loaded:
    @asynccontextmanager
    async def hold(self, model):
        yield 0.0

async def main():
    engine = LlamaEngine(Loaded())
    await engine.start()
    figures = []
    for _ in range(4):
        await engine.load(ModelSpec(name="m", path=sys.argv[1], context=1024))
        jobs = (Job(rid="r", model="m", prefix=(), turn=(Segment(f"Story {i}: "),), max_tokens=8,
                    grammar="start: /[a-z ]+/") for i in range(6))
        await asyncio.gather(*map(engine.generate, jobs))
        loaded = private_bytes()
        await engine.unload("m")
        figures.append((loaded, private_bytes()))
    await engine.stop()
    print(figures)

asyncio.run(main())
"""


def test_unload_gives_the_memory_back() -> None:
    """Measured against the level after the first unload: the imported libraries stay. With one arena, as the daemon
    has it."""
    out = subprocess.run(
        [sys.executable, "-c", MEMORY_CHILD, model_path()],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    ).stdout
    figures = json.loads(out.replace("(", "[").replace(")", "]"))
    floor = figures[0][1]
    for loaded, unloaded in figures[1:]:
        assert loaded - floor > 40 * MIB  # keys and values alone take 45
        assert unloaded - floor < 8 * MIB  # what is left in arenas moves by some 4, and does not add up


# Ends


async def test_stop_ends_what_runs_and_what_waits() -> None:
    residency = Loads()
    engine = residency.engine = LlamaEngine(residency)
    await engine.start()
    running = await begun(engine, job(LONG, max_tokens=800))
    others = [asyncio.create_task(engine.generate(job("Hi", max_tokens=800))) for _ in range(sizes.MAX_RUNNING)]
    await asyncio.sleep(0)
    await engine.stop()
    for task in (running, *others):
        with pytest.raises((Cancelled, Internal)):
            await task
    assert not [t for t in threading.enumerate() if t.name == "edged.engines.llama"]
    assert residency.held == 0
    await engine.stop()
    with pytest.raises(Internal, match="not running"):
        await engine.load(spec())


async def test_death_of_the_thread_is_told_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths: list[BaseException] = []
    residency = Loads()
    engine = residency.engine = LlamaEngine(residency, on_fatal=deaths.append)
    await engine.start()
    await engine.load(spec())

    def fail(_runner: Runner) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Runner, "step", fail)
    tasks = [asyncio.create_task(engine.generate(job("Hi"))) for _ in range(3)]
    for task in tasks:
        with pytest.raises(Internal, match="died"):
            await task
    assert isinstance(deaths[0], ZeroDivisionError)
    with pytest.raises(Internal):
        await engine.generate(job("Hi"))
    await engine.stop()
    gc.collect()
