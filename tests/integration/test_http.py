"""Requests over HTTP, their replies and streams: the transport on a real socket with a scripted desk behind it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import msgpack
import pytest
from yarl import URL

from edged import errors
from edged.errors import Busy, EdgedError
from edged.transport.http.core import stream
from edged.transport.http.core.errors import STATUS_OF
from edged.wire import MAX_REQUEST_BYTES
from tests.support.http_api import FAST, Desk, Line, reply, serving

pytest_plugins = ("tests.support.http_fixtures",)

ASK = "/v1/agents/house/requests"
ME = f"unix:{os.getuid()}"
ERRORS: dict[str, EdgedError] = {
    kind.code: kind("so it is", retry_after_s=7.0)
    for kind in (
        *(errors.BadRequest, errors.TooLarge, errors.Forbidden, errors.UnknownAgent, errors.Busy, errors.NoMemory),
        *(errors.ModelUnavailable, errors.ToolFailed, errors.NoLink, errors.OverBudget, errors.Expired),
        *(errors.Cancelled, errors.Quarantined, errors.Internal),
    )
}


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_ask_answers_with_the_bytes_of_the_reply(client: aiohttp.ClientSession, desk: Desk) -> None:
    """As they are stored; the caller is who the kernel says, whatever key an SDK sends along."""
    desk.says(reply("It is 41 percent full."))
    body = {"input": "how full is it?", "id": "q1", "conversation": "c"}
    async with client.post(ASK, json=body, headers={"Authorization": "Bearer unused"}) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        assert await response.read() == reply("It is 41 percent full.")
        assert response.headers["Server"] == "edged"
    (ask,) = desk.asks
    assert (ask.caller.client, ask.caller.transport, ask.caller.agents) == (ME, "http", frozenset({"house"}))
    assert (ask.request.agent, ask.request.id, ask.request.conversation) == ("house", "q1", "c")
    assert ask.request.messages[-1].content == "how full is it?"


@pytest.mark.parametrize(
    ("body", "content_type", "answered"),
    [
        (b'{"input": "hi"}', "application/json; charset=utf-8", "application/json"),
        (msgpack.packb({"input": "hi"}), "application/msgpack", "application/msgpack"),
        (msgpack.packb({"input": "hi"}), "application/x-msgpack", "application/msgpack"),
        (b"hi", "text/plain", "application/json"),
        (b'{"input": "hi"}', "application/x-www-form-urlencoded", "application/json"),
        (b'{"input": "hi"}', None, "application/json"),
        (b"hi", None, "application/json"),
        (msgpack.packb({"input": "hi"}), None, "application/msgpack"),
    ],
)
async def test_ask_takes_every_format_and_answers_in_it(
    client: aiohttp.ClientSession, desk: Desk, body: bytes, content_type: str | None, answered: str
) -> None:
    """A bare text is answered in JSON; what `curl -d` says of JSON is no obstacle."""
    desk.says(reply())
    headers = {"Content-Type": content_type} if content_type else {}
    skip = () if content_type else ("Content-Type",)
    async with client.post(ASK, data=body, headers=headers, skip_auto_headers=skip) as response:
        data = await response.read()
        assert (response.status, response.content_type) == (200, answered)
    told = msgpack.unpackb(data) if answered.endswith("msgpack") else json.loads(data)
    assert told == json.loads(reply())
    assert desk.asks[0].request.messages[-1].content == "hi"


@pytest.mark.parametrize("code", STATUS_OF)
async def test_reply_with_an_error_has_its_status(client: aiohttp.ClientSession, desk: Desk, code: str) -> None:
    """The body is the reply all the same, and says when to come again where the status does."""
    desk.says(reply(error=ERRORS[code]))
    async with client.post(ASK, json={"input": "hi"}) as response:
        assert response.status == STATUS_OF[code]
        assert response.headers.get("Retry-After") == ("7" if response.status in (429, 503) else None)
        assert await response.read() == reply(error=ERRORS[code])


@pytest.mark.parametrize("code", STATUS_OF)
async def test_refusal_has_its_status_and_the_body_of_a_reply(
    client: aiohttp.ClientSession, desk: Desk, code: str
) -> None:
    """In the format of the request, with its id."""
    desk.says(ERRORS[code])
    body = msgpack.packb({"input": "hi", "id": "q1"})
    async with client.post(ASK, data=body, headers={"Content-Type": "application/msgpack"}) as response:
        assert (response.status, response.content_type) == (STATUS_OF[code], "application/msgpack")
        assert response.headers.get("Retry-After") == ("7" if response.status in (429, 503) else None)
        told = msgpack.unpackb(await response.read())
    assert (told["id"], told["status"], told["error"]["code"]) == ("q1", "refused", code)
    assert told["error"]["message"] == "so it is"


@pytest.mark.parametrize(
    ("body", "content_type", "status", "said"),
    [
        (b"<input/>", "application/xml", 415, "application/json, application/msgpack, text/plain"),
        (b"input=hi", "application/x-www-form-urlencoded", 415, "application/json"),
        (b'{"input": ', "application/json", 400, "not valid json"),
        (b'{"input": "x", "colour": 1}', "application/json", 400, "colour"),
        (b'{"input": "x", "agent": "barn"}', "application/json", 400, "barn"),
        (b'{"input": "x", "reply_to": "t"}', "application/json", 400, "reply_to"),
        (b'{"input": "x", "stop": ' + b"[" * 40 + b"]" * 40 + b"}", "application/json", 413, "deeper"),
        (b"", "application/json", 400, "json"),
        (b"\xc1", "application/msgpack", 400, "msgpack"),
        (b"\xff", "text/plain", 400, "UTF-8"),
    ],
)
async def test_wrong_body_is_refused_with_what_is_allowed(
    client: aiohttp.ClientSession, desk: Desk, body: bytes, content_type: str, status: int, said: str
) -> None:
    """And nothing is asked; the connection goes on."""
    for _ in range(2):
        async with client.post(ASK, data=body, headers={"Content-Type": content_type}) as response:
            data = await response.read()
            told = msgpack.unpackb(data) if "msgpack" in response.content_type else json.loads(data)
            assert response.status == status
            assert told["status"] == "refused"
            assert said in told["error"]["message"]
            assert ("msgpack" in response.content_type) == ("msgpack" in content_type)
    assert desk.asks == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_may_have_256_kibibytes_and_no_byte_more(
    client: aiohttp.ClientSession, desk: Desk, chunked: bool
) -> None:
    """Whether the head says how long it is or not."""
    desk.says(reply())

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for begin in range(0, size, 2**15):
            yield b"x" * min(2**15, size - begin)

    for extra, status in ((0, 200), (1, 413), (2**20, 413)):
        size = MAX_REQUEST_BYTES + extra
        data: Any = pieces(size) if chunked else io.BytesIO(b"x" * size)
        async with client.post(ASK, data=data, headers={"Content-Type": "text/plain"}) as response:
            assert response.status == status
            assert response.status == 200 or (await response.json())["error"]["code"] == "too_large"
    assert len(desk.asks) == 1


@pytest.mark.parametrize(
    ("header", "named", "id"),
    [("k-1", {}, "k-1"), ('"k-1"', {}, "k-1"), ("k-1", {"id": "mine"}, "mine"), ('"', {}, '"')],
)
async def test_idempotency_key_is_the_id_where_the_body_names_none(
    client: aiohttp.ClientSession, desk: Desk, header: str, named: dict[str, str], id: str
) -> None:
    """Quoted, as its draft says, or bare, as most clients write it."""
    desk.says(reply())
    async with client.post(ASK, json={"input": "hi", **named}, headers={"Idempotency-Key": header}) as response:
        assert response.status == 200
    assert desk.asks[0].request.id == id


@pytest.mark.parametrize("header", ["", '""', "x" * 129, "schlüssel"])
async def test_idempotency_key_that_is_none_is_refused(client: aiohttp.ClientSession, header: str) -> None:
    """A key that was dropped in silence would run things twice."""
    async with client.post(ASK, json={"input": "hi"}, headers={"Idempotency-Key": header}) as response:
        assert response.status == 400
        assert "Idempotency-Key" in (await response.json())["error"]["message"]


async def test_curl_asks_as_the_manual_shows(desk: Desk, path: Path) -> None:
    """Without a header, and with a piece of text."""
    desk.says(reply("It is 41 percent full."))
    async with serving(desk, path):
        for extra in ([], ["-H", "Content-Type: text/plain"]):
            said = "how full?" if extra else '{"input": "how full?"}'
            curl = await asyncio.create_subprocess_exec(
                *("curl", "-sS", "--fail", "--unix-socket", str(path), "-d", said, *extra, f"http://edged{ASK}"),
                stdout=subprocess.PIPE,
            )
            out, _ = await asyncio.wait_for(curl.communicate(), 10)
            assert (curl.returncode, out) == (0, reply("It is 41 percent full."))
    assert [ask.request.messages[-1].content for ask in desk.asks] == ["how full?"] * 2


# -- requests nobody waits for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", ["respond-async", "handling=lenient, Respond-Async; x=1"])
async def test_respond_async_answers_at_once_with_the_place_of_the_reply(
    client: aiohttp.ClientSession, desk: Desk, prefer: str
) -> None:
    """Which is there when there is one."""
    async with client.post(ASK, json={"input": "hi", "id": "q1"}, headers={"Prefer": prefer}) as response:
        assert response.status == 202
        assert response.headers["Preference-Applied"] == "respond-async"
        assert await response.json() == {"id": "q1", "rid": "r1", "status": "queued", "position": 2, "eta_s": 4.5}
        place = response.headers["Location"]
    async with client.get(place) as response:
        assert (response.status, (await response.json())["status"]) == (202, "queued")
    desk.keeps(id="q1", answer=reply(id="q1"))
    for where in (place, "/v1/requests/q1"):
        async with client.get(where) as response:
            assert (response.status, await response.read()) == (200, reply(id="q1"))
            assert response.headers["Cache-Control"] == "no-store"


async def test_respond_async_of_a_known_request_answers_with_its_reply(
    client: aiohttp.ClientSession, desk: Desk
) -> None:
    """There is nothing to wait for."""
    desk.keeps(id="q1", answer=reply(error=Busy("later", retry_after_s=3)))
    async with client.post(ASK, json={"input": "hi", "id": "q1"}, headers={"Prefer": "respond-async"}) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "3")
        assert "Preference-Applied" not in response.headers
        assert "Location" not in response.headers


async def test_respond_async_tells_a_refusal(client: aiohttp.ClientSession, desk: Desk) -> None:
    """Nothing was taken in, so there is no place to look at."""
    desk.says(Busy("the queue is full", retry_after_s=2))
    async with client.post(ASK, json={"input": "hi"}, headers={"Prefer": "respond-async"}) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "2")
        assert "Location" not in response.headers


@pytest.mark.parametrize("id", ["q1", "a/b", "ä {1} 50% ?#&", "r1"])
async def test_get_and_delete_take_any_id(client: aiohttp.ClientSession, desk: Desk, id: str) -> None:
    """Percent-encoded, as `requests` and others do it."""
    where = URL(f"/v1/requests/{quote(id, safe='')}", encoded=True)
    desk.keeps(id=id)
    async with client.get(where) as response:
        assert (response.status, (await response.json())["id"]) == (202, id)
    async with client.delete(where) as response:
        assert (response.status, (await response.json())["id"]) == (200, id)


async def test_get_answers_with_the_status_of_the_error_and_in_the_format_that_is_wanted(
    client: aiohttp.ClientSession, desk: Desk
) -> None:
    """As the request itself would have been answered."""
    answer = reply(error=errors.Expired("the deadline passed"))
    desk.keeps(answer=answer)
    async with client.get("/v1/requests/r1", headers={"Accept": "application/msgpack"}) as response:
        assert (response.status, response.content_type) == (504, "application/msgpack")
        assert msgpack.unpackb(await response.read()) == json.loads(answer)
    async with client.delete("/v1/requests/r1") as response:  # it keeps the outcome it has
        assert (response.status, await response.read()) == (200, answer)


async def test_unknown_request_is_not_found(client: aiohttp.ClientSession) -> None:
    """With the body of a refusal."""
    for method in ("GET", "DELETE"):
        async with client.request(method, "/v1/requests/nothing") as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "bad_request"


# -- streams -----------------------------------------------------------------------------------------------------------


async def events(response: aiohttp.ClientResponse) -> list[tuple[str, Any]]:
    """All events of a stream, as a reader by the book finds them."""
    found: list[tuple[str, Any]] = []
    for block in (await response.text()).split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            found.append((fields["event"], json.loads(fields["data"])))
    return found


@pytest.mark.parametrize(
    ("body", "headers"),
    [({"stream": True}, {}), ({}, {"Accept": "text/event-stream"})],
    ids=["in the body", "in the head"],
)
async def test_stream_gives_pieces_and_then_the_reply(
    client: aiohttp.ClientSession, desk: Desk, body: dict[str, Any], headers: dict[str, str]
) -> None:
    """Each with its offset; the reply is the whole of it."""
    posting = asyncio.create_task(client.post(ASK, json={"input": "hi", **body}, headers=headers))
    await desk.begun.wait()
    assert desk.asks[0].request.stream
    assert desk.watching is not None
    desk.watching(0, "one\n\n")
    async with await posting as response:  # the head comes with the first piece
        assert (response.status, response.content_type) == (200, "text/event-stream")
        desk.watching(5, "zwölf")
        desk.says(reply("one\n\nzwölf", error=None))
        assert await events(response) == [
            ("delta", {"offset": 0, "text": "one\n\n"}),
            ("delta", {"offset": 5, "text": "zwölf"}),
            ("reply", json.loads(reply("one\n\nzwölf"))),
        ]


async def test_client_that_takes_either_gets_what_its_body_says(client: aiohttp.ClientSession, desk: Desk) -> None:
    """Many send both types, and `*/*` is the default of most."""
    desk.says(reply())
    async with client.post(
        ASK, json={"input": "hi"}, headers={"Accept": "application/json, text/event-stream"}
    ) as response:
        assert response.content_type == "application/json"


async def test_stream_that_is_refused_is_an_error_of_http(client: aiohttp.ClientSession, desk: Desk) -> None:
    """Nothing has begun."""
    desk.says(Busy("the queue is full", retry_after_s=2))
    async with client.post(ASK, json={"input": "hi", "stream": True}) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "2")
        assert (await response.json())["error"]["message"] == "the queue is full"


async def test_stream_and_respond_async_exclude_each_other(client: aiohttp.ClientSession, desk: Desk) -> None:
    """Nobody would be there for the pieces."""
    headers = {"Prefer": "respond-async"}
    async with client.post(ASK, json={"input": "hi", "stream": True}, headers=headers) as response:
        assert response.status == 400
        assert "respond-async" in (await response.json())["error"]["message"]
    assert desk.asks == []


@pytest.mark.parametrize(
    ("ending", "code"), [(Busy("too late"), "busy"), (ValueError("a bug"), "internal")], ids=["refusal", "bug"]
)
async def test_stream_that_has_begun_tells_its_error_as_the_reply(
    client: aiohttp.ClientSession, desk: Desk, ending: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The status is sent; the outcome must come all the same, and a bug's traceback is the log's."""
    posting = asyncio.create_task(client.post(ASK, json={"input": "hi", "id": "q1", "stream": True}))
    await desk.begun.wait()
    assert desk.watching is not None
    desk.watching(0, "one")
    async with await posting as response:
        desk.says(ending)
        name, told = (await events(response))[-1]
    assert (name, told["id"], told["status"], told["error"]["code"]) == ("reply", "q1", "refused", code)
    assert ("a bug" in caplog.text) == (code == "internal")


