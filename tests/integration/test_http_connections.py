"""HTTP connections on real sockets: who is let in, who goes away, what is too slow or too much, and the listeners."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from edged.errors import Busy, ConfigError, EdgedError, NoLink, NoMemory, OverBudget, UnknownAgent
from edged.transport.http.core.connection import caller, gone
from edged.transport.http.core.errors import NotFound
from edged.transport.http.core.limits import Limits
from edged.transport.http.openai.surface import OpenAI
from tests.support import stranger as strangers
from tests.support.broker import until
from tests.support.http_api import (
    FAST,
    KEY,
    METRICS,
    Desk,
    Line,
    backend,
    keys_file,
    listening,
    reply,
    serving,
    tcp_session,
    transport,
    unix_session,
)

pytest_plugins = ("tests.support.http_fixtures",)

ASK = "/v1/agents/house/requests"
NOBODY = 65534  # the uid without rights on every Linux
HEAD = b"POST /v1/agents/house/requests HTTP/1.1\r\nHost: x\r\n"
TCP = ("127.0.0.1", 0)


# -- who goes away -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("id", [None, "q1"])
async def test_client_that_goes_away_ends_its_answer_and_the_desk_hears_that_it_went(
    desk: Desk, path: Path, streaming: bool, id: str | None
) -> None:
    """What becomes of the request is decided behind: it is cancelled where it had no id."""
    async with serving(desk, path):
        async with Line(path) as line:
            line.post({"input": "hi", "stream": streaming, **({"id": id} if id else {})})
            await desk.begun.wait()
            if streaming:
                assert desk.watching is not None
                desk.watching(0, "one")
                await line.reader.readuntil(b"one")
        async with asyncio.timeout(10):
            await desk.missed.wait()
        assert desk.left == [(id, True)]
        if streaming:
            assert desk.watching is not None
            desk.watching(3, "two")  # as long as the request runs, its pieces come here


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("error", [Busy("full"), ZeroDivisionError("secret 42")], ids=["refusal", "bug"])
async def test_answer_that_fails_after_its_client_left_is_in_the_log_if_it_is_a_bug(
    desk: Desk, path: Path, streaming: bool, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """And never as a task whose exception nobody took."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    desk.ending = error
    async with serving(desk, path):
        async with Line(path) as line:
            line.post({"input": "hi", "stream": streaming})
            await desk.begun.wait()
            if streaming:
                assert desk.watching is not None
                desk.watching(0, "one")
                await line.reader.readuntil(b"one")
        async with asyncio.timeout(10):
            await desk.missed.wait()
    gc.collect()
    loop.set_exception_handler(None)
    assert complaints == []
    assert ("secret 42" in caplog.text) == isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize("streaming", [False, True])
async def test_stop_ends_answers_and_nobody_went_away(desk: Desk, path: Path, streaming: bool) -> None:
    """The requests go on after the next start: a stop is no reason to cancel them."""
    async with serving(desk, path) as served, Line(path) as line:
        line.post({"input": "hi", "stream": streaming})
        await desk.begun.wait()
        if streaming:
            assert desk.watching is not None
            desk.watching(0, "one")
            await line.reader.readuntil(b"one")
        began = time.monotonic()
        await served.stop()
        assert time.monotonic() - began < 5
        assert desk.left == [(None, False)]
        assert not [task for task in asyncio.all_tasks() if "answer" in task.get_name()]
        await line.end()


async def test_stop_does_not_wait_for_a_reader_that_does_not_read(desk: Desk, path: Path) -> None:
    """Its connection is cut."""
    async with serving(desk, path) as served, Line(path) as line:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio reads ahead
        desk.says(reply("x" * 16_000_000))
        line.post({"input": "hi"})
        await desk.begun.wait()
        async with asyncio.timeout(5):
            await served.stop()


# -- what is too slow, too much or no HTTP -----------------------------------------------------------------------------


