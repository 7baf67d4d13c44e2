"""edged as an MCP server: raw HTTP of both eras, the bridge of `edged mcp`, secret paths, agents that need longer."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edged.transport.http.mcp import methods, offered
from tests.support.daemon import ROOT, SCRIPT, Daemon, entry

MODERN = "2026-07-28"
NEWEST = "2025-11-25"
PREFIX = "io.modelcontextprotocol/"
KEYS = "panel:0123456789abcdef\nguest:fedcba9876543210\n"
ROLES = """
[roles.all]
agents = ["*"]
tools = ["*"]
manage = true
[roles.reader]
tools = ["tank_level"]
[access]
default = "all"
api_key = { guest = "reader" }
"""


class Board:
    """A daemon, and what speaks MCP with it."""

    def __init__(self, daemon: Daemon, port: int) -> None:
        self.daemon, self.url = daemon, f"http://127.0.0.1:{port}/mcp"
        self.http = daemon.socket.with_name("http.sock")

    async def post(
        self, body: Any, *, key: str | None = "0123456789abcdef", path: str = "", **headers: str
    ) -> tuple[int, Any, Any]:
        """(status, document, headers) of a POST."""
        sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        sent |= {"Authorization": f"Bearer {key}"} if key else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body)
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{self.url}{path}", data=data, headers=sent) as response,
        ):
            text = await response.read()
            return response.status, json.loads(text) if text else None, response.headers

    async def legacy(self, method: str, params: Any = None, **more: Any) -> Any:
        """The answer to a legacy request."""
        status, answer, _ = await self.post(request(method, params), **more)
        assert status == 200
        return answer

    async def modern(self, method: str, params: Any = None, **more: str) -> tuple[int, Any]:
        """(status, answer) of a modern request."""
        about = {f"{PREFIX}protocolVersion": MODERN, f"{PREFIX}clientCapabilities": {}}
        body = request(method, {**(params or {}), "_meta": about})
        named = {"Mcp_Name": str(params.get("name", params.get("uri")))} if params else {}
        headers = {"MCP_Protocol_Version": MODERN, "Mcp_Method": method, **named, **more}
        status, answer, _ = await self.post(body, **headers)
        return status, answer

    async def call(self, name: str, **arguments: Any) -> Any:
        """The result of a tool."""
        return (await self.legacy("tools/call", {"name": name, "arguments": arguments}))["result"]


def request(method: str, params: Any = None, id: Any = 7) -> dict[str, Any]:
    """A request."""
    return {"jsonrpc": "2.0", "id": id, "method": method, **({} if params is None else {"params": params})}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
async def board(tmp_path: Path) -> AsyncIterator[Board]:
    """A daemon with a key of a role that may read only."""
    (tmp_path / "keys").write_text(KEYS)
    port = free_port()
    config = f'[http]\nlisten = ["unix:http.sock", "127.0.0.1:{port}"]\napi_keys_file = "{tmp_path}/keys"\n{ROLES}'
    script = entry("slowly", text="one two three four five six seven eight", token_s=2.6) + SCRIPT
    async with Daemon(tmp_path, config=config, script=script) as daemon:
        yield Board(daemon, port)


async def test_both_eras_on_one_path(board: Board) -> None:
    """Each as it is written: beginnings, lists, calls, errors, statuses."""
    await legacy_era(board)
    await modern_era(board)
    await strangers(board)


async def legacy_era(board: Board) -> None:
    """initialize, notifications, lists, calls."""
    for version in ("2024-11-05", "2025-06-18", NEWEST, "1999-01-01"):
        asked = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        about = (await board.legacy("initialize", asked))["result"]
        assert about["protocolVersion"] == (version if version != "1999-01-01" else NEWEST)
        assert (about["serverInfo"]["name"], set(about["capabilities"])) == ("edged", {"tools", "resources"})
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert (await board.post(told, MCP_Protocol_Version=NEWEST))[:2] == (202, None)
    assert (await board.legacy("ping"))["result"] == {}
    tools = {tool["name"]: tool for tool in (await board.legacy("tools/list"))["result"]["tools"]}
    assert list(tools) == ["ask_house", "get_answer", "tank_level", "set_valve", "note"]
    assert tools["tank_level"]["inputSchema"] == {
        "type": "object",
        "properties": {"tank": {"type": "string", "enum": ["north", "south"]}},
        "required": ["tank"],
        "additionalProperties": False,
    }
    assert tools["tank_level"]["annotations"] == {"readOnlyHint": True}
    assert tools["set_valve"]["annotations"] == tools["ask_house"]["annotations"] == {"readOnlyHint": False}
    level = await board.call("tank_level", tank="south")
    assert level["structuredContent"] == {"rows": [{"level": 41.0}], "truncated": False}
    assert json.loads(level["content"][0]["text"]) == level["structuredContent"]
    wrong = await board.call("tank_level", tank="east")
    assert wrong["isError"] is True
    assert "'east' is not one of" in wrong["content"][0]["text"]
    unknown = await board.legacy("tools/call", {"name": "nope", "arguments": {}})
    assert unknown["error"]["code"] == -32602
    assert (unknown["id"], "unknown tool 'nope'" in unknown["error"]["message"]) == (7, True)
    assert (await board.legacy("prompts/list"))["error"]["code"] == -32601
    asked = await board.call("ask_house", text="open the north valve")
    assert asked["content"] == [{"type": "text", "text": "Valve north is now open."}]
    found = asked["structuredContent"]
    assert (found["answer"], found["state"]) == ("Valve north is now open.", "done")
    assert board.daemon.rows("valve_commands") == [("north", "open")]
    assert (await board.call("get_answer", id=found["id"]))["structuredContent"] == found
    assert (await board.call("get_answer", id="nobody's"))["isError"] is True
    assert (await board.call("ask_house"))["isError"] is True
    assert (await board.legacy("resources/list"))["result"]["resources"][0]["uri"] == "edged://status"
    status = (await board.legacy("resources/read", {"uri": "edged://status"}))["result"]["contents"][0]
    assert json.loads(status["text"])["you"]["client"] == "key:panel"
    assert (await board.legacy("resources/read", {"uri": "file:///etc/passwd"}))["error"]["code"] == -32002


async def modern_era(board: Board) -> None:
    """Without a beginning; headers repeat the body, statuses tell of errors."""
    status, answer = await board.modern("server/discover")
    assert (status, answer["result"]["supportedVersions"], answer["result"]["resultType"]) == (
        200,
        [MODERN],
        "complete",
    )
    assert answer["result"]["_meta"][f"{PREFIX}serverInfo"]["name"] == "edged"
    status, answer = await board.modern("tools/list")
    assert (answer["result"]["cacheScope"], answer["result"]["ttlMs"] > 0) == ("private", True)
    status, answer = await board.modern("tools/call", {"name": "tank_level", "arguments": {"tank": "north"}})
    assert (status, answer["result"]["structuredContent"]["rows"]) == (200, [{"level": 63.0}])
    for wrong, code, told in (
        ({"Mcp_Method": "tools/list"}, -32020, "the header Mcp-Method is not the method"),
        ({"Mcp_Name": "set_valve"}, -32020, "the header Mcp-Name is not the name"),
        ({"MCP_Protocol_Version": NEWEST}, -32020, "the header MCP-Protocol-Version"),
    ):
        status, answer = await board.modern("tools/call", {"name": "tank_level", "arguments": {}}, **wrong)
        assert (status, answer["error"]["code"], told in answer["error"]["message"]) == (400, code, True)
    assert (await board.modern("ping"))[0] == 404
    assert (await board.modern("ping"))[1]["error"]["code"] == -32601
    status, answer, _ = await board.post(request("tools/list"), MCP_Protocol_Version="2031-01-01")
    assert (status, answer["error"]["code"], MODERN in answer["error"]["data"]["supported"]) == (400, -32022, True)
    status, answer, _ = await board.post(request("tools/list"), MCP_Protocol_Version=MODERN)
    assert (status, answer["error"]["code"]) == (400, -32602)


async def strangers(board: Board) -> None:
    """Bytes that are no message, other methods, pages, keys that are none, a role that may less."""
    assert (await board.post(b"{"))[1]["error"]["code"] == -32700
    for none in ([request("ping")], {"id": 1, "method": "ping"}, {"jsonrpc": "2.0", "id": {}, "method": "ping"}):
        status, answer, _ = await board.post(none)
        assert (status, answer["error"]["code"]) == (400, -32600)
    status, answer, headers = await board.post(request("ping"), key=None)
    assert (status, answer["error"]["code"], "WWW-Authenticate" in headers) == (401, -32000, True)
    assert (await board.post(request("ping"), Origin="https://evil.example"))[0] == 403
    assert (await board.post(request("ping"), Host="evil.example"))[0] == 403
    assert (await board.post(request("ping"), Content_Type="text/plain"))[0] == 415
    key = {"Authorization": "Bearer 0123456789abcdef"}
    async with aiohttp.ClientSession(headers=key) as client, client.get(board.url) as response:
        assert (response.status, "POST" in response.headers["Allow"]) == (405, True)
    assert (await board.post(request("ping"), key=None, path="/0123456789abcdef"))[1]["result"] == {}
    status, answer, _ = await board.post(request("ping"), key=None, path="/0123456789abcdex")
    assert (status, "0123456789abcdex" in json.dumps(answer)) == (401, False)
    listed = await board.legacy("tools/list", key=None, path="/fedcba9876543210")
    assert [tool["name"] for tool in listed["result"]["tools"]] == ["tank_level"]
    assert "0123456789abcdef" not in board.daemon.text()


async def test_agent_that_needs_longer_gives_an_id(board: Board) -> None:
    """Nobody waits more than eight seconds; the answer is fetched by another tool, in the daemon's own time."""
    began = asyncio.get_running_loop().time()
    first = await board.call("ask_house", text="slowly")
    took_s = asyncio.get_running_loop().time() - began
    assert first["structuredContent"]["state"] == "running"
    assert took_s < methods.PATIENCE_S + 1.5
    assert "call get_answer with id" in first["content"][0]["text"]
    id = first["structuredContent"]["id"]
    async with asyncio.timeout(60):
        while (found := (await board.call("get_answer", id=id))["structuredContent"])["state"] != "done":
            assert found["id"] == id
    assert found["answer"].startswith("one two three")
    assert board.daemon.states().count("done") == len(board.daemon.states())