async def test_silent_stream_begins_and_shows_signs_of_life(
    desk: Desk, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies end a connection on which nothing comes; readers skip what it is."""
    monkeypatch.setattr(stream, "START_S", 0.02)
    async with serving(desk, path, limits=FAST), Line(path) as line:
        line.post({"input": "hi", "stream": True})
        async with asyncio.timeout(10):
            for _ in range(4):
                await line.reader.readuntil(stream.HEARTBEAT)
        desk.says(reply())
        async with asyncio.timeout(10):
            rest = await line.reader.readuntil(b"0\r\n\r\n")
        assert b"event: reply\ndata: " + reply() in rest


async def test_slow_reader_loses_pieces_and_gets_its_reply(desk: Desk, path: Path) -> None:
    """Sixteen megabytes for somebody who does not read: most are dropped, and what comes has right offsets."""
    size, pieces = 16_000, 1000
    async with serving(desk, path), Line(path) as line:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio reads ahead
        line.post({"input": "hi", "stream": True})
        await desk.begun.wait()
        assert desk.watching is not None
        for number in range(pieces):
            desk.watching(size * number, "x" * size)
            await asyncio.sleep(0)
        desk.says(reply("x" * size * pieces))
        line.writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            told = await line.reader.readuntil(b"\r\n0\r\n\r\n")
    assert reply("x" * size * pieces) in told.replace(b"\r\n", b"")
    assert 0 < told.count(b"event: delta") < pieces // 2
    assert told.count(b"event: delta") == told.count(b"event: ") - 1
