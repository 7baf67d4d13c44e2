"""The engine of embedding models with the real MiniLM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edged.engines.onnx import OnnxEngine
from edged.engines.onnx.model import EmbeddingModel, normalised, pooled
from edged.errors import BadRequest, ContextExceeded, Internal, ModelUnavailable
from edged.types import Embeddings, EmbedJob, ModelSpec

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
MODELS = Path(os.environ.get("EDGED_TEST_MODELS_DIR") or CACHE / "edged" / "models")
PATH = MODELS / "all-minilm-l6-v2-int8.onnx"
SPEC = ModelSpec(name="minilm", path=str(PATH), context=512, threads=1, engine="onnx")
TANK, WATER, CAT = "The tank in the north is nearly empty.", "The northern reservoir has little water.", "A cat sleeps."
WIDTH = 384


class Resident:
    """A residency that keeps everything."""

    @contextlib.asynccontextmanager
    async def hold(self, model: str) -> AsyncIterator[float]:
        """See interfaces.Residency."""
        yield 0.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[OnnxEngine]:
    """With the model loaded."""
    assert PATH.is_file(), f"{PATH} is missing: scripts/test pulls it"
    made = OnnxEngine(Resident())
    await made.start()
    await made.load(SPEC)
    yield made
    await made.stop()


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def embed(engine: OnnxEngine, *texts: str, dimensions: int | None = None) -> Embeddings:
    return await engine.embed(EmbedJob(model="minilm", texts=texts, dimensions=dimensions))


def numbers(made: Embeddings) -> NDArray[np.float32]:
    return np.array([struct.unpack(f"<{WIDTH}f", vector) for vector in made.vectors], np.float32)


async def test_related_sentences_are_closer_than_unrelated(engine: OnnxEngine) -> None:
    """What embeddings are for; each has length 1."""
    made = numbers(await embed(engine, TANK, WATER, CAT))
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    related, one, other = made[0] @ made[1], made[0] @ made[2], made[1] @ made[2]
    assert related > 0.4
    assert max(one, other) < 0.2


async def test_vector_is_the_mean_of_the_tokens_as_numpy_has_it(engine: OnnxEngine) -> None:
    """With a session and a tokenizer of the test's own."""
    encoder = Tokenizer.from_file(str(PATH.with_suffix(".tokenizer.json")))
    encoder.no_truncation()
    encoder.no_padding()
    ids = np.array([encoder.encode(TANK).ids])
    session = onnxruntime.InferenceSession(str(PATH), providers=["CPUExecutionProvider"])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    mean = session.run(None, feed)[0][0].mean(axis=0)
    made = await embed(engine, TANK)
    assert np.allclose(numbers(made)[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert made.tokens == ids.size


async def test_vector_of_a_text_does_not_depend_on_those_beside_it(engine: OnnxEngine) -> None:
    """Nor on the order, nor on what else is asked at once."""
    texts = (CAT, TANK, "ok", WATER * 20)
    together, *alone = await asyncio.gather(embed(engine, *texts), *(embed(engine, text) for text in texts))
    assert together.vectors == tuple(made.vectors[0] for made in alone)
    assert together.tokens == sum(made.tokens for made in alone)


async def test_text_that_is_too_long_is_refused_with_its_length(engine: OnnxEngine) -> None:
    """By number, before anything is computed; the longest that fits is taken."""
    before = engine.stats()[0].texts
    with pytest.raises(ContextExceeded, match=r"input\[1\] has 513 tokens .* room for 512"):
        await embed(engine, TANK, "cat " * 511)
    assert engine.stats()[0].texts == before
    assert (await embed(engine, "cat " * 510)).tokens == 512


async def test_dimensions_other_than_the_models_are_refused(engine: OnnxEngine) -> None:
    """A MiniLM's vectors cannot be cut."""
    assert len((await embed(engine, CAT, dimensions=WIDTH)).vectors[0]) == 4 * WIDTH
    with pytest.raises(BadRequest, match="dimensions: the model makes vectors of 384"):
        await embed(engine, CAT, dimensions=128)


async def test_status_tells_what_computes_and_why_not_something_else(engine: OnnxEngine) -> None:
    """As it is here: the CPU."""
    await embed(engine, CAT)
    [stats] = engine.stats()
    assert (stats.provider, stats.context, stats.dimensions, stats.threads) == ("CPU", 512, WIDTH, 1)
    assert "CPU" in stats.offered
    assert set(stats.passed_over) == {*stats.offered} - {"CPU"}
    assert all(stats.passed_over.values())
    assert stats.texts > 0


async def test_cancelled_job_is_not_computed_to_its_end(engine: OnnxEngine) -> None:
    """And the model may be unloaded as soon as the call has returned."""
    before = engine.stats()[0].texts
    long = asyncio.create_task(embed(engine, *[WATER * 10] * 500))
    await embed(engine, CAT)  # turns are taken: when it is done, the other has been begun
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert before < (await asyncio.to_thread(engine.stats))[0].texts < before + 500
    await engine.unload("minilm")
    await engine.load(SPEC)


async def test_model_in_use_is_not_unloaded(engine: OnnxEngine) -> None:
    """The governor would never; whoever does hears of it."""
    long = asyncio.create_task(embed(engine, *[CAT] * 200))
    await embed(engine, CAT)
    with pytest.raises(Internal, match="1 requests use it"):
        await engine.unload("minilm")
    assert len((await long).vectors) == 200


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.with_suffix(".tokenizer.json").unlink(), "has no tokenizer: put its tokenizer.json at"),
        (lambda path: path.with_suffix(".tokenizer.json").write_text("{}"), "is no tokenizer"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000000]), "no ONNX model"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["no_tokenizer", "bad_tokenizer", "cut_off", "missing"],
)
async def test_what_is_wrong_with_the_files_is_told(engine: OnnxEngine, tmp_path: Path, damage: Any, told: str) -> None:
    """Others stay loaded."""
    path = tmp_path / PATH.name
    shutil.copy(PATH, path)
    shutil.copy(PATH.with_suffix(".tokenizer.json"), path.with_suffix(".tokenizer.json"))
    damage(path)
    with pytest.raises(ModelUnavailable, match=told):
        await engine.load(ModelSpec(name="bad", path=str(path), context=512, engine="onnx"))
    assert [stats.name for stats in engine.stats()] == ["minilm"]


