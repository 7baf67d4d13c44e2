"""An HTTP surface from outside the package, in the real daemon: the core serves it like any of edged's own, and tells
whatever goes wrong below its path in its shape."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from edged.wire import MAX_REQUEST_BYTES
from tests.support.broker import free_port, until
from tests.support.daemon import ROOT, Daemon

KEY = "sk-panel-0123456789abcdef"
pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon that all tests share


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def tea(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon with the surface, on a socket and a port."""
    folder = tmp_path_factory.mktemp("tea")
    (folder / "keys").write_text(f"panel:{KEY}\n")
    listen = f'listen = ["unix:http.sock", "127.0.0.1:{free_port()}"]'
    config = f'[http]\n{listen}\napi_keys_file = "{folder}/keys"\n[queue]\nmax_waiting = 4\n'
    members = {"EDGED_TEST_MEMBERS": str(ROOT / "tests" / "support" / "tea_surface.py")}
    async with Daemon(folder, config=config, environment=members) as running:
        yield running


def on_socket(tea: Daemon) -> aiohttp.ClientSession:
    """A client that the kernel names."""
    connector = aiohttp.UnixConnector(str(tea.folder / "run" / "http.sock"))
    return aiohttp.ClientSession("http://edged", connector=connector)


def on_port(tea: Daemon, **headers: str) -> aiohttp.ClientSession:
    """A client that shows a key, or none."""
    port = tea.config.read_text().split("127.0.0.1:")[1].partition('"')[0]
    return aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers)


async def wrong(response: aiohttp.ClientResponse) -> tuple[int, str, str]:
    """(status, code, message) of an error in the surface's shape."""
    assert (response.content_type, response.headers["X-Pot"]) == ("application/x-tea", "cold")
    code, _, message = (await response.text()).partition(": ")
    return response.status, code, message


async def test_routes_are_served_to_callers_that_the_core_names(tea: Daemon) -> None:
    """By the socket's credentials and by the key; the one open path to everybody."""
    async with on_socket(tea) as client, client.get("/tea/who") as response:
        assert (await response.text()).startswith("unix:")
    async with on_port(tea, **{"X-Api-Key": KEY}) as client, client.get("/tea/who") as response:
        assert await response.text() == "key:panel"
    async with on_port(tea) as client, client.get("/tea/menu") as response:
        assert (response.status, await response.text()) == (200, "tea")


async def test_agent_answers_whole_and_in_pieces(tea: Daemon) -> None:
    """Requests and streams are the core's and the API's."""
    async with on_socket(tea) as client:
        async with client.post("/tea/house", data=b"how full is it?") as response:
            assert json.loads(await response.read())["output"] == "It is 41 percent full."
        async with client.post("/tea/house/drops", data=b"tell a story") as response:
            assert response.content_type == "text/event-stream"
            *drops, pot = (await response.text()).strip().split("\n\n")
    assert "".join(drop.removeprefix("event: drop\ndata: ") for drop in drops) == "one two three"
    assert json.loads(pot.removeprefix("event: pot\ndata: "))["output"] == "one two three"


async def test_client_that_leaves_a_stream_ends_its_request(tea: Daemon) -> None:
    """As on every surface."""
    async with on_socket(tea) as client, client.post("/tea/house/drops", data=b"never ends") as response:
        await response.content.readuntil(b"event: drop")
    await until(lambda: tea.states()[-1] == "cancelled")


async def test_stranger_without_a_key_is_told_in_the_surfaces_shape(tea: Daemon) -> None:
    """On the port, and each other surface in its own."""
    async with on_port(tea) as client:
        for method, path in (("GET", "/tea/who"), ("POST", "/tea/house"), ("GET", "/tea/nothing"), ("GET", "/tea")):
            async with client.request(method, path) as response:
                assert (await wrong(response))[:2] == (401, "forbidden")
                assert response.headers["WWW-Authenticate"] == 'Bearer realm="edged"'
        async with client.get("/v1/models") as response:
            assert (await response.json())["error"]["type"] == "authentication_error"
        async with client.get("/teapot") as response:
            assert (await response.json())["status"] == "refused"


async def test_core_tells_its_errors_in_the_surfaces_shape(tea: Daemon) -> None:
    """A body that is too large, whether its length is said or not; a path and a method that there are not; a page that
    may not ask."""

    async def flood() -> AsyncIterator[bytes]:
        for _ in range(MAX_REQUEST_BYTES // 2**14 + 1):
            yield b"x" * 2**14

    async with on_socket(tea) as client:
        for data in (b"x" * (MAX_REQUEST_BYTES + 1), flood()):
            async with client.post("/tea/house", data=data) as response:
                assert (await wrong(response))[:2] == (413, "too_large")
        async with client.get("/tea/a/b/c") as response:
            status, _, message = await wrong(response)
            assert (status, "POST /tea/{agent}/drops" in message) == (404, True)
        async with client.put("/tea/house") as response:
            assert (await wrong(response))[0] == 405
            assert response.headers["Allow"] == "OPTIONS, POST"
        async with client.get("/tea/who", headers={"Origin": "https://evil.example"}) as response:
            assert (await wrong(response))[:2] == (403, "forbidden")


async def test_handlers_errors_are_told_in_the_surfaces_shape(tea: Daemon) -> None:
    """Refusals of the API, with what the core adds to them, and bugs, of which only the log has the details."""
    async with on_socket(tea) as client:
        async with client.post("/tea/nobody", data=b"hi") as response:
            status, code, message = await wrong(response)
            assert (status, code, "house" in message) == (404, "unknown_agent", True)
        async with client.post("/tea/nobody/drops", data=b"hi") as response:
            assert (await wrong(response))[:2] == (404, "unknown_agent")
        async with client.get("/tea/broken") as response:
            status, code, message = await wrong(response)
            assert (status, code, "secret" in message) == (500, "internal", False)
    assert "ZeroDivisionError: secret 42" in tea.text()


async def test_error_of_a_stream_that_has_begun_is_its_last_event(tea: Daemon) -> None:
    """There is no status left to say it with."""
    spill = {"X-Id": "spill"}
    async with (
        on_socket(tea) as client,
        client.post("/tea/house/drops", data=b"tell a story", headers=spill) as response,
    ):
        assert response.status == 200
        assert (await response.text()).endswith("event: wrong\ndata: internal\n\n")
