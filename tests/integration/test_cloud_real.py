"""Upstreams against a real server of another project, with a real model: `python -m llama_cpp.server`.

It is as compatible as servers are: it knows json_object only, needs tool_choice, cannot stream calls, and says 500 for
a request it does not take.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.config import Upstream
from edged.errors import ModelUnavailable, NoLink
from edged.types import Chat, ChatAnswer, Message, Sampling, ToolCall, ToolSpec
from edged.upstreams import Cloud
from tests.support.broker import free_port

pytestmark = pytest.mark.slow  # what edged does about such servers the scripted ones in tests/support/cloud.py show

NAME = "cloud"
KEY = "sk-real-77"
START_S = 120.0  # the larger model from a slow disk, on two busy cores
ANSWER_S = 120.0
CONTEXT = 1024
SMALL, LARGE = "qwen2.5-coder-0.5b-instruct-q4_k_m", "qwen2.5-coder-1.5b-instruct-q4_k_m"

VALVE = ToolSpec(
    "set_valve",
    "Open or close a valve.",
    {
        "type": "object",
        "properties": {"valve": {"enum": ["north", "south"]}, "position": {"enum": ["open", "closed"]}},
        "required": ["valve", "position"],
    },
)
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
}


def close(valve: str) -> tuple[Message, ...]:
    """A turn that is over. With two of them before the question the smaller model calls as well."""
    made = ToolCall("set_valve", {"valve": valve, "position": "closed"})
    return Message("user", f"Close the {valve} valve."), Message("assistant", "", (made,)), Message("tool", "done")


OPEN_NORTH = (
    Message("system", "You run a greenhouse."),
    *close("south"),
    *close("north"),
    Message("user", "Open the north valve."),
)


def model_path(name: str) -> Path:
    """The model's file; pulled where it is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("EDGED_TEST_MODELS_DIR") or cache / "edged" / "models")
    path = folder / f"{name}.gguf"
    if not path.is_file():
        pull = [sys.executable, "-m", "edged", "models", "pull", "--models-dir", str(folder), name]
        done = subprocess.run(pull, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name} could not be pulled:\n{done.stderr}"
    return path


@pytest.fixture(
    scope="module",
    params=[SMALL, LARGE],
    ids=["0.5b", "1.5b"],
)
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a running server."""
    number = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    options = {
        "model": str(model_path(request.param)),
        "model_alias": "large",
        "api_key": KEY,
        "host": "127.0.0.1",
        "port": str(number),
        "n_ctx": str(CONTEXT),
        "chat_format": "chatml-function-calling",
    }
    command = [sys.executable, "-m", "llama_cpp.server", *(f"--{name}={value}" for name, value in options.items())]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            _wait_for(number, server, log)
            yield number
        finally:
            server.terminate()
            server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until it takes connections: it listens when the model is loaded."""
    until = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), START_S).close()
            return
        except ConnectionRefusedError:
            assert server.poll() is None, f"the server ended:\n{log.read_text(encoding='utf-8')}"
            assert time.monotonic() < until, f"the server does not listen:\n{log.read_text(encoding='utf-8')}"
            time.sleep(0.1)


class Tokens:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.total = 0

    async def spent(self, upstream: str, day: str) -> int:
        return self.total

    async def add(self, upstream: str, day: str, tokens: int) -> None:
        self.total += tokens


class Asking:
    """A cloud of that server, with its task, and its ledger."""

    def __init__(self, port: int, key: Path) -> None:
        url = f"http://127.0.0.1:{port}/v1"
        settings = Upstream(
            base_url=url, model="large", api_key_file=str(key), timeout_s=ANSWER_S, first_byte_timeout_s=ANSWER_S
        )
        self.tokens = Tokens()
        self.told: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.cloud = Cloud({NAME: settings}, self.tokens, tell=lambda *event: self.told.put_nowait(event))

    async def ask(self, *messages: Message, stream: bool = False, **more: Any) -> tuple[ChatAnswer, list[str]]:
        fields = {"key": "r:0", "messages": messages, "max_tokens": 60, "sampling": Sampling(seed=1), **more}
        pieces: list[str] = []
        return await self.cloud.chat(NAME, Chat(**fields), pieces.append if stream else None), pieces


