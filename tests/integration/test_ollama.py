"""The Ollama API on the wire, in front of scripted models: the rules of it that clients rely on, one by one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import os
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.broker import until
from tests.support.daemon import ROOT, entry
from tests.support.ollama_daemon import KEY, TOOL, WIDTH, OllamaDaemon, error, lines

pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon that all tests share
STORY = {"model": "small", "messages": [{"role": "user", "content": "tell a story"}]}
LIGHT = [{"role": "user", "content": "switch on the light in the kitchen"}]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OllamaDaemon]:
    """One for all."""
    async with OllamaDaemon(tmp_path_factory.mktemp("ollama")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(daemon: OllamaDaemon) -> AsyncIterator[aiohttp.ClientSession]:
    """Without a key."""
    async with daemon.session() as session:
        yield session


async def post(client: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    """The document that a request is answered with."""
    async with client.post(path, json=body) as response:
        assert (response.status, response.content_type) == (200, "application/json"), await response.text()
        return await response.json()


async def refused(client: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, str]:
    """The error of a request."""
    async with client.post(path, json=body) as response:
        return await error(response)


# -- looking -----------------------------------------------------------------------------------------------------------


async def test_who_looks_hears_that_ollama_runs(daemon: OllamaDaemon, client: aiohttp.ClientSession) -> None:
    """GET and HEAD, on its own listener whatever is wanted, on the others with a key."""
    for session in (client, daemon.with_key(), daemon.on_socket()):
        async with session.get("/", headers={"Accept": "text/html"}) as response:
            assert (response.status, await response.text()) == (200, "Ollama is running")
        async with session.head("/") as response:
            assert response.status == 200
        async with session.get("/api/version") as response:
            version = (await response.json())["version"]
        # as Open WebUI reads it
        assert [int(part) for part in re.sub(r"^v|-.*", "", version).split(".")] >= [0, 33, 0]
        if session is not client:
            await session.close()


async def test_list_has_what_can_be_used_with_digests_of_their_own(client: aiohttp.ClientSession) -> None:
    """Models whose files are here before agents; each with all fields that clients read."""
    async with client.get("/api/tags") as response:
        models = (await response.json())["models"]
    assert [model["name"] for model in models] == ["small:latest", "Lamp:latest", "vectors:latest", "house:latest"]
    assert all(model["name"] == model["model"] for model in models)
    digests = [model["digest"] for model in models]
    assert len(set(digests)) == len(digests)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    for model in models:
        assert datetime.fromisoformat(model["modified_at"]) <= datetime.now(UTC)
        assert model["size"] > 0
        keys = {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"}
        assert set(model["details"]) == keys
    assert [model["capabilities"] for model in models] == [
        ["completion", "tools"], ["completion", "tools"], ["embedding"], ["completion"],
    ]  # fmt: skip
    async with client.get("/api/tags") as response:
        assert [model["digest"] for model in (await response.json())["models"]] == digests


@pytest.mark.parametrize("key", ["model", "name"])
@pytest.mark.parametrize("name", ["lamp", "Lamp:latest", "LAMP:LATEST"])
async def test_model_is_shown_by_any_spelling_of_its_name(client: aiohttp.ClientSession, key: str, name: str) -> None:
    """`model_info` has the architecture and its context, `parameters` are lines of key and value."""
    shown = await post(client, "/api/show", **{key: name})
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] == 4096
    assert all(len(line.split()) == 2 for line in shown["parameters"].splitlines())
    assert isinstance(shown["template"], str)
    assert shown["capabilities"] == ["completion", "tools"]


async def test_unknown_models_are_not_found_and_none_is_a_mistake(client: aiohttp.ClientSession) -> None:
    """In Ollama's words, by which clients tell the cases apart."""
    asked = {"messages": LIGHT, "prompt": "hi", "input": "hi"}
    for path in ("/api/show", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/pull"):
        assert await refused(client, path, model="nope:7b", **asked) == (404, "model 'nope:7b' not found")
        assert await refused(client, path, **asked) == (400, "model is required")
    async with client.delete("/api/delete", json={"name": "nope"}) as response:
        assert await error(response) == (404, "model 'nope' not found")


@pytest.mark.parametrize("what", ["create", "copy", "push", "blobs/sha256:00"])
async def test_what_makes_models_is_not_built(client: aiohttp.ClientSession, what: str) -> None:
    """501, in the error shape."""
    status, message = await refused(client, f"/api/{what}", model="x")
    assert (status, message.startswith(f"/api/{what} is not built")) == (501, True)


async def test_paths_that_there_are_not_and_bodies_that_are_none(daemon: OllamaDaemon) -> None:
    """On its own listener everything is told in its shape, and edged's own API is not there."""
    async with daemon.session() as client:
        for path in ("/api/nothing", "/metrics", "/livez", "/v1/agents/house/requests"):
            async with client.get(path) as response:
                assert (await error(response))[0] == 404
        async with client.get("/api/chat") as response:
            assert (await error(response))[0] == 405
        for body in (b"", b"{", b"[]", b'"x"'):
            async with client.post("/api/chat", data=body) as response:
                assert (await error(response))[0] == 400


# -- chat --------------------------------------------------------------------------------------------------------------


async def test_chat_streams_by_default(client: aiohttp.ClientSession) -> None:
    """Lines with a role and content in each, counts in the last one only; joined they are the whole answer."""
    async with client.post("/api/chat", json=STORY) as response:
        *parts, last = await lines(response)
    assert "".join(part["message"]["content"] for part in parts) == "one two three"
    for part in (*parts, last):
        assert part["model"] == "small"
        assert part["message"]["role"] == "assistant"
        assert datetime.fromisoformat(part["created_at"]).tzinfo
    assert [part["done"] for part in parts] == [False] * len(parts)
    assert not any("eval_count" in part or "total_duration" in part for part in parts)
    assert (last["done"], last["done_reason"], last["message"]["content"], last["eval_count"]) == (True, "stop", "", 3)
    whole = await post(client, "/api/chat", **STORY, stream=False)
    assert whole["message"] == {"role": "assistant", "content": "one two three"}
    durations = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    assert all(isinstance(whole[name], int) and whole[name] > 0 for name in durations)
    assert whole["total_duration"] < 20e9
    assert (whole["done"], whole["done_reason"]) == (True, "stop")


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_null_is_unset_and_what_is_unknown_is_ignored(client: aiohttp.ClientSession, path: str) -> None:
    """As Node-RED and Open WebUI send it."""
    nulls = ("format", "keep_alive", "tools", "options", "think", "stream", "logprobs", "top_logprobs", "images")
    more = ("suffix", "system", "template", "context", "raw", "truncate", "shift", "dimensions")
    asked = {"messages": STORY["messages"], "prompt": "tell a story"}
    body = {"model": "small:latest", **asked, **dict.fromkeys((*nulls, *more)), "chat_id": 7, "metadata": {"a": [1]}}
    async with client.post(path, json=body) as response:
        last = (await lines(response))[-1]
        assert "Edged-Ignored" not in response.headers
    assert (last["done_reason"], last["model"]) == ("stop", "small:latest")


async def test_client_s_tool_is_called_and_its_result_answered(client: aiohttp.ClientSession) -> None:
    """A call comes whole, in one document, with arguments that are an object; results need neither id nor name."""
    async with client.post("/api/chat", json={"model": "small", "messages": LIGHT, "tools": [TOOL]}) as response:
        *_, part, last = await lines(response)
    [call] = part["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "switch_light", "arguments": {"room": "kitchen", "on": True}}
    assert call["id"]
    assert part["message"]["content"] == ""
    assert last["done_reason"] == "stop"
    history = [*LIGHT, part["message"], {"role": "tool", "content": "done"}]
    answer = await post(client, "/api/chat", model="small", messages=history, tools=[TOOL], stream=False)
    assert answer["message"] == {"role": "assistant", "content": "The light is on."}
    answer = await post(client, "/api/chat", model="small", messages=history, stream=False)  # as continue sends it
    assert answer["message"]["content"] == "The light is on."


async def test_thoughts_are_told_apart_and_hidden_where_nobody_wants_them(client: aiohttp.ClientSession) -> None:
    """`thinking` by default; a model that has no place for thoughts refuses to be asked for them."""
    asked: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "think first"}]}
    async with client.post("/api/chat", json=asked) as response:
        parts = await lines(response)
    assert "".join(part["message"].get("thinking", "") for part in parts) == "It is a question."
    assert "".join(part["message"]["content"] for part in parts) == "Yes."
    for think in (False, None):
        message = (await post(client, "/api/chat", **asked, stream=False, think=think))["message"]
        assert message["content"] == "Yes."
        assert ("thinking" in message) == (think is None)
    assert await refused(client, "/api/chat", **asked, think=True) == (400, '"small" does not support thinking')
    assert (await refused(client, "/api/chat", **asked, think="much"))[0] == 400