async def test_head_that_drips_ends_its_connection(desk: Desk, path: Path) -> None:
    """However steadily: the time is for the whole head, on a new connection and between two requests."""
    desk.says(reply())

    async def drip(line: Line) -> None:
        for byte in HEAD + b"X-Slow: " + b"x" * 1000:
            line.send(bytes([byte]))
            await asyncio.sleep(0.01)

    async with serving(desk, path, limits=Limits(head_s=0.2)):
        for used in (False, True):
            async with Line(path) as line:
                if used:
                    line.post({"input": "hi"})
                    await line.reader.readuntil(reply())
                dripping = asyncio.create_task(drip(line))
                began = time.monotonic()
                assert await line.end() == b""
                assert 0.15 < time.monotonic() - began < 5
                dripping.cancel()
    assert len(desk.asks) == 1


async def test_connection_that_says_nothing_is_closed_and_one_between_requests_later(desk: Desk, path: Path) -> None:
    """A client keeps its connections for the next request; whoever never asked holds none."""
    desk.says(reply())
    async with serving(desk, path, limits=Limits(head_s=0.1, idle_s=0.5)), Line(path) as used, Line(path) as silent:
        used.post({"input": "hi"})
        await used.reader.readuntil(reply())
        began = time.monotonic()
        assert await silent.end() == b""
        assert time.monotonic() - began < 0.4
        assert await used.end() == b""
        assert time.monotonic() - began > 0.4


async def test_body_that_does_not_come_is_told_and_its_connection_closed(desk: Desk, path: Path) -> None:
    """The head was in time."""
    async with serving(desk, path, limits=FAST), Line(path) as line:
        line.send(HEAD + b'Content-Length: 20\r\n\r\n{"input"')
        told = await line.end()
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b"did not come within 0.2 s" in told
    assert desk.asks == []