async def test_bridge_speaks_both_eras_on_standard_input_and_output(board: Board) -> None:
    """`edged mcp` with nothing after it: messages in lines, several at once, errors with their id."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edged", "mcp", "--socket", str(board.http)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    about = {f"{PREFIX}protocolVersion": MODERN, f"{PREFIX}clientCapabilities": {}}
    modern = {"name": "tank_level", "arguments": {"tank": "south"}, "_meta": about}
    legacy = {"protocolVersion": NEWEST, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    sent = [
        request("initialize", legacy, 1),
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        request("tools/list", {}, "two"),
        request("tools/call", modern, 3),
        request("prompts/list", {}, 4),
        request("tools/call", {"name": "ask_house", "arguments": {"text": "how full"}}, 5),
    ]
    process.stdin.write("".join(json.dumps(each) + "\n" for each in sent).encode() + b"no message\n")
    process.stdin.close()
    async with asyncio.timeout(30):
        out = await process.stdout.read()
        assert await process.wait() == 0
    answers = {each["id"]: each for each in map(json.loads, out.splitlines())}
    assert set(answers) == {1, "two", 3, 4, 5, None}
    assert answers[1]["result"]["serverInfo"]["name"] == "edged"
    assert len(answers["two"]["result"]["tools"]) == 5
    assert answers[3]["result"]["resultType"] == "complete"
    assert answers[4]["error"]["code"] == -32601
    assert answers[5]["result"]["structuredContent"]["answer"] == "It is 41 percent full."
    assert answers[None]["error"]["code"] == -32700


def test_names_are_what_every_client_takes() -> None:
    """64 characters without dots, each once, whatever tools and agents are called."""
    tools = [
        {"name": name, "description": "d", "parameters": {"type": "object", "properties": {}}, "effect": "read"}
        for name in ("home.turn_on", "home_turn_on", "ask_a", "get_answer", "x" * 64, "x" * 63 + ".", "x" * 63 + "-")
    ]
    found = offered.offers(tools, {"a": ["ask_a"], "a.b": []})
    assert list(found)[:5] == ["ask_a", "ask_a_b", "get_answer", "home_turn_on", "home_turn_on_2"]
    assert list(found)[5:7] == ["ask_a_2", "get_answer_2"]
    assert all(len(name) <= 64 and "." not in name for name in found)
    assert len(found) == len(tools) + 3
    assert found["get_answer_2"].name == "get_answer"
    assert found["home_turn_on"].document["inputSchema"] == {"type": "object", "additionalProperties": False}