@pytest.mark.parametrize(
    "shape", ["json", {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}]
)
async def test_format_is_json_or_a_schema(client: aiohttp.ClientSession, shape: Any) -> None:
    """Nothing else."""
    asked = {"model": "small", "messages": [{"role": "user", "content": "a person in JSON"}], "stream": False}
    answer = await post(client, "/api/chat", **asked, format=shape)
    assert answer["message"]["content"] == '{"name": "Ada", "age": 36}'
    assert (await post(client, "/api/chat", **asked, format=""))["message"]["content"]
    assert await refused(client, "/api/chat", **asked, format="yaml") == (400, 'format: is "json" or a JSON Schema')
    status, message = await refused(client, "/api/chat", **asked, format={"type": "object", "$ref": "#/nowhere"})
    assert (status, message.partition(":")[0]) == (400, "format")


async def test_options_count_or_are_named(client: aiohttp.ClientSession) -> None:
    """Samplers work, a stop may be a text, what a server is started with has no effect; a wrong type is told."""
    options = {"temperature": 0.5, "top_k": 5, "seed": -1, "num_predict": -1, "num_ctx": 9_999_999, "mirostat": 1}
    body = {**STORY, "stream": False, "options": {**options, "stop": "three", "typical_p": None}}
    async with client.post("/api/chat", json=body) as response:
        assert (await response.json())["message"]["content"].strip() == "one two"
        assert response.headers["Edged-Ignored"] == "options.num_ctx, options.mirostat"
    wrong = {
        "num_ctx": ("8k", "integer"),
        "temperature": ("hot", "float32"),
        "stop": (3, "array"),
        "use_mmap": (1, "boolean"),
    }
    for name, (value, kind) in wrong.items():
        told = (400, f'option "{name}" must be of type {kind}')
        assert await refused(client, "/api/chat", **STORY, options={name: value}) == told


