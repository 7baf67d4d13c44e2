"""Upstreams that are real: llama.cpp's server (llama-server, or the one in the xllamacpp wheel), and LiteLLM's proxy in
front of it. What other servers send is in test_upstream_servers.py."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edged.config import Upstream
from edged.errors import ModelUnavailable, NoLink
from edged.types import Chat, ChatAnswer, Message, Sampling, ToolCall, ToolSpec
from edged.upstreams import Cloud
from tests.support import clients
from tests.support.broker import free_port

pytestmark = pytest.mark.slow  # a server with a model of 400 MB, and for LiteLLM an environment of 600 MB

NAME, KEY = "cloud", "sk-real-77"
MODEL_FILE = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
# The newest whose proxy the package index has in all its parts; 1.110 wants `litellm-proxy`, which is not there.
LITELLM = "litellm[proxy]==1.99.4"
CONTEXT = 1024
START_S, ANSWER_S = 240.0, 240.0  # on two cores that others want as well
VALVE = ToolSpec(
    "set_valve",
    "Open or close a valve.",
    {
        "type": "object",
        "properties": {"valve": {"enum": ["north", "south"]}, "position": {"enum": ["open", "closed"]}},
        "required": ["valve", "position"],
    },
)


def close(valve: str) -> tuple[Message, ...]:
    """A turn that is over. With two of them before the question a model of this size calls."""
    made = ToolCall("set_valve", {"valve": valve, "position": "closed"})
    return Message("user", f"Close the {valve} valve."), Message("assistant", "", (made,)), Message("tool", "done")


OPEN_NORTH = (
    Message("system", "You run a greenhouse."),
    *close("south"),
    *close("north"),
    Message("user", "Open the north valve."),
)
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"]}


class Tokens:
    """A ledger in memory."""

    async def spent(self, upstream: str, day: str) -> int:
        return 0

    async def add(self, upstream: str, day: str, tokens: int) -> None:
        pass


class Asking:
    """A server, asked as an upstream."""

    def __init__(self, port: int, key: Path | None = None) -> None:
        url = f"http://127.0.0.1:{port}/v1"
        reference = None if key is None else str(key)
        settings = Upstream(
            base_url=url, model="large", api_key_file=reference, timeout_s=ANSWER_S, first_byte_timeout_s=ANSWER_S
        )
        self.cloud = Cloud({NAME: settings}, Tokens())

    async def ask(self, *messages: Message, stream: bool = False, **more: Any) -> tuple[ChatAnswer, list[str]]:
        fields = {"key": "r:0", "messages": messages, "max_tokens": 60, "sampling": Sampling(seed=1), **more}
        pieces: list[str] = []
        return await self.cloud.chat(NAME, Chat(**fields), pieces.append if stream else None), pieces


@contextlib.asynccontextmanager
async def process(command: list[str], log: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server, from its start to its end."""
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, env={**os.environ, **environment}
        )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def listens(port: int, child: asyncio.subprocess.Process, log: Path) -> None:
    """Until it takes connections, which is before it has its model."""
    async with asyncio.timeout(START_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                assert child.returncode is None, log.read_text(encoding="utf-8", errors="replace")
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


@contextlib.asynccontextmanager
async def llama_server(folder: Path) -> AsyncIterator[int]:
    """The port of llama.cpp's server that has just begun to listen."""
    peers: Any = importlib.import_module("benchmarks.peers")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "models"
    model = Path(os.environ.get("EDGED_TEST_MODELS_DIR") or cache) / MODEL_FILE
    port = free_port()
    settings = peers.Settings(model=model, slots=1, context=CONTEXT, threads=1)
    program = await asyncio.to_thread(peers.llama_server)
    log = folder / "llama-server.log"
    async with process([*program.command, *settings.flags(port)], log) as child:
        await listens(port, child, log)
        yield port


async def test_llama_server_is_waited_for_and_answers_in_every_way(tmp_path: Path) -> None:
    """Asked as soon as it listens, while it loads; then words, calls, shapes, stops, and what is too long for it."""
    async with llama_server(tmp_path) as port:
        one = Asking(port)
        answer, pieces = await one.ask(Message("user", "Name a colour."), stream=True)
        assert answer.text == "".join(pieces) != ""
        assert answer.prompt_tokens > 5
        assert one.cloud.status()[NAME]["reason"] is None

        for stream in (False, True):
            answer, pieces = await one.ask(*OPEN_NORTH, tools=(VALVE,), stream=stream)
            assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == [
                ("set_valve", {"valve": "north", "position": "open"})
            ]
            assert (answer.finish, pieces) == ("tool_calls", [])
        call = answer.calls[0]
        made = Message("assistant", "", (ToolCall(call.name, json.loads(call.arguments)),))
        answer, _ = await one.ask(*OPEN_NORTH, made, Message("tool", '{"ok": true}'), tools=(VALVE,), may_call=False)
        assert answer.text
        assert not answer.calls

        answer, _ = await one.ask(Message("user", "Name a colour."), response_schema=COLOUR, stream=True)
        assert json.loads(answer.text)["colour"] in ("red", "green")
        count = Message("user", "Count from 1 to 9, with commas: 1, 2, 3")
        answer, pieces = await one.ask(count, stop=(", 7", "7"), stream=True)
        assert "7" not in answer.text
        assert answer.text == "".join(pieces)
        sampling = Sampling(0.8, top_k=20, repeat_penalty=1.1, seed=3)
        assert (await one.ask(Message("user", "Name a colour."), sampling=sampling))[0].text
        with pytest.raises(ModelUnavailable, match="context"):
            await one.ask(Message("user", "many words " * CONTEXT))
        assert one.cloud.status()[NAME]["state"] == "up"
        await one.cloud.stop()


async def test_litellm_in_front_of_llama_server_runs_a_loop_of_two_rounds(tmp_path: Path) -> None:
    """A call, its result, an answer; a wrong key and an unknown model are told as what they are."""
    program = (await clients.install("litellm-proxy", LITELLM)).parent / "litellm"
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "wrong").write_text("sk-another\n")
    async with llama_server(tmp_path) as behind:
        port, log = free_port(), tmp_path / "litellm.log"
        settings = {"model": "openai/m", "api_base": f"http://127.0.0.1:{behind}/v1", "api_key": "none"}
        proxy = {
            "model_list": [{"model_name": "large", "litellm_params": settings}],
            "general_settings": {"master_key": KEY},
        }
        (tmp_path / "proxy.yaml").write_text(json.dumps(proxy))  # JSON is YAML
        command = [str(program), "--config", str(tmp_path / "proxy.yaml"), "--port", str(port), "--host", "127.0.0.1"]
        async with process(command, log, LITELLM_LOCAL_MODEL_COST_MAP="True") as child:
            await listens(port, child, log)
            one = Asking(port, tmp_path / "key")
            for stream in (False, True):
                answer, _ = await one.ask(*OPEN_NORTH, tools=(VALVE,), stream=stream)
                assert [call.name for call in answer.calls] == ["set_valve"]
                call = answer.calls[0]
                made = Message("assistant", "", (ToolCall(call.name, json.loads(call.arguments)),))
                done = Message("tool", '{"ok": true}')
                answer, pieces = await one.ask(*OPEN_NORTH, made, done, tools=(VALVE,), may_call=False, stream=stream)
                assert answer.text
                assert not stream or answer.text == "".join(pieces)
            sampling = Sampling(0.8, top_k=20, repeat_penalty=1.1, seed=3)  # sent without what it refuses
            assert (await one.ask(Message("user", "Name a colour."), sampling=sampling))[0].text
            await one.cloud.stop()
            other = Asking(port, tmp_path / "wrong")
            with pytest.raises(NoLink, match=r"HTTP 40\d"):
                await other.ask(Message("user", "hi"))
            await other.cloud.stop()