async def test_answer_may_take_longer_than_any_limit_on_what_is_sent(desk: Desk, path: Path) -> None:
    """The limits are for clients, not for models."""
    async with serving(desk, path, limits=FAST), unix_session(path) as client:
        asking = asyncio.create_task(client.post(ASK, json={"input": "hi"}))
        await desk.begun.wait()
        await asyncio.sleep(2 * FAST.idle_s)
        desk.says(reply())
        async with await asking as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n", "HTTPS"),
        (b"\x93\x00\x01\xa6status\r\n\r\n", "not HTTP"),
        (HEAD + b"X: " + b"y" * 9000 + b"\r\n\r\n", "8190"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk"),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde", "gzip"),
    ],
    ids=["TLS", "MessagePack", "a long header", "a bad chunk", "a body that is not what it says"],
)
async def test_what_is_no_http_is_told_so_and_fills_no_log(
    desk: Desk, path: Path, data: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Port scanners and mixed-up clients are not the daemon's problem."""
    async with serving(desk, path), Line(path) as line:
        line.send(data)
        told = await line.end()
    assert told.startswith(b"HTTP/1.")
    assert b" 400 Bad Request\r\n" in told
    assert b"Server: edged\r\n" in told
    body = json.loads(told.partition(b"\r\n\r\n")[2])
    assert body["error"]["code"] == "bad_request"
    assert said in body["error"]["message"]
    assert caplog.text == ""


async def test_client_with_too_many_requests_is_told_to_wait_and_may_still_cancel(desk: Desk, path: Path) -> None:
    """What is in flight is not disturbed."""
    desk.keeps(id="q1")
    async with serving(desk, path, limits=Limits(in_flight=2)), unix_session(path) as client:
        asking = [asyncio.create_task(client.post(ASK, json={"input": "hi"})) for _ in range(2)]
        await until(lambda: len(desk.asks) == 2)
        async with client.post(ASK, json={"input": "hi"}) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert (await response.json())["error"]["code"] == "busy"
        async with client.get("/v1/requests/q1") as looked, client.delete("/v1/requests/q1") as ended:
            assert (looked.status, ended.status) == (202, 200)
        desk.says(reply())
        for response in await asyncio.gather(*asking):
            assert response.status == 200
            response.release()
        async with client.post(ASK, json={"input": "hi"}) as response:
            assert response.status == 200
    assert len(desk.asks) == 3


async def test_client_with_too_many_connections_is_told_and_at_last_cut(desk: Desk, path: Path) -> None:
    """And may come again when it has closed some."""
    desk.says(reply())
    async with serving(desk, path, limits=Limits(connections=2)):
        lines = [Line(path) for _ in range(5)]
        for line in lines:
            await line.__aenter__()
        assert await lines[4].end() == b""
        lines[2].post({"input": "hi"})
        told = await lines[2].end()
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"Connection: close" in told
        lines[0].post({"input": "hi"})
        await lines[0].reader.readuntil(reply())
        for line in lines:
            await line.__aexit__()

        async def answered() -> bool:
            async with Line(path) as line:
                line.post({"input": "hi"})
                return (await line.reader.readline()).startswith(b"HTTP/1.1 200 ")

        async with asyncio.timeout(10):
            while not await answered():  # the server hears of closed connections a moment later
                pass


async def test_strangers_take_no_place_of_who_is_known(desk: Desk, path: Path, tmp_path: Path) -> None:
    """On TCP without a key they have so many connections and no more: each new one costs an old one of theirs. Clients
    of the Unix socket and those with a key are served all the while, on old connections and on new ones."""
    desk.says(reply())
    limits = Limits(strangers=4, head_s=60)
    async with serving(desk, path, TCP, api_keys_file=keys_file(tmp_path), limits=limits) as served:
        address = served.bound[-1]
        assert isinstance(address, tuple)
        async with unix_session(path) as on_socket, tcp_session(served, **{"X-Api-Key": KEY}) as with_key:
            for client in (on_socket, with_key):
                async with client.post(ASK, json={"input": "hi"}) as response:
                    assert response.status == 200
            first, *more = [
                await asyncio.open_connection(*address, local_addr=(f"127.0.0.{2 + n % 2}", 0)) for n in range(12)
            ]
            assert await asyncio.wait_for(first[0].read(), 10) == b""
            last, writer = more[-1]
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await asyncio.wait_for(last.readline(), 10)).startswith(b"HTTP/1.1 200 ")
            for client in (on_socket, with_key):
                async with client.post(ASK, json={"input": "hi"}) as response:
                    assert response.status == 200
            async with unix_session(path) as new, new.post(ASK, json={"input": "hi"}) as response:
                assert response.status == 200
            async with (
                tcp_session(served, **{"X-Api-Key": KEY}) as new,
                new.post(ASK, json={"input": "hi"}) as response,
            ):
                assert response.status == 200
            for _, writer in (first, *more):
                writer.close()


async def test_connections_of_a_key_are_counted_as_its_clients(desk: Desk, tmp_path: Path) -> None:
    """Whatever addresses they come from; what is too many is told so and ends."""
    desk.says(reply())
    limits = Limits(connections=2)
    async with serving(desk, TCP, api_keys_file=keys_file(tmp_path), limits=limits) as served:
        address = served.bound[-1]
        assert isinstance(address, tuple)
        told, kept = [], []
        for n in range(3):
            reader, writer = await asyncio.open_connection(*address, local_addr=(f"127.0.0.{2 + n}", 0))
            writer.write(f"GET /readyz HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY}\r\n\r\n".encode())
            told.append((await asyncio.wait_for(reader.readline(), 10)).split()[1])
            kept.append((reader, writer))
        assert told == [b"200", b"200", b"503"]
        await asyncio.wait_for(kept[2][0].read(), 10)  # it ends
        for _, writer in kept:
            writer.close()