async def test_log_probabilities_come_with_their_words(client: aiohttp.ClientSession) -> None:
    """Where they are asked for."""
    answer = await post(client, "/api/chat", **STORY, stream=False, logprobs=True, top_logprobs=1)
    assert "".join(token["token"] for token in answer["logprobs"]) == "one two three"
    assert all(token["logprob"] <= 0 and token["bytes"] for token in answer["logprobs"])


async def test_images_are_refused_in_ollama_s_words(client: aiohttp.ClientSession) -> None:
    """No model here sees."""
    message = {"role": "user", "content": "what is this?", "images": ["aGk="]}
    told = (400, '"small" does not support vision')
    assert await refused(client, "/api/chat", model="small", messages=[message]) == told
    assert await refused(client, "/api/generate", model="small", prompt="what?", images=["aGk="]) == told


async def test_answer_that_breaks_ends_with_an_error(tmp_path: Path) -> None:
    """A line, after which nothing comes."""
    fault = {"EDGED_TEST_MEMBERS": str(ROOT / "tests" / "support" / "failing_script.py")}
    async with OllamaDaemon(tmp_path, environment=fault) as failing, failing.session() as client:
        asked = {"model": "small", "messages": [{"role": "user", "content": "speaks and breaks"}]}
        async with client.post("/api/chat", json=asked) as response:
            *parts, last = await lines(response)
    assert len(parts) > 1
    assert not any(part["done"] for part in parts)
    assert list(last) == ["error"]


# -- agents ------------------------------------------------------------------------------------------------------------


