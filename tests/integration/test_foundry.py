"""What Foundry Local's SDK 0.5.1 sends and reads, at the real daemon; and the program by which it finds it."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from edged.cli import foundry
from tests.support import clients
from tests.support.broker import free_port
from tests.support.cli import edged
from tests.support.daemon import SCRIPT, Daemon, entry

WEATHER = {"name": "get_weather", "arguments": {"city": "Oslo"}}
TALK = "".join(
    (
        SCRIPT,
        entry("weather in Oslo", WEATHER, text="It is sunny in Oslo."),
        entry("as json", text='{"valve": "north"}'),
        entry("say", text="one two three"),
    )
)
# What the SDK's own type of an entry requires (foundry_local/models.py, FoundryListResponseModel).
TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("name", "displayName", "modelType", "providerType", "uri", "version", "publisher", "task", "alias"), (str,)
    ),
    **dict.fromkeys(("license", "licenseDescription", "parentModelUri"), (str,)),
    "promptTemplate": (dict, type(None)),
    "runtime": (dict,),
    "fileSizeMb": (int,),
    "modelSettings": (dict,),
    "supportsToolCalling": (bool,),
    "maxOutputTokens": (int, type(None)),
}
SERVICE = re.compile(r"http://(?:[a-zA-Z0-9.-]+|\d{1,3}(\.\d{1,3}){3}):\d+")  # its pattern (service.py)
pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon that all tests share


class Board(Daemon):
    """Models: `small`, `vectors` (embeddings), `away` (a file that is not there); agents `house`, and `locked`, which
    the role of this way in does not have."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        (folder / "vectors.toml").write_text("dimensions = 8\n")
        super().__init__(
            folder,
            script=TALK,
            config=(
                f'[http]\nfoundry = "127.0.0.1:{self.port}"\n'
                f'[models.vectors]\nsource = "scripted:{folder}/vectors.toml"\n'
                f'[models.away]\nsource = "file:{folder}/away.gguf"\n'
                '[agents.locked]\nmodel = "small"\n'
                '[roles.guest]\nagents = ["house"]\nmodels = ["*"]\ntools = ["set_valve"]\n'
                '[roles.all]\nagents = ["*"]\ntools = ["*"]\nmanage = true\n'
                f'[access]\nfoundry = "guest"\nunix_uid = {{ "{os.getuid()}" = "all" }}\n'
            ),
        )

    async def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """(status, text); a body is posted."""
        method = "GET" if body is None else "POST"
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{self.port}") as session,
            session.request(method, path, json=body, headers=headers) as response,
        ):
            return response.status, await response.text()

    async def told(self, path: str) -> Any:
        """The document at a path."""
        status, text = await self.ask(path)
        assert status == 200, text
        return json.loads(text)

    async def chat(self, model: str, text: str, **more: Any) -> tuple[int, Any]:
        """A completion, with what the SDK's users show for a key."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_completion_tokens": 64, **more}
        status, answer = await self.ask("/v1/chat/completions", body, Authorization="Bearer OPENAI_API_KEY")
        return status, json.loads(answer)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def board(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Board]:
    """Of all tests."""
    async with Board(tmp_path_factory.mktemp("foundry")) as running:
        yield running


async def test_catalogue_has_what_the_role_may_use_with_every_field(board: Board) -> None:
    """A bare list; each name is id and alias."""
    entries = {one["name"]: one for one in await board.told("/foundry/list")}
    assert set(entries) == {"small", "vectors", "away", "house"}
    for name, one in entries.items():
        assert {field: type(one[field]) in kinds for field, kinds in TYPES.items()} == dict.fromkeys(TYPES, True)
        assert one["alias"] == name
        assert one["runtime"]["deviceType"] in ("CPU", "GPU", "NPU")
    assert [entries[name]["supportsToolCalling"] for name in ("small", "house", "vectors")] == [True, False, False]
    assert await board.told("/openai/models") == ["small", "vectors", "house"]
    assert (await board.told("/openai/status"))["modelDirPath"]


async def test_models_are_loaded_and_let_go(board: Board) -> None:
    """By GET, as the SDK does; an agent's name stands for its model."""
    for name in ("house", "small"):
        assert (await board.ask(f"/openai/load/{name}?ttl=600&ep=cpu"))[0] == 200
        assert {"small", "house"} <= set(await board.told("/openai/loadedmodels"))
        assert (await board.ask(f"/openai/unload/{name}?force=True"))[0] == 200
        assert not {"small", "house"} & set(await board.told("/openai/loadedmodels"))
    status, text = await board.ask("/openai/load/away")
    assert (status, "No OpenAIService provider found for modelName" in text) == (404, True)


async def test_download_of_what_is_here_is_done_and_of_what_is_not_says_why(board: Board) -> None:
    """The last line is a JSON object; a guest brings nothing."""
    for name, done, words in (("small", True, ""), ("house", True, ""), ("away", False, "guest"), ("x", False, "'x'")):
        asked = {"model": {"Name": name, "Uri": "", "Publisher": "", "ProviderType": "", "PromptTemplate": None}}
        _, text = await board.ask("/openai/download", {**asked, "token": None, "IgnorePipeReport": True})
        last = json.loads(text.splitlines()[-1])
        assert (last["success"], words in (last["errorMessage"] or "")) == (done, True), text