@pytest.fixture
async def real(port: int, tmp_path: Path) -> AsyncIterator[Asking]:
    """Whose probe was answered."""
    (tmp_path / "key").write_text(KEY + "\n")
    one = Asking(port, tmp_path / "key")
    task = asyncio.create_task(one.cloud.run())
    try:
        async with asyncio.timeout(START_S):
            assert (await one.told.get())[0] == "link_up"
        yield one
    finally:
        task.cancel()
        await asyncio.wait([task])
        await one.cloud.stop()


async def test_real_server_answers_a_question(real: Asking) -> None:
    """Text and tokens; what it cost is in the books."""
    answer, _ = await real.ask(Message("user", "What is the capital of France? One word."))
    assert "Paris" in answer.text
    assert answer.finish == "stop"
    assert answer.prompt_tokens > 5
    assert 0 < answer.completion_tokens < 60
    assert real.tokens.total == answer.prompt_tokens + answer.completion_tokens


async def test_real_server_streams_an_answer(real: Asking) -> None:
    """In many pieces; it does not count, so the tokens are estimated."""
    answer, pieces = await real.ask(Message("user", "Count from one to ten in words."), stream=True)
    assert len(pieces) > 5
    assert "".join(pieces) == answer.text
    assert "three" in answer.text.lower()
    assert 0 < answer.first_token_ms < answer.total_ms
    assert real.tokens.total == answer.prompt_tokens + answer.completion_tokens > 10


async def test_real_server_ends_at_max_tokens_and_at_a_stop(real: Asking) -> None:
    """Both bounds reach it."""
    answer, _ = await real.ask(Message("user", "Count from one to ten in words."), max_tokens=3)
    assert (answer.finish, answer.completion_tokens) == ("length", 3)
    answer, _ = await real.ask(Message("user", "Count: 1, 2, 3, ... until 9."), stop=("5",))
    assert answer.finish == "stop"
    assert "5" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
async def test_real_server_answers_in_the_shape_that_is_asked_for(real: Asking, stream: bool) -> None:
    """It takes json_object only; that is found out, and the link is none the worse."""
    question = Message("user", "It is 21 degrees in Oslo today. Tell me the city and the degrees.")
    answer, _ = await real.ask(question, response_schema=WEATHER, stream=stream)
    assert json.loads(answer.text) == {"city": "Oslo", "degrees": 21}
    assert real.cloud.status()[NAME]["state"] == "up"
    assert real.cloud.status()[NAME]["reason"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_real_server_calls_a_tool(real: Asking, stream: bool) -> None:
    """After calls and results in the dialogue. It cannot stream calls; then it is asked for the whole."""
    answer, pieces = await real.ask(*OPEN_NORTH, tools=(VALVE,), stream=stream)
    assert (answer.finish, answer.text, pieces) == ("tool_calls", "", [])
    assert [call.name for call in answer.calls] == ["set_valve"]
    assert json.loads(answer.calls[0].arguments) == {"valve": "north", "position": "open"}


async def test_real_server_told_of_tools_it_may_not_call_answers_in_words(real: Asking) -> None:
    """The last step of an agent."""
    answer, _ = await real.ask(*OPEN_NORTH, tools=(VALVE,), may_call=False)
    assert answer.calls == ()
    assert answer.text


async def test_real_server_refuses_what_does_not_fit_its_context(real: Asking) -> None:
    """In its own words, and goes on answering."""
    with pytest.raises(ModelUnavailable, match=f"maximum context length is {CONTEXT} tokens"):
        await real.ask(Message("user", "word " * 2 * CONTEXT))
    assert real.tokens.total == 0
    answer, _ = await real.ask(Message("user", "Say hello."))
    assert answer.text


async def test_real_server_refuses_a_wrong_key(port: int, tmp_path: Path) -> None:
    """The link is down for that reason, found by the first probe."""
    (tmp_path / "key").write_text("sk-wrong")
    one = Asking(port, tmp_path / "key")
    task = asyncio.create_task(one.cloud.run())
    try:
        async with asyncio.timeout(START_S):
            event, data = await one.told.get()
        assert event == "link_down"
        assert "HTTP 401" in data["reason"]
        with pytest.raises(NoLink, match="HTTP 401"):
            await one.ask(Message("user", "Say hello."))
    finally:
        task.cancel()
        await asyncio.wait([task])
        await one.cloud.stop()