async def test_agent_answers_whole_and_in_lines_and_is_stored(
    daemon: OllamaDaemon, client: aiohttp.ClientSession
) -> None:
    """With its own tools, whatever the client says of samplers; a plain model's answers are not kept."""
    before = len(daemon.states())
    asked = {"model": "house:latest", "messages": [{"role": "user", "content": "how full is it?"}]}
    whole = await post(client, "/api/chat", **asked, stream=False, options={"num_ctx": 8192, "top_k": 4}, think=False)
    assert whole["message"] == {"role": "assistant", "content": "It is 41 percent full."}
    assert whole["edged"]["tool_calls"][0]["name"] == "tank_level"
    assert (whole["done_reason"], whole["model"]) == ("stop", "house:latest")
    async with client.post("/api/chat", json=asked) as response:
        *parts, last = await lines(response)
    assert "".join(part["message"]["content"] for part in parts) == "It is 41 percent full."
    assert last["eval_count"] > 0
    assert daemon.states()[before:] == ["done", "done"]
    await post(client, "/api/chat", **STORY, stream=False)
    assert len(daemon.states()) == before + 2


async def test_agent_refuses_in_ollama_s_words_what_it_has_not(client: aiohttp.ClientSession) -> None:
    """A client's tools, thoughts, vectors."""
    asked: dict[str, Any] = {"model": "house", "messages": LIGHT}
    assert await refused(client, "/api/chat", **asked, tools=[TOOL]) == (400, '"house" does not support tools')
    assert await refused(client, "/api/chat", **asked, think=True) == (400, '"house" does not support thinking')
    assert await refused(client, "/api/embed", model="house", input="x") == (400, '"house" does not support embeddings')
    assert (await post(client, "/api/chat", **{**STORY, "model": "house"}, tools=[], stream=False))["done"]


async def test_client_that_leaves_ends_its_request(daemon: OllamaDaemon) -> None:
    """As on every surface."""
    asked = {"model": "house", "messages": [{"role": "user", "content": "never ends"}]}
    async with daemon.session() as client, client.post("/api/chat", json=asked) as response:
        await response.content.readline()
    await until(lambda: daemon.states()[-1] == "cancelled")


# -- generate ----------------------------------------------------------------------------------------------------------


async def test_generate_answers_a_prompt_and_remembers_by_its_context(client: aiohttp.ClientSession) -> None:
    """The text stands in `response`; what the client hands back goes before its next prompt."""
    async with client.post("/api/generate", json={"model": "small", "prompt": "tell a story"}) as response:
        *parts, last = await lines(response)
    assert "".join(part["response"] for part in parts) == "one two three"
    assert last["response"] == ""
    assert all(isinstance(number, int) for number in last["context"])
    told: dict[str, Any] = {"system": "You are short.", "prompt": "and then?", "stream": False}
    second = await post(client, "/api/generate", model="small", **told, context=last["context"])
    said = [text for _, text in _dialogue(second["context"])]
    assert said == ["You are short.", "tell a story", "one two three", "and then?", "and then?"]
    assert (await refused(client, "/api/generate", model="small", **told, context=[1, 2, 3]))[0] == 400
    third = await post(client, "/api/generate", model="house", prompt="how full is it?", stream=False)
    assert third["response"] == "It is 41 percent full."


def _dialogue(context: list[int]) -> list[tuple[str, str]]:
    return [(role, text) for role, text in json.loads(bytes(context))]


async def test_bare_texts_go_on_and_templates_of_clients_are_refused(client: aiohttp.ClientSession) -> None:
    """`raw` is the text as it stands, to which no dialogue belongs; gaps are for models that know them."""
    raw: dict[str, Any] = {"model": "small", "prompt": "tell a story", "raw": True}
    assert (await post(client, "/api/generate", **raw, stream=False))["response"] == "one two three"
    assert (await refused(client, "/api/generate", **raw, system="x"))[0] == 400
    for more, names in (({"template": "{{ .Prompt }}"}, "template"), ({"suffix": "}"}, "suffix")):
        status, message = await refused(client, "/api/generate", model="small", prompt="x", **more)
        assert (status, message.partition(":")[0]) == (400, names)
    assert await refused(client, "/api/generate", **{**raw, "model": "house"}) == (
        400, '"house" does not support raw prompts',
    )  # fmt: skip


# -- memory ------------------------------------------------------------------------------------------------------------


async def loaded(client: aiohttp.ClientSession) -> dict[str, dict[str, Any]]:
    """What is in memory, by name."""
    async with client.get("/api/ps") as response:
        return {model["name"]: model for model in (await response.json())["models"]}


