"""OpenAI's SDK against our server: bare texts that a model goes on with (POST /v1/completions)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from edged.agent.dialects import Dialects
from edged.completions.plain import Completions
from edged.config import Model
from edged.engines.kind import ChatTemplate, TextFormat
from edged.engines.scripted import ScriptedEngine
from edged.types import ModelSpec, Segment
from tests.support.daemon import entry
from tests.support.openai_server import Served, serving

SCRIPT = "".join((entry("say", text="one two three"), entry("def half", text="return x / 2")))
CODE = TextFormat("<s>", ("<pre>", "<suf>", "<mid>"))


@pytest.fixture
async def engine(tmp_path: Path) -> ScriptedEngine:
    """Two scripted models: small, and code, which fills gaps."""
    (tmp_path / "script.toml").write_text(SCRIPT)
    engine = ScriptedEngine()
    for name in ("small", "code"):
        await engine.load(ModelSpec(name=name, path=str(tmp_path / "script.toml"), context=4096))
    return engine


@pytest.fixture
async def served(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Served]:
    """A server of them."""
    models = {"small": Model(), "code": Model()}
    dialects = Dialects(lambda _: ChatTemplate(), format_of=lambda spec: CODE if spec.name == "code" else TextFormat())
    chats = Completions(engine, models, dialects, max_waiting=2)
    async with serving(tmp_path, chats, models) as served:
        yield served


async def test_text_goes_on_whole_and_in_pieces(served: Served, engine: ScriptedEngine) -> None:
    """The same text, without a template around the prompt, and at most 16 tokens unless more are asked for."""
    whole = await served.client.completions.create(model="small", prompt="say")
    stream = await served.client.completions.create(
        model="small", prompt=["say"], stream=True, max_tokens=40, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *parts, last, usage = chunks
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("one two three", "stop")
    assert "".join(chunk.choices[0].text for chunk in parts) == "one two three"
    assert [chunk.choices[0].finish_reason for chunk in (*parts, last)] == [None] * len(parts) + ["stop"]
    assert (usage.choices, usage.usage) == ([], whole.usage)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in (whole, *chunks)} == {"text_completion"}
    assert [job.max_tokens for job in engine.jobs] == [16, 40]
    assert [(job.prefix, job.turn) for job in engine.jobs] == [((), (Segment("say"),))] * 2


async def test_gap_is_filled_where_the_model_has_marks_for_it(served: Served, engine: ScriptedEngine) -> None:
    """What stands around it is somebody's file: marks in it are text. Another model says that it cannot."""
    made = await served.client.completions.create(model="code", prompt="def half(x):\n  ", suffix="\nhalf(<mid>)")
    assert made.choices[0].text == "\nhalf(<mid>)"  # the script's echo of the last text
    assert engine.jobs[-1].turn == (
        Segment("<s><pre>"),
        Segment("def half(x):\n  ", literal=True),
        Segment("<suf>"),
        Segment("\nhalf(<mid>)", literal=True),
        Segment("<mid>"),
    )
    with pytest.raises(openai.BadRequestError, match="has no marks for a gap") as caught:
        await served.client.completions.create(model="small", prompt="a", suffix="b")
    assert caught.value.param == "suffix"


async def test_logprobs_come_in_the_older_shape(served: Served) -> None:
    """A list for each property; offsets count characters of the answer."""
    made = await served.client.completions.create(model="small", prompt="say", logprobs=1, stop="three")
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == (["one ", "two "], [0, 4])
    assert logprobs.top_logprobs == [{"one ": 0.0}, {"two ": 0.0}]
    stream = await served.client.completions.create(model="small", prompt="say", logprobs=0, stream=True)
    told = [chunk.choices[0].logprobs async for chunk in stream]
    assert [offset for each in told if each for offset in each.text_offset or ()] == [0, 4, 8]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2}, "n"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"1": -100}}, "logit_bias"),
        ({"model": "house"}, "model"),
        ({"extra_body": {"messages": [{"role": "user", "content": "hi"}]}}, "messages"),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, "response_format"),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    served: Served, fields: dict[str, Any], param: str
) -> None:
    """Never ignored."""
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.completions.create(**{"model": "small", "prompt": "say", **fields})
    assert caught.value.param == param


async def test_what_has_no_effect_is_named_and_what_means_nothing_is_not(served: Served) -> None:
    """As in chats; of both names of the bound the smaller counts."""
    extra = {"keep_alive": "5m", "echo": False, "best_of": 1, "suffix": None, "max_completion_tokens": 7}
    raw = await served.client.completions.with_raw_response.create(
        model="small", prompt="say", max_tokens=9, extra_body=extra
    )
    assert raw.headers["edged-ignored"] == "keep_alive"
