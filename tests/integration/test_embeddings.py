"""POST /v1/embeddings: with the SDK in front of a scripted model, and once the whole daemon with the real MiniLM."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from edged import config
from edged.agent.dialects import Dialects
from edged.completions.embeddings import EmbeddingModels
from edged.completions.plain import Completions
from edged.completions.slots import AT_ONCE
from edged.config import Model
from edged.daemon.checks import check_all
from edged.engines.kind import ChatTemplate, embeds_only
from edged.engines.scripted import ScriptedEngine
from edged.errors import Busy, ConfigError, ContextExceeded
from edged.models.files import model_specs
from edged.types import Embeddings, EmbedJob, ModelSpec
from tests.support.cli import edged
from tests.support.daemon import Daemon, Wired
from tests.support.openai_server import GUEST, Served, serving
from tests.support.real_model import model_path

WAITING = 2
WIDTH = 8


@pytest.fixture
async def engine(tmp_path: Path) -> ScriptedEngine:
    """Models: minilm embeds, small talks."""
    engine = ScriptedEngine()
    for name, script in (("minilm", f"dimensions = {WIDTH}"), ("small", "")):
        (tmp_path / name).write_text(script)
        await engine.load(ModelSpec(name=name, path=str(tmp_path / name), context=512))
    return engine


@pytest.fixture
async def served(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Served]:
    """A server of them."""
    models = {"minilm": Model(), "small": Model()}

    def template_of(spec: ModelSpec) -> ChatTemplate:
        if spec.name == "minilm":
            raise embeds_only(spec.name)
        return ChatTemplate()

    chats = Completions(engine, models, Dialects(template_of), max_waiting=WAITING)
    async with serving(tmp_path, chats, models, EmbeddingModels(engine, models, max_waiting=WAITING)) as served:
        yield served


async def test_sdk_gets_a_vector_for_each_text(served: Served) -> None:
    """As floats, which it asks for in base64 where nobody says otherwise; over both sockets."""
    made = await served.client.embeddings.create(model="minilm", input=["one two", "three", "one two"])
    [first, other, again] = [each.embedding for each in made.data]
    assert first == again != other
    assert len(first) == WIDTH
    assert sum(number * number for number in first) == pytest.approx(1, abs=1e-6)
    assert [(each.index, each.object) for each in made.data] == [(0, "embedding"), (1, "embedding"), (2, "embedding")]
    assert (made.object, made.model, made.usage.prompt_tokens, made.usage.total_tokens) == ("list", "minilm", 5, 5)
    single = await served.client.embeddings.create(
        model="minilm", input="one two", encoding_format="float", dimensions=WIDTH, user="me"
    )
    assert single.data[0].embedding == pytest.approx(first, abs=1e-7)
    sync = await served.in_thread(lambda c: c.embeddings.create(model="minilm", input="three"), tcp=True)
    assert sync.data[0].embedding == other


async def test_base64_is_little_endian_float32(served: Served) -> None:
    """For clients that are not the SDK."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(served.socket))) as http,
        http.post(
            "http://edged/v1/embeddings", json={"model": "minilm", "input": "x", "encoding_format": "base64"}
        ) as answer,
    ):
        written = (await answer.json())["data"][0]["embedding"]
    [told] = (await served.client.embeddings.create(model="minilm", input="x", encoding_format="float")).data
    assert struct.unpack(f"<{WIDTH}f", base64.b64decode(written)) == pytest.approx(told.embedding, abs=1e-7)


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"input": []}, "input", "is an empty list"),
        ({"input": ""}, "input", "is an empty string"),
        ({"input": ["a", ""]}, "input[1]", "is an empty string"),
        ({"input": [1, 2]}, "input", "token ids are not taken"),
        ({"input": [[1, 2]]}, "input", "token ids are not taken"),
        ({"input": {"text": "x"}}, "input", "is a string or a list of strings"),
        ({"input": ["a", None]}, "input[1]", "is not a string"),
        ({"input": ["x"] * 2049}, "input", "2049 of them; at most 2048"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", "allowed are float, base64"),
        ({"input": "x", "dimensions": 4}, "dimensions", "makes vectors of 8, which cannot be cut"),
        ({"input": "x", "dimensions": 0}, "dimensions", "is less than 1"),
        ({"input": "x", "truncate": True}, "truncate", "is not a parameter that is known here"),
        ({}, "input", "is required"),
        ({"input": "x", "model": "small"}, "model", "is a language model and makes no embeddings"),
        ({"input": "x", "model": "house"}, "model", "is an agent"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_told_by_its_parameter(
    served: Served, fields: dict[str, Any], param: str, told: str
) -> None:
    """400, in OpenAI's shape."""
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.post("/embeddings", body={"model": "minilm", **fields}, cast_to=object)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert told in caught.value.message


async def test_models_and_callers_that_are_not_known_are_refused(served: Served) -> None:
    """As for completions."""
    with pytest.raises(openai.NotFoundError) as caught:
        await served.client.embeddings.create(model="large", input="x")
    assert caught.value.code == "model_not_found"
    await served.become(GUEST)
    with pytest.raises(openai.PermissionDeniedError):
        await served.client.embeddings.create(model="minilm", input="x")


async def test_embedding_model_completes_no_chat(served: Served) -> None:
    """400, with what to call instead."""
    with pytest.raises(openai.BadRequestError, match="does not generate, see POST /v1/embeddings") as caught:
        await served.client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.param == "model"


async def test_text_that_is_too_long_is_told_as_openai_does(
    served: Served, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the word that clients look for."""

    async def refuse(_: EmbedJob) -> Embeddings:
        raise ContextExceeded(700, 512, "input[1]")

    monkeypatch.setattr(engine, "embed", refuse)
    with pytest.raises(openai.APIStatusError, match=r"input\[1\] has 700 tokens .* room for 512") as caught:
        await served.client.embeddings.create(model="minilm", input=["a", "b"])
    assert (caught.value.status_code, caught.value.code) == (413, "context_length_exceeded")


async def test_one_more_than_may_wait_is_busy() -> None:
    """Those that wait get on in their turn."""
    running, gate = 0, asyncio.Event()

    class Slow:
        async def embed(self, job: EmbedJob) -> Embeddings:
            nonlocal running
            running += 1
            await gate.wait()
            return Embeddings(vectors=(), tokens=0)

    embeds = EmbeddingModels(Slow(), {"minilm"}, max_waiting=WAITING)
    job = EmbedJob(model="minilm", texts=("x",))
    tasks = [asyncio.create_task(embeds.embed(job)) for _ in range(AT_ONCE + WAITING)]
    while running < AT_ONCE:
        await asyncio.sleep(0)
    with pytest.raises(Busy, match="2 requests for embeddings wait already"):
        await embeds.embed(job)
    assert running == AT_ONCE
    gate.set()
    await asyncio.gather(*tasks)


# -- the configuration, and the whole daemon ---------------------------------------------------------------------------

CONFIG = """
[compute]
threads = 1
[models.small]
source = "file:{small}"
[models.minilm]
source = "file:{minilm}"
"""


def settings(folder: Path, more: str = "") -> config.Config:
    file = folder / "edged.toml"
    model = '[models.minilm]\nsource = "catalog:all-minilm-l6-v2-int8"\n'
    file.write_text(f'[node]\nstate_dir = "{folder}"\n{model}{more}')
    return config.load(str(file))


async def test_catalog_model_reads_as_much_as_its_entry_says(tmp_path: Path) -> None:
    """Whatever the context of the configuration; where it is missing, what pulls it is told."""
    made = settings(tmp_path)
    spec = model_specs(made)["minilm"]
    assert (spec.engine, spec.context) == ("onnx", 512)
    assert Path(spec.path).name == "all-minilm-l6-v2-int8.onnx"
    [problem] = await check_all(made)
    assert "edged models pull all-minilm-l6-v2-int8" in problem


def test_agent_of_an_embedding_model_is_refused(tmp_path: Path) -> None:
    """By its key."""
    with pytest.raises(ConfigError, match=r"agents.house.model: 'minilm' is an embedding model") as caught:
        model_specs(settings(tmp_path, '[agents.house]\nmodel = "minilm"\n'))
    assert caught.value.key == "agents.house.model"


@pytest.mark.parametrize("line", ['kv_type = "q8_0"', "min_context = 256"])
def test_what_means_nothing_for_an_embedding_model_is_refused(tmp_path: Path, line: str) -> None:
    """By its key."""
    with pytest.raises(ConfigError, match="means nothing for an embedding model") as caught:
        model_specs(settings(tmp_path, f"{line}\n"))
    assert caught.value.key == f"models.minilm.{line.partition(' ')[0]}"


async def test_daemon_embeds_with_the_real_model(tmp_path: Path) -> None:
    """Loaded on demand by the governor, seen in `status` and in the metrics, taken out like any other."""
    small = model_path()
    daemon = Daemon(tmp_path)
    daemon.drop_in(CONFIG.format(small=small, minilm=small.with_name("all-minilm-l6-v2-int8.onnx")))
    socket = str(tmp_path / "run" / "http.sock")
    http = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=socket))
    async with (
        daemon,
        Wired(daemon.socket) as wired,
        openai.AsyncOpenAI(base_url="http://edged/v1", api_key="unused", http_client=http) as client,
    ):
        made = await client.embeddings.create(model="minilm", input=["the tank is empty", "no water is left", "a cat"])
        [tank, water, cat] = [each.embedding for each in made.data]
        assert sum(a * b for a, b in zip(tank, water, strict=True)) > sum(a * b for a, b in zip(tank, cat, strict=True))
        for model, told in (("small", "makes no embeddings; those that do are minilm"), ("house", "is an agent")):
            with pytest.raises(openai.BadRequestError, match=told):
                await client.embeddings.create(model=model, input="x")
        with pytest.raises(openai.BadRequestError, match="does not generate"):
            await client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "hi"}])
        _, status = await wired.call(1, "status")
        engine, model = status["engine"]["minilm"], status["models"]["minilm"]
        assert (engine["provider"], engine["context"], engine["texts"]) == ("CPU", 512, 3)
        assert model["state"] == "ready"
        assert model["predicted_bytes"] > 2**25
        assert status["models"]["small"]["state"] == "unloaded"
        metrics = (await http.get("http://edged/metrics")).text
        tokens = f'edged_tokens_total{{kind="prompt",model="minilm"}} {made.usage.prompt_tokens}.0'
        assert tokens in metrics
        shown = await edged("status", config=daemon.config)
        assert shown.code == 0
        assert f"3 texts of {made.usage.prompt_tokens} tokens on CPU" in shown.out
        _, done = await wired.call(2, "models.unload", {"name": "minilm"})
        assert done == {"model": "minilm", "unloaded": True}
        assert (await wired.call(3, "status"))[1]["engine"] == {}