async def test_nothing_asked_loads_a_model_or_lets_it_go(daemon: OllamaDaemon, client: aiohttp.ClientSession) -> None:
    """One document; nothing is stored. How long a model stays is a wish that counts for less than the policy."""
    before = len(daemon.states())
    assert (await post(client, "/api/generate", model="lamp", prompt=""))["done_reason"] == "load"
    lamp = (await loaded(client))["Lamp:latest"]
    policy_s = (datetime.fromisoformat(lamp["expires_at"]) - datetime.now(UTC)).total_seconds()
    assert 250 < policy_s <= 300
    assert lamp["context_length"] == 4096
    assert (await post(client, "/api/chat", model="lamp", messages=[], keep_alive="30s"))["done_reason"] == "load"
    lamp = (await loaded(client))["Lamp:latest"]
    assert (datetime.fromisoformat(lamp["expires_at"]) - datetime.now(UTC)).total_seconds() <= 30
    for forever in (-1, "24h"):
        await post(client, "/api/chat", **{**STORY, "model": "lamp"}, stream=False, keep_alive=forever)
        lamp = (await loaded(client))["Lamp:latest"]
        assert (datetime.fromisoformat(lamp["expires_at"]) - datetime.now(UTC)).total_seconds() <= 300
    gone = await post(client, "/api/generate", model="lamp", prompt="", keep_alive=0)
    assert (gone["done"], gone["done_reason"], gone["response"]) == (True, "unload", "")
    assert "Lamp:latest" not in await loaded(client)
    await post(client, "/api/chat", **{**STORY, "model": "lamp"}, stream=False, keep_alive="0s")
    async with asyncio.timeout(10):
        while "Lamp:latest" in await loaded(client):
            await asyncio.sleep(0.01)
    assert len(daemon.states()) == before
    assert (await refused(client, "/api/chat", **STORY, keep_alive="soon"))[0] == 400


async def test_model_that_is_in_use_stays_until_it_is_not(daemon: OllamaDaemon) -> None:
    """Whoever lets it go while others use it takes nothing from them."""
    endless = {"model": "lamp", "messages": [{"role": "user", "content": "never ends"}]}
    async with daemon.session() as client:
        async with daemon.session() as other, other.post("/api/chat", json=endless) as response:
            await response.content.readline()
            assert (await post(client, "/api/generate", model="lamp", keep_alive=0))["done_reason"] == "unload"
            assert "Lamp:latest" in await loaded(client)
            assert b"word" in await response.content.readline()
        async with asyncio.timeout(10):
            while "Lamp:latest" in await loaded(client):
                await asyncio.sleep(0.01)


# -- vectors -----------------------------------------------------------------------------------------------------------


async def test_vectors_have_length_one_and_the_older_way_has_them_as_they_are(client: aiohttp.ClientSession) -> None:
    """A vector for each text, none for none."""
    made = await post(client, "/api/embed", model="vectors", input=["a", "b c", "word " * 10_000])
    assert [len(vector) for vector in made["embeddings"]] == [WIDTH] * 3
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-6) for vector in made["embeddings"])
    assert made["prompt_eval_count"] == 10_003
    assert (await post(client, "/api/embed", model="vectors", input="a"))["embeddings"] == made["embeddings"][:1]
    nothings: list[Any] = [[], "", None]
    for nothing in nothings:
        assert (await post(client, "/api/embed", model="vectors", input=nothing))["embeddings"] == []
    [one] = (await post(client, "/api/embeddings", model="vectors", prompt="a"),)
    length = math.hypot(*one["embedding"])
    assert length > 2
    assert [x / length for x in one["embedding"]] == pytest.approx(made["embeddings"][0], rel=1e-5)
    assert (await refused(client, "/api/embed", model="small", input="a"))[0] == 400
    assert (await refused(client, "/api/embed", model="vectors", input=[1]))[0] == 400


# -- who may -----------------------------------------------------------------------------------------------------------


async def test_keys_are_taken_as_bearer_and_as_the_password_of_basic(daemon: OllamaDaemon) -> None:
    """On the listener that wants them; on Ollama's own nobody looks at them."""
    basic = base64.b64encode(f"ollama:{KEY}".encode()).decode()
    for value in (f"Bearer {KEY}", f"Basic {basic}"):
        async with daemon.with_key(Authorization=value) as session, session.get("/api/tags") as response:
            assert response.status == 200
    wrong = base64.b64encode(f"{KEY}:".encode()).decode()
    for value in (f"Basic {wrong}", "Basic !!", "Basic ", "Bearer ", f"Digest {KEY}"):
        async with daemon.with_key(Authorization=value) as session, session.get("/api/tags") as response:
            assert (await error(response))[0] == 401
        async with daemon.session(Authorization=value) as session, session.get("/api/tags") as response:
            assert response.status == 200


