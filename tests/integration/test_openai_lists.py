"""What clients of other servers read of our models, and all that they send at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from edged.agent.dialects import Dialects
from edged.completions.plain import Completions
from edged.config import Model
from edged.engines.kind import ChatTemplate
from edged.engines.scripted import ScriptedEngine
from edged.types import ModelSpec
from tests.support.daemon import entry
from tests.support.http_api import unix_session
from tests.support.openai_server import Served, serving

SAY: Any = [{"role": "user", "content": "say"}]
# SURFACES 2.3: each in a value that asks for nothing
NEUTRAL: dict[str, Any] = {
    "top_k": -1,
    "min_p": 0,
    "typical_p": 1,
    "repeat_penalty": 1,
    "repetition_penalty": 1.0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "chat_template_kwargs": {},
    "reasoning_effort": None,
    "seed": -1,
    "max_tokens": -1,
    "max_completion_tokens": None,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "n": 1,
    "logit_bias": {},
    "user": "",
    "metadata": {},
    "store": False,
    "service_tier": "auto",
    "prompt_cache_key": "",
    "safety_identifier": "",
    "verbosity": "medium",
    "prediction": None,
    "modalities": ["text"],
    "keep_alive": "5m",
    "options": {},
    "format": "",
    "logprobs": False,
    "top_logprobs": 0,
    "stop": [],
    "response_format": {"type": "text"},
}
REPLAYED: Any = [
    *SAY,
    {
        "role": "assistant",
        "content": "yes",
        "reasoning_content": "hm",
        "reasoning": "hm",
        "reasoning_details": [],
        "thinking": "hm",
        "provider_specific_fields": {"a": 1},
        "refusal": None,
        "cache_control": {"type": "ephemeral"},
    },
    {"role": "user", "content": [{"type": "text", "text": "say", "cache_control": {"type": "ephemeral"}}]},
]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A server of one scripted model with a context of its own, and of an agent."""
    (tmp_path / "script.toml").write_text(entry("say", text="one two three"))
    engine = ScriptedEngine()
    await engine.load(ModelSpec(name="small", path=str(tmp_path / "script.toml"), context=2048))
    models = {"small": Model(context=2048)}
    chats = Completions(engine, models, Dialects(lambda _: ChatTemplate()), max_waiting=2)
    async with serving(tmp_path, chats, models) as served:
        yield served


async def get(served: Served, path: str) -> tuple[int, Any]:
    async with unix_session(served.socket) as client, client.get(path) as response:
        return response.status, await response.json()


async def test_context_and_modalities_stand_where_clients_of_llama_cpp_look(served: Served) -> None:
    """In the list and in /props, of agents as well; an agent takes no tools of others."""
    _, listed = await get(served, "/v1/models")
    assert [(m["id"], m["meta"]["n_ctx"]) for m in listed["data"]] == [("small", 2048), ("house", 2048)]
    assert all(m["architecture"]["input_modalities"] == ["text"] for m in listed["data"])
    for path, takes_tools in (("/props", True), ("/props?model=small", True), ("/props?model=house", False)):
        status, props = await get(served, path)
        assert (status, props["default_generation_settings"]) == (200, {"n_ctx": 2048})
        assert props["chat_template_caps"] == {"supports_tools": takes_tools}
        assert props["modalities"] == {"vision": False, "audio": False}


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v1/models/org/name:8b", "org/name:8b"),
        ("/v1/models/org%2Fname%3A8b", "org/name:8b"),
        ("/props?model=gone", "gone"),
    ],
)
async def test_unknown_id_is_not_found_in_openais_shape_however_it_is_escaped(
    served: Served, path: str, named: str
) -> None:
    """With the id as it was meant, and those that there are."""
    status, body = await get(served, path)
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert f"no model '{named}': there are small, house" in body["error"]["message"]


async def test_known_id_is_found_however_it_is_escaped(served: Served) -> None:
    """`%73` is an `s`."""
    for path in ("/v1/models/small", "/v1/models/%73mall"):
        assert (await get(served, path))[1]["id"] == "small"


async def test_every_parameter_at_once_in_values_that_ask_for_nothing(served: Served) -> None:
    """Also beside a history as other servers' clients send it back."""
    made = await served.client.chat.completions.with_raw_response.create(
        model="small", messages=REPLAYED, extra_body=NEUTRAL
    )
    assert made.parse().choices[0].message.content == "one two three"
    named = set(made.headers["edged-ignored"].split(", "))
    assert {"keep_alive", "typical_p", "messages.reasoning_content", "messages.content.cache_control"} <= named
    assert not named & {"top_k", "n", "stop", "max_tokens", "modalities"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(served: Served, fields: Any, param: str) -> None:
    """It would change the answer."""
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.chat.completions.create(**{"model": "small", "messages": SAY, **fields})
    assert (caught.value.param or "").startswith(param)


async def test_what_was_ignored_is_counted(served: Served) -> None:
    """Each name in each request."""
    before = sum(served.ignored)
    for _ in range(2):
        await served.client.chat.completions.create(
            model="small", messages=SAY, extra_body={"keep_alive": "5m", "typical_p": 0.5}
        )
    assert sum(served.ignored) == before + 4


async def test_page_with_openais_sdk_may_ask(tmp_path: Path) -> None:
    """Whatever the SDK tells of itself; another page's own headers stay out."""
    models = {"small": Model()}
    chats = Completions(ScriptedEngine(), models, Dialects(lambda _: ChatTemplate()), max_waiting=2)
    origin = "https://panel.example"
    wanted = "authorization,content-type,x-stainless-lang,x-stainless-retry-count,openai-beta,x-evil"
    preflight = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": wanted,
    }
    async with serving(tmp_path, chats, models, origins=(origin,)) as served:
        url = f"http://127.0.0.1:{served.port}/v1/chat/completions"
        async with aiohttp.ClientSession() as page, page.options(url, headers=preflight) as response:
            allowed = {name.strip().lower() for name in response.headers["Access-Control-Allow-Headers"].split(",")}
            assert response.status == 204
    assert set(wanted.split(",")) - allowed == {"x-evil"}
