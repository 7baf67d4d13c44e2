"""How fast this board computes models: what was measured here before, else a few seconds with an installed model, else
a guess from the speed of memory and arithmetic.

What was measured is kept in the user's cache folder, with the machine and the day.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.cli.connection import cache_dir
from edged.errors import EdgedError
from edged.host import cpus
from edged.models import catalog, fit, pull
from edged.models.catalog import Entry
from edged.models.fit import BoardSpeed
from edged.types import Job, ModelSpec, Sampling, Segment

CONTEXT = 512  # tokens; all that measuring needs
PROMPT_WORDS = 192  # words, about a token each: one chunk of a prompt, a second or two of a small board
GENERATED = 32  # tokens
LARGEST = 600 * 10**6  # bytes of a model that is worth loading for this: 15 s from a card, the default is below it
# What llama.cpp makes of the bytes and operations a second that numpy sees, on CPUs: a third, within a factor of two.
SHARE = 1 / 3
BLOCK = 32 * 2**20  # bytes: more than the caches of a small board hold
SIDE = 512  # of the matrices
ROUNDS = 5  # the best counts: anything else on the board only takes time away


class Measured(Struct, frozen=True):
    """What was measured. by: the model, or "memory and arithmetic". at: wall clock. machine: what it holds for."""

    board: BoardSpeed
    by: str
    at: float
    machine: str


def machine() -> str:
    """This board, as far as speed goes."""
    return f"{cpus.model_name()}, {len(os.sched_getaffinity(0))} cores"


def cached() -> Measured | None:
    """What was measured on this machine before."""
    with contextlib.suppress(OSError, RuntimeError, msgspec.MsgspecError):
        found = msgspec.json.decode(_path().read_bytes(), type=Measured)
        return found if found.machine == machine() else None
    return None


def measured(models_dir: Path, room: int) -> Measured:
    """Measure now, within so many bytes of memory, and keep it."""
    fitting = [
        entry
        for model in pull.installed(models_dir)
        if (entry := catalog.find(model.name)).engine == "llama.cpp"
        and entry.bytes <= LARGEST
        and fit.need(entry, CONTEXT) <= room
    ]
    board, by = None, "memory and arithmetic"
    for entry in sorted(fitting, key=lambda e: -e.bytes):
        with contextlib.suppress(EdgedError, ImportError):  # another one may do
            board, by = asyncio.run(_with(entry, models_dir)), entry.name
            break
    found = Measured(board or _guess(), by, time.time(), machine())
    with contextlib.suppress(OSError, RuntimeError):  # then it is measured again next time
        _path().parent.mkdir(parents=True, exist_ok=True)
        draft = _path().with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(found))
        draft.replace(_path())
    return found


class _Held:
    """Implements interfaces.Residency for the one model that is loaded."""

    @contextlib.asynccontextmanager
    async def hold(self, model: str) -> AsyncIterator[float]:
        """See interfaces.Residency."""
        yield 0.0


async def _with(entry: Entry, models_dir: Path) -> BoardSpeed:
    from edged.engines.llama import LlamaEngine

    spec = ModelSpec(name=entry.name, path=str(catalog.of_entry(entry, models_dir).path), context=CONTEXT)
    engine = LlamaEngine(_Held())
    await engine.start()
    try:
        await engine.load(spec)
        prefill = decode = 0.0
        for opening in ("red", "green"):  # the first one also reads the weights and warms the threads up
            done = await engine.generate(
                Job(
                    rid="speed",
                    model=entry.name,
                    prefix=(),
                    turn=(Segment(f"{opening} " * PROMPT_WORDS, literal=True),),
                    max_tokens=GENERATED,
                    sampling=Sampling(seed=0),
                )
            )
            computed = done.prompt_tokens - done.cached_tokens
            prefill = 1000 * computed / max(done.prefill_ms, 0.1)
            decode = 1000 * max(1, done.decode_steps) / max(done.decode_ms, 0.1)
        return fit.board(entry, prefill_tokens_s=prefill, decode_tokens_s=decode)
    finally:
        await engine.stop()


def _guess() -> BoardSpeed:
    """By numpy, with one thread for memory and as many as it likes for arithmetic."""
    import numpy as np

    block = np.ones(BLOCK // 4, dtype=np.float32)
    side = np.ones((SIDE, SIDE), dtype=np.float32)
    read, computed = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        float(block.sum())
        middle = time.perf_counter()
        _ = side @ side
        read.append(middle - began)
        computed.append(time.perf_counter() - middle)
    return BoardSpeed(SHARE * BLOCK / min(read), SHARE * 2 * SIDE**3 / min(computed))


def _path() -> Path:
    return cache_dir() / "speed.json"
