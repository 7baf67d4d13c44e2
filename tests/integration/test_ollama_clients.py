"""Ollama's API with its own client for Python, and with clients in environments of their own (slow)."""

from __future__ import annotations

import asyncio
import functools
import math
import shutil
from collections.abc import AsyncIterator, Callable
from typing import Any

import ollama
import pydantic
import pytest
import pytest_asyncio

from tests.support import clients
from tests.support.ollama_daemon import KEY, WIDTH, OllamaDaemon

pytestmark = pytest.mark.asyncio(loop_scope="module")
STORY: Any = [{"role": "user", "content": "tell a story"}]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OllamaDaemon]:
    """One for all."""
    async with OllamaDaemon(tmp_path_factory.mktemp("clients")) as running:
        yield running


async def by_client(daemon: OllamaDaemon, use: Callable[[ollama.Client], Any]) -> Any:
    """What the client gets; it blocks."""

    def run() -> Any:
        with ollama.Client(host=daemon.url) as client:
            return use(client)

    return await asyncio.to_thread(run)


def chat(model: str, messages: Any, client: ollama.Client, *, stream: bool = False) -> Any:
    """An answer, or all of its parts."""
    return list(client.chat(model, messages, stream=True)) if stream else client.chat(model, messages)


def show(model: str, client: ollama.Client) -> Any:
    """What a model is."""
    return client.show(model)


class Person(pydantic.BaseModel):
    """A shape."""

    name: str
    age: int


def switch_light(room: str, on: bool) -> str:
    """Switch the light of a room.

    Args:
        room: its name
        on: whether it is to shine
    """
    return f"{room}: {on}"


async def test_answers_whole_and_streamed(daemon: OllamaDaemon) -> None:
    """The same text, with a reason and a count at the end; of agents, too."""
    told = {"small": ("tell a story", "one two three"), "house": ("how full", "It is 41 percent full.")}
    for model, (question, answer) in told.items():
        asked: Any = [{"role": "user", "content": question}]
        whole = await by_client(daemon, functools.partial(chat, model, asked))
        parts = await by_client(daemon, functools.partial(chat, model, asked, stream=True))
        assert whole.message.content == "".join(part.message.content for part in parts) == answer
        assert (whole.done_reason, parts[-1].done_reason, parts[-1].eval_count > 0) == ("stop", "stop", True)
    said = await by_client(daemon, lambda c: c.generate("small", "tell a story"))
    assert said.response == "one two three"


async def test_lists_and_descriptions(daemon: OllamaDaemon) -> None:
    """What is listed can be asked; what is unknown is a 404."""
    listed = await by_client(daemon, lambda c: c.list().models)
    for entry in listed:
        shown = await by_client(daemon, functools.partial(show, entry.model))
        assert isinstance(shown.modelinfo, dict)
        assert shown.modelinfo["general.architecture"]
    answer = await by_client(daemon, lambda c: c.chat(listed[0].model, STORY))
    assert answer.message.content == "one two three"
    running = await by_client(daemon, lambda c: c.ps().models)
    assert listed[0].model in [entry.model for entry in running]
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as wrong:
        await by_client(daemon, lambda c: c.show("nope"))
    assert wrong.value.status_code == 404


async def test_function_as_a_tool(daemon: OllamaDaemon) -> None:
    """Its call has arguments that are a dict; its result needs no name."""
    asked: list[Any] = [{"role": "user", "content": "the light in the kitchen, please"}]
    first = await by_client(daemon, lambda c: c.chat("small", asked, tools=[switch_light]))
    arguments = first.message.tool_calls[0].function.arguments
    assert arguments == {"room": "kitchen", "on": True}
    history = [*asked, first.message, {"role": "tool", "content": switch_light(**arguments)}]
    second = await by_client(daemon, lambda c: c.chat("small", history, tools=[switch_light]))
    assert (second.message.content, second.message.tool_calls) == ("The light is on.", None)
    with pytest.raises(ollama.ResponseError, match='"house" does not support tools') as wrong:
        await by_client(daemon, lambda c: c.chat("house", asked, tools=[switch_light]))
    assert wrong.value.status_code == 400