async def test_nobody_manages_without_a_key(client: aiohttp.ClientSession) -> None:
    """Files are for those who may manage; what is not there is not brought."""
    for name in ("small", "away"):
        assert (await refused(client, "/api/pull", model=name))[0] == 403
        async with client.delete("/api/delete", json={"model": name}) as response:
            assert (await error(response))[0] == 403


async def test_pull_and_delete_of_the_user_s_own_files(daemon: OllamaDaemon) -> None:
    """A file that is here is ready; one that is the user's own is neither brought nor removed."""
    async with daemon.on_socket() as client:
        async with client.post("/api/pull", json={"name": "small"}) as response:
            assert [line["status"] for line in await lines(response)][::3] == ["pulling manifest", "success"]
        assert await post(client, "/api/pull", model="small", stream=False) == {"status": "success"}
        async with client.delete("/api/delete", json={"model": "vectors"}) as response:
            assert "the user's own file" in (await error(response))[1]
        async with client.delete("/api/delete", json={"model": "house"}) as response:
            assert (await error(response))[0] == 400
    async with daemon.on_socket() as client:
        status, message = await refused(client, "/api/pull", model="away")
        assert (status, "nowhere to pull it from" in message) == (503, True)


async def test_openai_s_api_is_on_the_listener_too(client: aiohttp.ClientSession) -> None:
    """As Ollama has it below /v1, with its own shape of errors."""
    body = await post(client, "/v1/chat/completions", **STORY)
    assert body["choices"][0]["message"]["content"] == "one two three"
    async with client.get("/v1/models/nope") as response:
        assert (response.status, (await response.json())["error"]["type"]) == (404, "not_found_error")


async def test_pages_and_foreign_names_are_kept_out(daemon: OllamaDaemon, client: aiohttp.ClientSession) -> None:
    """Nobody needs a key here, so a web page and a name that leads here must not get in."""
    for headers in ({"Origin": "http://localhost:3000"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        async with client.get("/api/tags", headers=headers) as response:
            assert (await error(response))[0] == 403
    for host in ("localhost", f"127.0.0.1:{daemon.open}"):
        async with client.get("/api/tags", headers={"Host": host}) as response:
            assert response.status == 200


async def test_one_setting_lets_ollama_s_usual_pages_in(tmp_path: Path) -> None:
    """They get what browsers need, and others do not."""
    async with OllamaDaemon(tmp_path, http="ollama_origins = true\n") as daemon, daemon.session() as client:
        for origin in ("http://localhost:3000", "app://obsidian.md", "vscode-webview://abc", "moz-extension://x"):
            ask = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            async with client.options("/api/chat", headers=ask) as response:
                assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (204, origin)
        async with client.get("/api/tags", headers={"Host": "board.local"}) as response:
            assert response.status == 200
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "http://localhost.evil.example"}):
            async with client.get("/api/tags", headers=headers) as response:
                assert (await error(response))[0] == 403


async def test_role_of_the_way_in_counts(tmp_path: Path) -> None:
    """It lists and answers what its role may use, and manages if that may."""
    roles = (
        '[roles.guest]\nmodels = ["small"]\n[roles.owner]\nagents = ["*"]\nmodels = ["*"]\ntools = ["*"]\n'
        "manage = true\n"
    )
    access = '[access]\nollama = "guest"\n'
    async with OllamaDaemon(tmp_path, config=roles + access) as daemon:
        async with daemon.session() as client:
            async with client.get("/api/tags") as response:
                assert [model["name"] for model in (await response.json())["models"]] == ["small:latest"]
            assert (await refused(client, "/api/chat", model="house", messages=LIGHT))[0] == 403
            assert (await refused(client, "/api/show", model="vectors"))[0] == 403
            assert (await refused(client, "/api/generate", model="lamp", keep_alive=0))[0] == 403
            assert (await post(client, "/api/chat", **STORY, stream=False))["done"]
        daemon.config.write_text(daemon.config.read_text().replace('ollama = "guest"', 'ollama = "owner"'))
        await daemon.reload()
        async with daemon.session() as client:
            assert (await post(client, "/api/pull", model="small", stream=False))["status"] == "success"
            assert (await post(client, "/api/chat", **{**STORY, "model": "house"}, stream=False))["done"]