class Session:
    """A session of onnxruntime's that a provider failed, or that goes on without it."""

    def __init__(self, path: str, options: object, providers: Sequence[str]) -> None:
        if providers[0] == "CUDAExecutionProvider":
            raise RuntimeError("no driver")
        self.real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


async def test_provider_that_fails_leaves_the_model_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason in the log and in `status`."""
    monkeypatch.setattr("edged.engines.onnx.file.ONLY_ON_CPU", frozenset())
    names = [f"{name}ExecutionProvider" for name in ("CUDA", "Xnnpack", "CPU")]
    model = EmbeddingModel(SPEC, 1, make_session=Session, offered=names)
    assert model.provider == "CPU"
    assert model.offered == ("CUDA", "Xnnpack", "CPU")
    assert model.passed_over["CUDA"] == "it failed: no driver"
    assert model.passed_over["Xnnpack"].startswith("it did not start")
    assert "not computed by CUDA: it failed: no driver" in caplog.text


async def test_batch_of_a_float_model_is_pooled_over_its_mask() -> None:
    """Padding does not count; a vector of zeros stays one."""
    found = np.array([[[3, 0], [0, 4], [9, 9]], [[0, 0], [7, 7], [7, 7]]], np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    made = normalised(pooled(found, mask))
    assert np.allclose(made, np.array([[0.6, 0.8], [0, 0]]))
    assert np.allclose(normalised(pooled(found[:, 0, :], mask)), np.array([[1, 0], [0, 0]]))


MEMORY = """
import asyncio, contextlib, sys
from edged.engines.onnx import OnnxEngine
from edged.types import EmbedJob, ModelSpec

def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024

class Resident:
    @contextlib.asynccontextmanager
    async def hold(self, model):
        yield 0.0

async def main():
    engine = OnnxEngine(Resident(), 1)
    await engine.start()
    for _ in range(6):
        await engine.load(ModelSpec(name="m", path=sys.argv[1], context=512))
        await engine.embed(EmbedJob(model="m", texts=("cat " * 400, "cat")))
        loaded = private()
        await engine.unload("m")
        print(loaded, private())
    await engine.stop()

asyncio.run(main())
"""


async def test_unload_gives_memory_back() -> None:
    """In a process of its own: after the first cycle, which imports the libraries, nothing grows."""
    code = [sys.executable, "-c", MEMORY, str(PATH)]
    done = await asyncio.to_thread(subprocess.run, code, capture_output=True, text=True, check=True)
    cycles = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    loaded, unloaded = [cycle[0] for cycle in cycles], [cycle[1] for cycle in cycles]
    assert loaded[-1] - unloaded[-1] > 20, cycles
    assert max(unloaded) <= unloaded[0] + 4, cycles