async def test_shapes_thoughts_and_options(daemon: OllamaDaemon) -> None:
    """As programs send them that were written for Ollama."""
    asked: Any = [{"role": "user", "content": "a person in JSON"}]
    shaped = await by_client(daemon, lambda c: c.chat("small", asked, format=Person.model_json_schema()))
    assert Person.model_validate_json(shaped.message.content) == Person(name="Ada", age=36)
    assert (await by_client(daemon, lambda c: c.chat("small", STORY, think=False))).message.content == "one two three"
    with pytest.raises(ollama.ResponseError, match="does not support thinking"):
        await by_client(daemon, lambda c: c.chat("small", STORY, think=True))
    options: Any = {"mirostat": 1, "num_ctx": 9_999_999, "stop": "three", "temperature": 0.3}
    cut = await by_client(daemon, lambda c: c.chat("small", STORY, options=options, keep_alive=-1))
    assert cut.message.content.strip() == "one two"


async def test_vectors_and_memory(daemon: OllamaDaemon) -> None:
    """Of three texts, one of them long; a model that may go is gone."""
    texts = ["one", "two", "word " * 10_000]
    made = await by_client(daemon, lambda c: c.embed("vectors", texts))
    assert [len(vector) for vector in made.embeddings] == [WIDTH] * 3
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-6) for vector in made.embeddings)
    assert (await by_client(daemon, lambda c: c.embed("vectors", []))).embeddings == []
    assert len((await by_client(daemon, lambda c: c.embeddings("vectors", "one"))).embedding) == WIDTH
    gone = await by_client(daemon, lambda c: c.generate("vectors", "", keep_alive=0))
    assert gone.done_reason == "unload"
    assert "vectors:latest" not in [entry.model for entry in (await by_client(daemon, lambda c: c.ps())).models]


async def test_key_as_header_and_pull_by_who_may(daemon: OllamaDaemon) -> None:
    """On the listener that wants one; without, it is told so."""

    keyed = f"http://127.0.0.1:{daemon.keyed}"

    def use() -> Any:
        with ollama.Client(keyed, headers={"Authorization": f"Bearer {KEY}"}) as client:
            statuses = [part.status for part in client.pull("small", stream=True)]
        with ollama.Client(keyed) as client, pytest.raises(ollama.ResponseError) as wrong:
            client.list()
        with ollama.Client(daemon.url) as client, pytest.raises(ollama.ResponseError) as forbidden:
            client.pull("small")
        return statuses, wrong.value.status_code, forbidden.value.status_code

    statuses, wrong, forbidden = await asyncio.to_thread(use)
    assert (statuses[0], statuses[-1], wrong, forbidden) == ("pulling manifest", "success", 401, 403)


# -- clients in environments of their own ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "packages", "script"),
    [
        ("langchain-ollama", ("langchain-ollama==1.1.0",), "langchain_ollama_client.py"),
        ("llm-ollama", ("llm-ollama==0.19.1", "llm==0.36"), "llm_ollama_client.py"),
        ("agent-framework-ollama", ("agent-framework-ollama==1.0.0b261022",), "agent_framework_ollama_client.py"),
    ],
)
async def test_published_client_works_unchanged(
    daemon: OllamaDaemon, client: str, packages: tuple[str, ...], script: str
) -> None:
    """All that it tries; what came of it is the README's table."""
    python = await clients.install(client, *packages)
    tried = await clients.run(python, script, {"EDGED_URL": daemon.url, "OLLAMA_HOST": daemon.url})
    assert tried
    clients.record(client, packages[0].partition("==")[2], tried)
    assert {what: result for what, result in tried.items() if result != clients.OK} == {}


@pytest.mark.slow
async def test_client_for_javascript_works_unchanged(daemon: OllamaDaemon) -> None:
    """As above; it comes by the listener that wants a key, whose role may pull."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    script = await clients.install_node("ollama-js", "ollama_js_client.mjs", "ollama@0.6.4")
    tried = await clients.run_node(script, {"EDGED_URL": f"http://127.0.0.1:{daemon.keyed}", "EDGED_KEY": KEY})
    assert tried
    clients.record("ollama-js", "0.6.4", tried)
    assert {what: result for what, result in tried.items() if result != clients.OK} == {}