async def test_listener_follows_a_reload(tmp_path: Path) -> None:
    """It is opened and closed like the others."""
    async with OllamaDaemon(tmp_path) as daemon:
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace(f'ollama = "127.0.0.1:{daemon.open}"\n', ""))
        await daemon.reload()
        async with daemon.session() as client:
            with pytest.raises(aiohttp.ClientConnectorError):
                await client.get("/")
        daemon.config.write_text(text)
        await daemon.reload()
        async with daemon.session() as client, client.get("/") as response:
            assert response.status == 200


async def test_model_of_the_catalog_is_pulled_with_progress_and_deleted(tmp_path: Path) -> None:
    """By who may manage; it is listed while it is there."""
    data = os.urandom(3 * 2**20)
    (tmp_path / "bytes").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    members = str(ROOT / "tests" / "support" / "file_catalog.py")
    environment = {"EDGED_TEST_MEMBERS": members, "EDGED_TEST_BYTES": str(tmp_path / "bytes")}
    config = '[models.tiny]\nsource = "catalog:tiny"\n'
    async with OllamaDaemon(tmp_path, config=config, environment=environment) as daemon, daemon.on_socket() as client:

        async def listed() -> dict[str, Any] | None:
            async with client.get("/api/tags") as response:
                models = (await response.json())["models"]
            return next((model for model in models if model["name"] == "tiny:latest"), None)

        assert await listed() is None
        async with client.post("/api/pull", json={"name": "Tiny:latest", "insecure": False}) as response:
            first, *parts, checked, written, last = await lines(response)
        statuses = [part["status"] for part in (first, checked, written, last)]
        assert statuses == ["pulling manifest", "verifying sha256 digest", "writing manifest", "success"]
        assert {(part["status"], part["digest"]) for part in parts} == {(f"pulling {digest[:12]}", f"sha256:{digest}")}
        assert [part["total"] for part in parts] == [len(data)] * len(parts)
        done = [part["completed"] for part in parts]
        assert (done, done[-1]) == (sorted(done), len(data))
        tiny = await listed()
        assert tiny is not None
        assert (tiny["size"], tiny["details"]["quantization_level"]) == (len(data), "Q4_0")
        async with daemon.session() as stranger, stranger.delete("/api/delete", json={"model": "tiny"}) as response:
            assert (await error(response))[0] == 403
        async with client.delete("/api/delete", json={"model": "tiny"}) as response:
            assert (response.status, await response.read()) == (200, b"")
        assert await listed() is None
        assert not (tmp_path / "state" / "models" / "tiny.gguf").exists()
        (tmp_path / "bytes").unlink()
        async with client.post("/api/pull", json={"model": "tiny"}) as response:
            assert list((await lines(response))[-1]) == ["error"]


REACHING = """
import urllib.error, urllib.request

def reach(url: str) -> str:
    'Reach edged.'
    try:
        return urllib.request.urlopen(url).read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()
"""


async def test_python_tool_is_no_client(tmp_path: Path) -> None:
    """Without a key it would be taken for anyone: its socket tells. Others get in meanwhile."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "reaching.py").write_text(REACHING)
    config = (
        '[agents.gardener]\nmodel = "small"\ntools = ["reach"]\n'
        '[tools.reach]\ndescription = "Reach edged."\npython = "reaching:reach"\n'
    )
    daemon = OllamaDaemon(tmp_path, config=config)
    call = {"name": "reach", "arguments": {"url": f"{daemon.url}/api/tags"}}
    (tmp_path / "script.toml").write_text(entry("call", call, text="Called."))
    async with daemon, daemon.session() as client:
        asked = {"model": "gardener", "messages": [{"role": "user", "content": "call"}], "stream": False}
        [made] = (await post(client, "/api/chat", **asked))["edged"]["tool_calls"]
        assert "a Python tool is called by edged" in made["result"]
        async with client.get("/api/tags") as response:
            assert response.status == 200
