"""HTTP of the real daemon: the OpenAI SDK, curl, requests that are followed, keys, health and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from tests.support.broker import free_port, until
from tests.support.daemon import Daemon, Wired

KEY = "sk-panel-0123456789abcdef"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """One with its HTTP socket."""
    async with Daemon(tmp_path) as running:
        yield running


def session(daemon: Daemon) -> aiohttp.ClientSession:
    """A client on the HTTP socket."""
    return aiohttp.ClientSession(
        "http://edged", connector=aiohttp.UnixConnector(str(daemon.folder / "run" / "http.sock"))
    )


def sdk(daemon: Daemon) -> openai.AsyncOpenAI:
    """The OpenAI SDK on the HTTP socket."""
    transport = httpx2.AsyncHTTPTransport(uds=str(daemon.folder / "run" / "http.sock"))
    client = httpx2.AsyncClient(transport=transport)
    return openai.AsyncOpenAI(base_url="http://edged/v1", api_key="unused", http_client=client)


async def test_openai_sdk_asks_an_agent_and_a_plain_model(daemon: Daemon) -> None:
    """An agent acts with its own tools; a plain model answers what it is told; both stream."""
    async with sdk(daemon) as client:
        acted = await client.chat.completions.create(
            model="house", messages=[{"role": "user", "content": "open the north valve"}]
        )
        assert acted.choices[0].message.content == "Valve north is now open."
        assert daemon.rows("valve_commands") == [("north", "open")]
        plain = await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "tell a story"}]
        )
        assert plain.choices[0].message.content == "one two three"
        for model in ("house", "small"):
            stream = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "tell a story"}], stream=True
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            assert "".join(pieces) == "one two three"
            assert len([piece for piece in pieces if piece]) > 1
        assert {model.id async for model in client.models.list()} == {"house", "small"}
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
    assert "aiohttp.access" not in daemon.text()


async def test_client_that_leaves_a_stream_ends_its_request_unless_that_has_an_id(daemon: Daemon) -> None:
    """Over HTTP as over the other socket: what nobody can ever ask for again is not worked on."""
    body = {"input": "never ends", "stream": True}
    async with session(daemon) as client:
        for more in ({}, {"id": "kept"}):
            async with client.post("/v1/agents/house/requests", json={**body, **more}) as response:
                await response.content.readuntil(b"event: delta")
        await until(lambda: daemon.states() == ["cancelled", "running"])
        async with client.delete("/v1/requests/kept") as response:
            assert (await response.json())["status"] == "cancelled"


async def test_request_is_submitted_followed_and_found_by_its_client(daemon: Daemon) -> None:
    """202 with a Location, then the reply there; the same id on the other socket is the same request."""
    async with session(daemon) as client:
        headers = {"Prefer": "respond-async"}
        async with client.post("/v1/agents/house/requests", json={"input": "note 3;", "id": "a"}, headers=headers) as r:
            assert r.status == 202
            place = r.headers["Location"]
        await until(lambda: daemon.states() == ["done"])
        async with client.get(place) as r:
            assert (r.status, (await r.json())["output"]) == (200, "noted 3")
        async with client.get("/v1/requests/nothing") as r:
            assert (r.status, (await r.json())["error"]["code"]) == (404, "bad_request")
    async with Wired(daemon.socket) as other:
        _, reply = await other.call(1, "agent.ask", {"input": "note 3;", "id": "a"})
    assert reply["output"] == "noted 3"
    assert daemon.rows("diary") == [("n3",)]


async def test_key_in_quotes_and_without_is_one_request_on_both_apis(daemon: Daemon) -> None:
    """Whichever spelling and API comes first, it is done once."""
    chat = {"model": "house", "messages": [{"role": "user", "content": "note 5;"}]}
    async with session(daemon) as client:
        rids = set()
        for key in ("k", '"k"'):
            async with client.post(
                "/v1/agents/house/requests", json={"input": "note 5;"}, headers={"Idempotency-Key": key}
            ) as r:
                rids.add((await r.json())["rid"])
            async with client.post("/v1/chat/completions", json=chat, headers={"Idempotency-Key": key}) as r:
                rids.add((await r.json())["edged"]["rid"])
        assert len(rids) == 1
        for key in ("", '""', "x" * 129):
            async with client.post("/v1/chat/completions", json=chat, headers={"Idempotency-Key": key}) as r:
                assert (r.status, (await r.json())["error"]["param"]) == (400, "Idempotency-Key")
    assert daemon.rows("diary") == [("n5",)]


async def test_key_that_was_stored_with_its_quotes_is_found_by_either_spelling(daemon: Daemon) -> None:
    """As earlier versions stored it for the OpenAI API; one that was stored without them is another one then."""
    chat = {"model": "house", "messages": [{"role": "user", "content": "note 5;"}]}
    async with Wired(daemon.socket) as other:
        _, quoted = await other.call(1, "agent.ask", {"input": "note 5;", "id": '"k"'})
    async with session(daemon) as client:

        async def rid(key: str) -> str:
            async with client.post("/v1/chat/completions", json=chat, headers={"Idempotency-Key": key}) as r:
                return str((await r.json())["edged"]["rid"])

        assert await rid('"k"') == await rid("k") == quoted["rid"]
        async with Wired(daemon.socket) as other:
            _, bare = await other.call(1, "agent.ask", {"input": "note 5;", "id": "k"})
        assert (await rid('"k"'), await rid("k")) == (quoted["rid"], bare["rid"])
    assert daemon.rows("diary") == [("n5",)] * 2


async def test_metrics_count_what_happened(daemon: Daemon) -> None:
    """Requests by outcome, tokens, tools, loads; the gauges follow."""
    async with session(daemon) as client:
        async with client.post("/v1/agents/house/requests", json={"input": "open the north valve"}) as r:
            assert r.status == 200
        daemon.execute("DROP TABLE valve_commands")
        async with client.post("/v1/agents/house/requests", json={"input": "open the north valve"}) as r:
            assert r.status == 502
        async with client.get("/metrics") as r:
            lines = (await r.text()).splitlines()
    figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert figures['edged_requests_total{agent="house",status="done",where="local"}'] == "1.0"
    assert figures['edged_requests_total{agent="house",status="failed",where="local"}'] == "1.0"
    assert figures['edged_tool_calls_total{result="ok",tool="set_valve"}'] == "1.0"
    assert float(figures['edged_tool_calls_total{result="failed",tool="set_valve"}']) >= 1
    assert float(figures['edged_tokens_total{kind="prompt",model="small"}']) > 0
    assert figures['edged_model_loads_total{model="small",result="ok"}'] == "1.0"
    assert float(figures["edged_memory_used_bytes"]) > 2**20
    assert figures["edged_request_seconds_count"] == "2.0"


async def test_tcp_listener_takes_who_has_a_key_and_nobody_else(tmp_path: Path) -> None:
    """The key's name is who the client is: it sees its own requests by id, and the daemon's log has no key."""
    port = free_port()
    (tmp_path / "keys").write_text(f"# of this house\npanel:{KEY}\n")
    config = f'[http]\nlisten = ["unix:http.sock", "127.0.0.1:{port}"]\napi_keys_file = "{tmp_path}/keys"\n'
    async with Daemon(tmp_path, config=config) as daemon, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        body: dict[str, Any] = {"input": "note 1;", "id": "a"}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {KEY}x"}):
            async with client.post("/v1/agents/house/requests", json=body, headers=headers) as r:
                assert r.status == 401
        async with client.get("/livez") as r:
            assert r.status == 200
        with_key = {"Authorization": f"Bearer {KEY}"}
        async with client.post("/v1/agents/house/requests", json=body, headers=with_key) as r:
            assert (await r.json())["output"] == "noted 1"
        async with Wired(daemon.socket) as other:
            _, rows = await other.call(1, "requests.list")
        assert rows[0]["client"] == "key:panel"
        async with sdk_on(port) as client_sdk:
            done = await client_sdk.chat.completions.create(
                model="house", messages=[{"role": "user", "content": "tell a story"}]
            )
            assert done.choices[0].message.content == "one two three"
        assert KEY not in daemon.text()


async def test_flood_of_strangers_on_a_port_locks_nobody_out(tmp_path: Path) -> None:
    """Three hundred connections without a key, from many addresses: programs on the board and clients with a key are
    served as ever."""
    port = free_port()
    (tmp_path / "keys").write_text(f"panel:{KEY}\n")
    config = f'[http]\nlisten = ["unix:http.sock", "127.0.0.1:{port}"]\napi_keys_file = "{tmp_path}/keys"\n'
    async with Daemon(tmp_path, config=config) as daemon:
        flood = [
            await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.1.{1 + n % 20}", 0))
            for n in range(300)
        ]
        async with session(daemon) as client, client.get("/readyz") as r:
            assert r.status == 200
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"X-Api-Key": KEY}) as client,
            client.post("/v1/agents/house/requests", json={"input": "note 1;"}) as r,
        ):
            assert (await r.json())["output"] == "noted 1"
        for _, writer in flood:
            writer.close()


def sdk_on(port: int) -> openai.AsyncOpenAI:
    """The OpenAI SDK over TCP."""
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)


async def test_daemon_with_models_and_no_agent_serves_its_models(tmp_path: Path) -> None:
    """Whoever wants only the OpenAI API of a model writes only a model."""
    daemon = Daemon(tmp_path)
    text = daemon.config.read_text()
    daemon.config.write_text(text[: text.index("[agents.house]")])
    async with daemon, sdk(daemon) as client:
        done = await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "tell a story"}]
        )
        assert done.choices[0].message.content == "one two three"


async def test_curl_on_the_socket_gets_the_reply(daemon: Daemon) -> None:
    """The command of the README."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--unix-socket", str(daemon.folder / "run" / "http.sock")),
        *("http://edged/v1/agents/house/requests", "-d", '{"input": "how full is it?"}'),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert json.loads(out)["output"] == "It is 41 percent full."
