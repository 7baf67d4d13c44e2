"""A model in a real server of another project: `python -m llama_cpp.server`, which knows json_object only."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edged.agent.dialects import Dialects
from edged.completions.plain import Completions
from edged.completions.request import ModelAsk
from edged.config import Model
from edged.engines.kind import ChatTemplate
from edged.errors import ContextExceeded
from edged.types import SERVER_ENGINE, Message
from edged.upstreams import LocalServers
from tests.support.broker import free_port
from tests.support.real_model import model_path

START_S = 120.0  # of a server with two busy cores to itself
CONTEXT = 256
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"]}


@pytest.fixture
async def base_url(tmp_path: Path) -> AsyncIterator[str]:
    """Of a running server; it listens when the model is loaded."""
    port = free_port()
    options = {
        "model": str(model_path()),
        "model_alias": "tiny",
        "host": "127.0.0.1",
        "port": str(port),
        "n_ctx": str(CONTEXT),
        "n_threads": "1",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with (tmp_path / "log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llama_cpp.server", *arguments, stdout=log, stderr=log
        )
        try:
            async with asyncio.timeout(START_S):
                while True:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    except ConnectionRefusedError:
                        assert server.returncode is None, (tmp_path / "log").read_text()
                        await asyncio.sleep(0.1)
                    else:
                        writer.close()
                        break
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if server.returncode is None:
                server.terminate()
            await server.wait()


async def test_real_server_is_a_model_of_the_board(base_url: str) -> None:
    """Known by its list; answers in words, piece by piece, and in a shape; says itself what is too long."""
    model = Model(engine=SERVER_ENGINE, base_url=base_url, model="tiny", context=CONTEXT)
    served = LocalServers({"npu": model})
    chats = Completions(None, {"npu": model}, Dialects(lambda _: ChatTemplate()), max_waiting=1, served=served)  # type: ignore[arg-type]
    try:
        await served.look("npu")
        assert served.status()["npu"]["state"] == "ready"
        pieces: list[str] = []
        question = (Message("user", "Name a colour."),)
        words = ModelAsk(model="npu", messages=question, max_tokens=8)
        answer = await chats.complete(words, lambda text, _: pieces.append(text))
        assert answer.text
        assert len(pieces) > 1
        assert answer.completion_tokens > 0
        shaped = await chats.complete(ModelAsk(model="npu", messages=question, response_schema=COLOUR, max_tokens=32))
        assert json.loads(shaped.text)["colour"] in ("red", "green")
        with pytest.raises(ContextExceeded, match="maximum context length"):
            await chats.complete(ModelAsk(model="npu", messages=(Message("user", "word " * 2 * CONTEXT),)))
        assert served.status()["npu"]["state"] == "ready"
    finally:
        await served.stop()