async def test_completions_want_no_key(board: Board) -> None:
    """Nor mind one that is none: a plain model, an agent with its tools, and a client's tool."""
    _, answer = await board.chat("small", "say", stream=False)
    assert answer["choices"][0]["message"]["content"] == "one two three"
    _, answer = await board.chat("house", "open the north valve")
    assert answer["choices"][0]["message"]["content"]
    tool = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    _, answer = await board.chat("small", "the weather in Oslo?", tools=[{"type": "function", "function": tool}])
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


ELSEWHERE = ("/api/tags", "/v1/agents/house/requests", "/v1/requests/x", "/metrics", "/livez", "/openapi.json")


@pytest.mark.parametrize("path", [*ELSEWHERE, "/v1/tools/set_valve", "/"])
async def test_nothing_else_is_there(board: Board, path: str) -> None:
    """It is a way in without a key, so it has what its clients need."""
    assert (await board.ask(path))[0] == 404


async def test_what_the_role_does_not_have_is_refused(board: Board) -> None:
    """Agents, names that are none, pages of browsers and wrong words."""
    assert (await board.chat("locked", "say"))[0] == 403
    assert (await board.ask("/openai/load/locked"))[0] == 403
    assert (await board.ask("/openai/load/nothing"))[0] == 404
    assert (await board.ask("/openai/load/small?ttl=long"))[0] == 400
    assert (await board.ask("/openai/download", {"model": "small"}))[0] == 400
    assert (await board.ask("/openai/unload/small", Origin="https://example.com"))[0] == 403
    assert (await board.ask("/foundry/list", Host="rebound.example.com"))[0] == 403


async def shim(folder: Path, *words: str) -> tuple[int | None, str, str]:
    """(exit code, stdout, stderr) of the program."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(str(folder / "foundry"), *words, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(30):
        out, err = await child.communicate()
    return child.returncode, out.decode(), err.decode()


async def test_program_says_where_edged_listens(board: Board, tmp_path: Path) -> None:
    """Made by `edged foundry`; it says so only while edged listens, and starts nothing that is running."""
    made = await edged("foundry", str(tmp_path), "--config", str(board.config))
    assert (made.code, str(board.port) in made.out) == (0, True), made
    for words in (("service", "status"), ("service", "start")):
        code, out, _ = await shim(tmp_path, *words)
        found = SERVICE.search(out)
        assert found is not None
        assert (code, found[0]) == (0, f"http://127.0.0.1:{board.port}")
    assert (await shim(tmp_path, "service", "stop"))[0] == 1
    assert (await shim(tmp_path, "model", "run"))[0] == 64
    code, out, _ = await shim(tmp_path, "model", "list")
    assert code == 0

    again = await edged("foundry", str(tmp_path), "--config", str(board.config), "--json")
    assert again.json() == {"program": str(tmp_path / "foundry"), "listener": f"127.0.0.1:{board.port}"}

    nobody = free_port()
    (tmp_path / "foundry").write_text(foundry.script(f"127.0.0.1:{nobody}"))
    code, out, _ = await shim(tmp_path, "service", "status")
    assert (code, SERVICE.search(out)) == (0, None)
    (tmp_path / "foundry").write_text("#!/bin/sh\n# another program\n")
    refused = await edged("foundry", str(tmp_path), "--config", str(board.config))
    assert (refused.code, "another program" in refused.err) == (65, True)


async def test_program_needs_a_listener(tmp_path: Path) -> None:
    """Without [http] foundry there is nothing to point at."""
    (tmp_path / "edged.toml").write_text("[node]\nid = 'n1'\n")
    refused = await edged("foundry", str(tmp_path), "--config", str(tmp_path / "edged.toml"))
    assert (refused.code, "[http] foundry" in refused.err) == (78, True)


async def test_program_knows_sockets_by_the_kernels_words() -> None:
    """Both families, as /proc/net has them."""
    assert "0100007F:1499" in foundry.script("127.0.0.1:5273")
    assert "00000000000000000000000001000000:1499" in foundry.script("[::1]:5273")
    assert "http://localhost:5273" in foundry.script("[::1]:5273")


@pytest.mark.slow
async def test_sdk_and_agent_framework_work_unchanged(board: Board, tmp_path: Path) -> None:
    """The SDK finds edged by the program, and Agent Framework's client runs an agent with a tool."""
    (tmp_path / "foundry").write_text(foundry.script(f"127.0.0.1:{board.port}"))
    (tmp_path / "foundry").chmod(0o755)
    framework, sdk = "agent-framework-foundry-local==1.0.0b261015", "foundry-local-sdk==0.5.1"
    python = await clients.install("foundry-local", framework, sdk, "httpx<1")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    tried = await clients.run(python, "foundry_client.py", environment)
    told = "agent-framework-foundry-local"
    clients.record("foundry-local-sdk", sdk.partition("==")[2], {k: v for k, v in tried.items() if k.startswith("SDK")})
    clients.record(told, framework.partition("==")[2], {k: v for k, v in tried.items() if not k.startswith("SDK")})
    assert {what: result for what, result in tried.items() if result != clients.OK} == {}