async def test_request_leaves_a_line_in_the_log_at_debug_only(
    client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """A probe every few seconds must not fill the journal; whoever looks for something sees who asked what."""
    told: list[str] = []
    for level, lines in ((logging.INFO, 0), (logging.DEBUG, 1)):
        caplog.clear()
        caplog.set_level(level)
        async with client.get("/livez?key=secret") as response:
            assert response.status == 200
        told = [record.getMessage() for record in caplog.records if record.name != "asyncio"]
        assert len(told) == lines
    assert told[0].startswith(f"unix:{os.getuid()} GET /livez 200 ")


# -- what is served, and errors ----------------------------------------------------------------------------------------


async def test_health_says_alive_ready_and_figures(client: aiohttp.ClientSession, desk: Desk) -> None:
    """A daemon that starts or stops is alive and not ready."""
    parts = {"store": "it is being recovered", "mqtt": "the broker does not answer"}
    for unready, status, said in (({}, 200, "ok\n"), (parts, 503, "".join(f"{k}: {v}\n" for k, v in parts.items()))):
        desk.unready = unready
        async with client.get("/readyz") as response:
            assert (response.status, await response.text()) == (status, said)
            assert response.headers.get("Retry-After") == ("1" if unready else None)
        async with client.get("/livez") as response:
            assert response.status == 200
    desk.unready, desk.missing = {}, {"mqtt": "the broker does not answer"}
    async with client.get("/readyz") as response:  # requests are taken, by other ways
        assert (response.status, await response.text()) == (200, "ok\nmqtt: the broker does not answer\n")
    async with client.get("/metrics") as response:
        assert (response.headers["Content-Type"], await response.read()) == (METRICS, b"edged_up 1\n")


@pytest.mark.parametrize(
    ("method", "where", "status", "said"),
    [
        ("GET", "/nothing", 404, "POST /v1/agents/{agent}/requests"),
        ("POST", "/v1/agents/house/request", 404, "GET /v1/requests/{id}"),
        ("OPTIONS", "/nothing", 404, "GET /livez"),
        ("GET", ASK, 405, "it takes OPTIONS, POST"),
        ("PUT", "/v1/requests/q1", 405, "it takes DELETE, GET, HEAD, OPTIONS"),
    ],
)
async def test_what_is_not_there_names_what_is(
    client: aiohttp.ClientSession, method: str, where: str, status: int, said: str
) -> None:
    """In JSON, as everything else."""
    async with client.request(method, where) as response:
        assert response.status == status
        assert said in (await response.json())["error"]["message"]
        assert ("Allow" in response.headers) == (status == 405)


async def test_options_tell_the_methods_of_a_path(client: aiohttp.ClientSession) -> None:
    """And allow no other origin anything."""
    async with client.options(ASK) as response:
        assert (response.status, response.headers["Allow"]) == (204, "OPTIONS, POST")
    async with client.options(ASK, headers={"Origin": "http://evil.example"}) as response:
        assert response.status == 403
        assert not [name for name in response.headers if name.startswith("Access-Control")]


@pytest.fixture
def fails_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Gives the surface of the OpenAI API routes that fail, and one elsewhere."""

    def give(error: Exception) -> None:
        async def fail(request: web.Request) -> web.Response:
            assert caller(request).agents
            assert not gone(request).is_set()
            assert await request.json() == {"model": "house"}
            raise error

        routes = [web.post("/v1/chat/completions", fail), web.post("/other", fail)]
        monkeypatch.setattr(OpenAI, "routes", lambda _: routes)

    return give


@pytest.mark.parametrize(
    ("error", "status", "kind", "again"),
    [
        (UnknownAgent("no agent"), 404, "not_found_error", "false"),
        (NotFound("no model"), 404, "not_found_error", "false"),
        (Busy("full", retry_after_s=3), 503, "rate_limit_error", "true"),
        (OverBudget("spent", retry_after_s=3), 429, "rate_limit_error", "true"),
        (NoMemory("full", retry_after_s=3), 503, "server_error", "true"),
        (NoLink("away", retry_after_s=3), 503, "server_error", "true"),
        (EdgedError("so it is"), 500, "server_error", "false"),
    ],
)
async def test_errors_of_the_openai_api_have_its_shape_and_others_that_of_a_reply(
    desk: Desk,
    path: Path,
    fails_with: Callable[[Exception], None],
    error: EdgedError,
    status: int,
    kind: str,
    again: str,
) -> None:
    """Whoever raises them."""
    fails_with(error)
    async with serving(desk, path), unix_session(path) as client:
        async with client.post("/v1/chat/completions", json={"model": "house"}) as response:
            assert (response.status, response.headers["x-should-retry"]) == (status, again)
            assert response.headers.get("Retry-After") == ("3" if status in (429, 503) else None)
            param, code = ("model", "model_not_found") if error.code == "unknown_agent" else (None, error.code)
            told = {"message": error.message, "type": kind, "param": param, "code": code}
            assert await response.json() == {"error": told}
        async with client.post("/other", json={"model": "house"}) as response:
            assert response.status == status
            assert (await response.json())["error"]["code"] == error.code
        async with client.get("/v1/chat/completions") as response:
            assert (response.status, (await response.json())["error"]["type"]) == (405, "invalid_request_error")
        async with client.get("/v1/models") as response:
            assert (response.status, (await response.json())["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize("bug", [ValueError("secret 42"), ConnectionResetError("secret 42"), TimeoutError("secret 42")])
async def test_bug_is_an_internal_error_whose_traceback_only_the_log_has(
    desk: Desk,
    path: Path,
    fails_with: Callable[[Exception], None],
    bug: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also one that looks as if the client had gone."""
    desk.says(bug)
    fails_with(bug)
    async with serving(desk, path), unix_session(path) as client:
        for where in (ASK, "/v1/chat/completions"):
            body = {"input": "hi"} if where == ASK else {"model": "house"}
            async with client.post(where, json=body) as response:
                assert response.status == 500
                text = await response.text()
                assert json.loads(text)["error"]["code"] == "internal"
                assert "secret" not in text
    assert caplog.text.count("Traceback") == 2
    assert caplog.text.count("secret 42") >= 2


# -- who is let in -----------------------------------------------------------------------------------------------------


async def test_tcp_needs_a_key_for_everything_but_signs_of_life(desk: Desk, tmp_path: Path) -> None:
    """Its name is who the client is; without one nobody learns what there is."""
    desk.says(reply())
    async with serving(desk, TCP, api_keys_file=keys_file(tmp_path)) as served:
        for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"X-Api-Key": "x"}, {"Authorization": KEY}):
            async with tcp_session(served, **headers) as client:
                for method, where in (("POST", ASK), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/nothing")):
                    async with client.request(method, where) as response:
                        assert response.status == 401
                        assert response.headers["WWW-Authenticate"] == 'Bearer realm="edged"'
                        assert (await response.json())["error"]["code"] == "forbidden"
                async with client.post("/v1/chat/completions") as response:
                    assert (response.status, (await response.json())["error"]["type"]) == (401, "authentication_error")
                async with client.get("/livez") as response:
                    assert response.status == 200
        assert desk.asks == []
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-Api-Key": KEY}):
            async with tcp_session(served, **headers) as client:
                async with client.post(ASK, json={"input": "hi"}) as response:
                    assert response.status == 200
                async with client.get("/metrics") as response:
                    assert response.status == 200
    assert [(ask.caller.client, ask.caller.agents) for ask in desk.asks] == [("key:panel", frozenset({"house"}))] * 2


async def test_unauthorized_body_is_not_read(desk: Desk, tmp_path: Path) -> None:
    """Strangers cost nothing: the answer comes before the body, and the connection ends."""
    async with serving(desk, TCP, api_keys_file=keys_file(tmp_path), limits=FAST) as served:
        address = served.bound[0]
        assert isinstance(address, tuple)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(HEAD.replace(b"Host: x", b"Host: localhost") + b"Content-Length: 100000000\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
        writer.close()
        await writer.wait_closed()


STRANGER = (
    strangers.CONNECT
    + """
for path in ("/livez", "/metrics"):
    connection.sendall(f"GET {path} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
    print(connection.recv(65536).split()[1].decode())
"""
)


@pytest.mark.parametrize(("mode", "said"), [(0o660, "permission denied\n"), (0o666, "200\n403\n")])
async def test_stranger_may_not_use_the_socket(desk: Desk, path: Path, mode: int, said: str) -> None:
    """By the mode of the socket where that keeps it out, else by the kernel's word about who it is."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    for folder in path.parents[:-2]:  # pytest keeps others out of its folders
        folder.chmod(0o755)
    async with serving(desk, path, mode=mode):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STRANGER, str(path), str(NOBODY), stdout=subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(child.communicate(), 10)
        assert out.decode() == said


# -- listeners ---------------------------------------------------------------------------------------------------------


async def test_several_listeners_serve_the_same_and_are_gone_after_a_stop(desk: Desk, tmp_path: Path) -> None:
    """Two sockets and a port; the sockets have their mode."""
    paths = [tmp_path / "a.sock", tmp_path / "run" / "b.sock"]
    desk.says(reply())
    served = transport(desk, *paths, TCP, api_keys_file=keys_file(tmp_path))
    for _ in range(2):  # it may be started again
        await served.start(backend(desk))
        for path in paths:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            async with unix_session(path) as client, client.post(ASK, json={"input": "hi"}) as response:
                assert response.status == 200
        async with tcp_session(served, **{"X-Api-Key": KEY}) as client, client.get("/readyz") as response:
            assert response.status == 200
        await served.stop()
        assert not [path for path in paths if path.exists()]
    await served.stop()


async def test_socket_of_a_dead_process_is_replaced_and_a_living_one_is_not(desk: Desk, path: Path) -> None:
    """A listener that cannot be had takes those before it down again."""
    listening(path).close()
    assert path.exists()
    async with serving(desk, path), unix_session(path) as client:
        other = path.with_name("other.sock")
        with pytest.raises(ConfigError, match="listening here already"):
            await transport(desk, other, path).start(backend(desk))
        assert not other.exists()
        async with client.get("/livez") as response:
            assert response.status == 200


async def test_port_that_is_taken_is_a_configuration_error(desk: Desk, tmp_path: Path) -> None:
    """It names the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: cannot be listened on: .*in use"):
            await transport(desk, ("127.0.0.1", port), api_keys_file=keys_file(tmp_path)).start(backend(desk))


async def test_port_without_keys_is_refused(desk: Desk, path: Path) -> None:
    """It would be open to the network; nothing is left behind."""
    with pytest.raises(ConfigError, match="api_keys_file"):
        await transport(desk, path, TCP).start(backend(desk))
    assert not path.exists()


async def test_sockets_that_are_handed_over_are_used_and_left_there(desk: Desk, path: Path, tmp_path: Path) -> None:
    """A connection from before the start waits and is answered; after the stop the next daemon finds the socket."""
    desk.says(reply())
    with listening(path) as kept, socket.create_server(("127.0.0.1", 0)) as port:
        host_port: tuple[str, int] = port.getsockname()
        path.chmod(0o600)
        given = {path: [kept], host_port: [port]}
        async with Line(path) as early:
            early.post({"input": "hi"})
            keys = keys_file(tmp_path)
            async with serving(desk, path, host_port, inherited=given, api_keys_file=keys) as served:
                assert (await early.reader.readline()).startswith(b"HTTP/1.1 200 ")
                async with tcp_session(served, **{"X-Api-Key": KEY}) as client, client.get("/readyz") as response:
                    assert response.status == 200
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.exists()
        async with (
            serving(desk, path, inherited={path: [kept]}),
            unix_session(path) as client,
            client.get("/livez") as response,
        ):
            assert response.status == 200


async def test_transport_that_was_stopped_is_forgotten(path: Path) -> None:
    """A reload makes a new daemon in the same process: what nobody needs any more must not stay for good."""
    desk = Desk()
    async with serving(desk, path) as served, unix_session(path) as session:
        async with session.get("/metrics") as answer:
            assert answer.status == 200
        left: list[weakref.ref[Any]] = [weakref.ref(desk), weakref.ref(served)]
    del desk, served, answer
    gc.collect()
    assert [ref() for ref in left] == [None, None]
