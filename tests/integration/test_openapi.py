"""/openapi.json: what a caller may use, as a document that other programs make their tools of; and those tools."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support import clients
from tests.support.broker import free_port
from tests.support.daemon import Daemon, entry

KEY, GUEST = "sk-panel-0123456789abcdef", "sk-guest-0123456789abcdef"
SCRIPT = entry("open the north valve", {"name": "set_valve", "arguments": {"valve": "north", "position": "open"}})
NORTH = {"valve": "north", "position": "open"}
pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon that all tests share


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Of a daemon with a client that may use everything and one that may read a tank."""
    folder, port = tmp_path_factory.mktemp("openapi"), free_port()
    (folder / "keys").write_text(f"panel:{KEY}\nguest:{GUEST}\n")
    config = (
        f'[http]\nlisten = ["127.0.0.1:{port}"]\napi_keys_file = "{folder}/keys"\n'
        '[roles.all]\nagents = ["*"]\ntools = ["*"]\n[roles.reader]\ntools = ["tank_level"]\n'
        '[access]\napi_key = { panel = "all", guest = "reader" }\n'
    )
    async with Daemon(folder, config=config, script=SCRIPT):
        yield f"http://127.0.0.1:{port}"


async def asked(
    address: str, path: str, body: Any = None, key: str = KEY, method: str = "", **headers: str
) -> tuple[int, Any]:
    """(status, document)."""
    headers |= {"Authorization": f"Bearer {key}"}
    method = method or ("GET" if body is None else "POST")
    async with aiohttp.ClientSession() as session:
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers |= {"Content-Type": "application/json"} if body is not None else {}
        async with session.request(method, address + path, data=sent, headers=headers) as response:
            return response.status, json.loads(await response.read())


def references(value: Any) -> set[str]:
    """All that a document refers to."""
    if isinstance(value, list):
        return {one for each in value for one in references(each)}
    if not isinstance(value, dict):
        return set()
    here = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
    return here | {one for each in value.values() for one in references(each)}


async def test_document_has_an_operation_for_each_agent_and_each_tool(address: str) -> None:
    """Under its name, with the schema of its arguments; and everything that it refers to is there."""
    status, told = await asked(address, "/openapi.json")
    assert (status, told["openapi"]) == (200, "3.1.0")
    operations = {path: operation for path, each in told["paths"].items() for operation in each.values()}
    names = [operation["operationId"] for operation in operations.values()]
    assert len(set(names)) == len(names)
    assert {"house", "set_valve", "tank_level"} <= set(names)
    asking = operations["/v1/agents/house/requests"]["requestBody"]["content"]["application/json"]["schema"]
    assert asking["required"] == ["input"]
    assert asking["properties"]["input"]["type"] == "string"
    valve = operations["/v1/tools/set_valve"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(valve["properties"]) == {"valve", "position"}
    known = {f"#/components/schemas/{name}" for name in told["components"]["schemas"]}
    assert references(told) <= known
    assert "$defs" not in json.dumps(told)


async def test_document_tells_what_its_reader_may_use(address: str) -> None:
    """And nothing to one without a key."""
    _, told = await asked(address, "/openapi.json", key=GUEST)
    assert list(told["paths"]) == ["/v1/tools/tank_level"]
    status, refused = await asked(address, "/openapi.json", key="sk-nobody-0123456789abc")
    assert (status, refused["error"]["code"]) == (401, "forbidden")


async def test_operations_do_what_they_are_called(address: str) -> None:
    """A tool gives its result, an agent its reply."""
    assert await asked(address, "/v1/tools/set_valve", NORTH) == (200, {"changes": 1, "rows": []})
    status, rows = await asked(address, "/v1/tools/tank_level", {"tank": "north"}, key=GUEST)
    assert (status, rows["truncated"]) == (200, False)
    status, reply = await asked(address, "/v1/agents/house/requests", {"input": "open the north valve"})
    assert (status, reply["status"], reply["tool_calls"][0]["name"]) == (200, "done", "set_valve")


async def test_write_under_the_same_key_happens_once(address: str) -> None:
    """As calls by hand over the Unix socket."""
    for _ in range(2):
        status, result = await asked(address, "/v1/tools/set_valve", NORTH, **{"Idempotency-Key": "once"})
        assert (status, result["changes"]) == (200, 1)
    other = {"valve": "south", "position": "open"}
    status, refused = await asked(address, "/v1/tools/set_valve", other, **{"Idempotency-Key": "once"})
    assert (status, refused["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("path", "body", "key", "status", "words"),
    [
        ("/v1/tools/nothing", {}, KEY, 404, "no tool 'nothing'"),
        ("/v1/tools/set_valve", NORTH, GUEST, 403, "set_valve"),
        ("/v1/tools/nothing", {}, GUEST, 403, "nothing"),
        ("/v1/tools/set_valve", {"valve": "roof", "position": "open"}, KEY, 400, "roof"),
        ("/v1/tools/set_valve", {**NORTH, "x": 1}, KEY, 400, "x"),
        ("/v1/tools/set_valve", [1], KEY, 400, "a tool's arguments"),
        ("/v1/tools/set_valve", b"{", KEY, 400, "not valid"),
        ("/v1/tools/set_valve", b'{"valve": ' + b"[" * 100 + b"]" * 100 + b"}", KEY, 413, "nested"),
        ("/v1/tools/set_valve/more", {}, KEY, 404, ""),
        ("/v1/tools", {}, KEY, 404, ""),
        ("/openapi.json", {}, KEY, 405, ""),
    ],
)
async def test_wrong_call_is_refused_by_name(
    address: str, path: str, body: Any, key: str, status: int, words: str
) -> None:
    """In the shape of edged's own errors; nothing is done."""
    got, refused = await asked(address, path, body, key)
    assert (got, refused["status"]) == (status, "refused")
    assert words in refused["error"]["message"]


@pytest.mark.slow
async def test_validator_accepts_the_document_and_schemathesis_finds_no_500(address: str) -> None:
    """What the makers of OpenAPI's tools say of it."""
    packages = ("openapi-spec-validator==0.9.0", "schemathesis==4.32.5")
    python = await clients.install("openapi", *packages)
    tried = await clients.run(python, "openapi_client.py", {"EDGED_URL": address, "EDGED_KEY": KEY})
    clients.record("schemathesis", packages[1].partition("==")[2], tried)
    assert set(tried.values()) == {clients.OK}
