"""Roles at the real daemon: on every way in, after a kill, and after a reload."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.broker import Mosquitto, Peer, free_port, until
from tests.support.cli import edged
from tests.support.daemon import Daemon, Wired

OPERATOR, METER, OTHER = (f"sk-{name}-0123456789abcdef" for name in ("operator", "meter", "other"))
FULL, VALVE = "how full is it?", "open the north valve"
BASE = "edged/n1"
ROLES = f"""
[roles.operator]
agents = ["*"]
tools = ["*"]
models = ["*"]
manage = true
[roles.viewer]
agents = ["house"]
tools = ["tank_level"]
[roles.meter]
agents = ["house"]
tools = ["*"]
priority = "batch"
requests_per_minute = 1
burst = 2
[roles.nothing]
[access]
unix_uid = {{ "{os.getuid()}" = "viewer" }}
"""


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker that asks for nothing."""
    async with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto


def with_keys(folder: Path, port: int) -> str:
    """A TCP listener with three clients, of whom one has no role."""
    (folder / "keys").write_text(f"operator:{OPERATOR}\nmeter:{METER}\nother:{OTHER}\n")
    listen = f'[http]\nlisten = ["unix:http.sock", "127.0.0.1:{port}"]\napi_keys_file = "{folder}/keys"\n'
    return f'{listen}{ROLES}api_key = {{ operator = "operator", meter = "meter" }}\n'


def over_unix(daemon: Daemon) -> aiohttp.ClientSession:
    """A client on the HTTP socket."""
    return aiohttp.ClientSession(
        "http://edged", connector=aiohttp.UnixConnector(str(daemon.folder / "run" / "http.sock"))
    )


async def fetch(
    client: aiohttp.ClientSession, method: str, path: str, key: str = "", body: Any = None, **headers: str
) -> tuple[int, Any, Any]:
    """(status, document, headers)."""
    shown = {
        **({"Authorization": f"Bearer {key}"} if key else {}),
        **{n.replace("_", "-"): v for n, v in headers.items()},
    }
    async with client.request(method, path, json=body, headers=shown) as response:
        return response.status, await response.json(content_type=None), response.headers


def newest_runs(daemon: Daemon, number: int) -> bool:
    """Whether there are so many requests, and the last one is being worked on."""
    return len(states := daemon.states()) == number and states[-1] == "running"


async def refusal(client: Wired, method: str, params: Any = None) -> str:
    """The code that a call is refused with."""
    error, _ = await client.call(9, method, params)
    assert error is not None, f"{method} was allowed"
    return str(error["code"])


async def test_role_of_a_unix_user_bounds_all_its_calls(tmp_path: Path) -> None:
    """Agents with permitted tools only, its own requests only, and nothing that changes the daemon."""
    port = free_port()
    async with (
        Daemon(tmp_path, config=with_keys(tmp_path, port)) as daemon,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as tcp,
        over_unix(daemon) as unix,
        Wired(daemon.socket) as client,
    ):
        _, opened, _ = await fetch(tcp, "POST", "/v1/agents/house/requests", OPERATOR, {"input": VALVE, "id": "v"})
        assert (opened["status"], daemon.rows("valve_commands")) == ("done", [("north", "open")])

        _, read = await client.call(1, "agent.ask", {"input": FULL})
        assert read["output"] == "It is 41 percent full."
        _, refused = await client.call(2, "agent.ask", {"input": VALVE, "id": "mine"})
        assert (refused["status"], refused["error"]["code"]) == ("failed", "forbidden")
        assert "viewer" in refused["error"]["message"]
        assert daemon.rows("valve_commands") == [("north", "open")]

        _, explained = await client.call(3, "route.explain", {"input": VALVE, "decide": True})
        assert (explained["call"]["name"], explained["error"]["code"]) == ("set_valve", "forbidden")
        _, tools = await client.call(3, "tools.list")
        assert [tool["name"] for tool in tools] == ["tank_level"]
        valve = {"name": "set_valve", "arguments": {"valve": "south", "position": "open"}}
        assert await refusal(client, "tools.call", valve) == "forbidden"
        error, _ = await client.call(4, "tools.call", {"name": "tank_level", "arguments": {"tank": "north"}})
        assert error is None
        for method in ("models.load", "models.unload", "models.rollback", "models.update"):
            assert await refusal(client, method, {"name": "small"}) == "forbidden"
        assert await refusal(client, "request.requeue", {"name": "mine"}) == "forbidden"
        for method in ("request.get", "request.cancel"):
            assert await refusal(client, method, {"name": opened["rid"]}) == "bad_request"
            assert await refusal(client, method, {"name": "v"}) == "bad_request"
        _, rows = await client.call(5, "requests.list")
        assert {row["client"] for row in rows} == {f"unix:{os.getuid()}"}
        _, status = await client.call(6, "status")
        assert status["you"] == {"client": f"unix:{os.getuid()}", "role": "viewer", "manage": False}
        told = await edged("status", config=daemon.config)
        assert f"you  unix:{os.getuid()}, role viewer" in told.out.splitlines()
        again = await edged("requests", "requeue", refused["rid"], config=daemon.config)
        assert (again.code, "forbidden" in again.err) == (77, True)

        _, models, _ = await fetch(unix, "GET", "/v1/models")
        assert [model["id"] for model in models["data"]] == ["house"]
        chat = {"model": "small", "messages": [{"role": "user", "content": "tell a story"}]}
        assert (await fetch(unix, "POST", "/v1/chat/completions", body=chat))[0] == 403
        assert (await fetch(unix, "POST", "/v1/chat/completions", body={**chat, "stream": True}))[0] == 403
        chat["model"] = "house"
        assert (await fetch(unix, "POST", "/v1/chat/completions", body=chat))[0] == 200
        assert (await fetch(unix, "GET", f"/v1/requests/{opened['rid']}"))[0] == 404


async def test_role_of_a_key_and_the_rate_of_it(tmp_path: Path) -> None:
    """Who manages sees all; a key without a role nothing; too many are busy, and what is known costs nothing."""
    port = free_port()
    async with (
        Daemon(tmp_path, config=with_keys(tmp_path, port)) as daemon,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as tcp,
        Wired(daemon.socket) as client,
    ):
        _, mine = await client.call(1, "agent.ask", {"input": FULL})
        assert (await fetch(tcp, "GET", f"/v1/requests/{mine['rid']}", OPERATOR))[0] == 200
        _, models, _ = await fetch(tcp, "GET", "/v1/models", OPERATOR)
        assert {model["id"] for model in models["data"]} == {"house", "small"}
        ask = "/v1/agents/house/requests"
        assert (await fetch(tcp, "GET", "/v1/models", OTHER))[0] == 403
        status, body, _ = await fetch(tcp, "POST", ask, OTHER, {"input": FULL})
        assert (status, body["status"], body["error"]["code"]) == (403, "refused", "forbidden")

        status, body, _ = await fetch(tcp, "POST", ask, METER, {"input": FULL, "priority": "interactive"})
        assert (status, "allowed is batch" in body["error"]["message"]) == (403, True)
        first = {"input": "note 1;", "id": "1"}
        assert (await fetch(tcp, "POST", ask, METER, first))[0] == 200
        for _ in range(3):
            assert (await fetch(tcp, "POST", ask, METER, first))[0] == 200
        assert (await fetch(tcp, "POST", ask, METER, {"input": "note 3;", "id": "1"}))[0] == 400
        assert (await fetch(tcp, "POST", ask, METER, {"input": "note 2;", "priority": "batch"}))[0] == 200
        status, body, headers = await fetch(tcp, "POST", ask, METER, {"input": "note 3;"})
        assert (status, body["error"]["code"], body["error"]["retryable"]) == (503, "busy", True)
        assert 0 < int(headers["Retry-After"]) <= 60
        assert (await fetch(tcp, "POST", ask, METER, first))[0] == 200
        assert daemon.rows("diary") == [("n1",), ("n2",)]


async def test_tcp_listener_refuses_other_names_and_pages_of_browsers(tmp_path: Path) -> None:
    """Also with a right key, and for what needs none."""
    port = free_port()
    config = with_keys(tmp_path, port).replace("[http]", '[http]\norigins = ["https://panel.example"]')
    async with (
        Daemon(tmp_path, config=config),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as tcp,
    ):
        for path in ("/v1/models", "/metrics", "/livez"):
            assert (await fetch(tcp, "GET", path, OPERATOR, Host="evil.example"))[0] == 403
            assert (await fetch(tcp, "GET", path, OPERATOR, Origin="http://evil.example"))[0] == 403
            assert (await fetch(tcp, "GET", path, OPERATOR, Sec_Fetch_Site="cross-site"))[0] == 403
        ours = {"Origin": "https://panel.example"}
        status, _, headers = await fetch(tcp, "GET", "/v1/models", OPERATOR, **ours)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://panel.example")
        preflight = {**ours, "Access-Control-Request-Method": "POST"}
        async with tcp.options("/v1/models", headers=preflight) as response:
            assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (204, "https://panel.example")
        status, _, headers = await fetch(tcp, "GET", "/v1/models", "wrong", **ours)
        assert (status, headers["Access-Control-Allow-Origin"]) == (401, "https://panel.example")


@pytest.mark.broker
async def test_role_of_a_topic_bounds_what_is_asked_there(tmp_path: Path, broker: Mosquitto) -> None:
    """Also who is cancelled; a topic without a role gets a refusal and leaves nothing behind."""
    topics = {f"{BASE}/agents/house/request": "viewer", f"{BASE}/requests/+/cancel": "viewer"}
    topics[f"{BASE}/requests/locked/cancel"] = ""
    config = f"{ROLES}\n[access.mqtt]\n" + "".join(f'"{topic}" = "{role}"\n' for topic, role in topics.items())
    async with Daemon(tmp_path, broker=broker.port, config=config) as daemon, Peer(broker.port) as peer:
        await peer.subscribe("app/r")
        await peer.subscribe(f"{BASE}/status")
        await peer.next(lambda m: json.loads(m.payload)["state"] == "online")

        async def reply(text: str, agent: str = "house") -> Any:
            await peer.publish(f"{BASE}/agents/{agent}/request", text, ResponseTopic="app/r")
            return json.loads((await peer.next(lambda m: m.topic == "app/r")).payload)

        assert (await reply(FULL))["output"] == "It is 41 percent full."
        refused = await reply(VALVE)
        assert (refused["status"], refused["error"]["code"]) == ("failed", "forbidden")
        assert daemon.rows("valve_commands") == []

        async with Wired(daemon.socket) as client:  # of another client, though of the same role
            for n, id in enumerate(("locked", "theirs", "ours"), start=3):
                body = {"input": "never ends", "id": id}
                if id == "theirs":
                    client.send([0, 1, "agent.ask", [body]])
                else:
                    await peer.publish(f"{BASE}/agents/house/request", json.dumps(body))
                await until(partial(newest_runs, daemon, n))
                await peer.publish(f"{BASE}/requests/{id}/cancel", "")
            await until(lambda: daemon.states()[2:] == ["running", "running", "cancelled"])
            assert "access.refused: forbidden" in daemon.text()

        stored = len(daemon.states())
        refused = await reply(FULL, "shed")
        assert (refused["status"], refused["error"]["code"]) == ("refused", "forbidden")
        assert "house" not in refused["error"]["message"]
        assert len(daemon.states()) == stored


NARROWED = f'[access.unix_uid]\n{os.getuid()} = "%s"\n'


@pytest.mark.parametrize(
    ("point", "role"), [("accept.committed", "viewer"), ("agent.decided", "nothing"), ("journal.intent", "viewer")]
)
async def test_request_that_is_resumed_does_only_what_its_caller_may_now(tmp_path: Path, point: str, role: str) -> None:
    """The daemon died, and the role was taken away before it was started again."""
    daemon = Daemon(tmp_path, config=ROLES)
    try:
        daemon.drop_in(NARROWED % "operator")
        await daemon.start(point)
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"input": VALVE, "id": "q"}]])
            await client.end()
        assert await daemon.ended() == -9
        daemon.drop_in(NARROWED % role)
        await daemon.start()
        await until(lambda: daemon.states() == ["failed"])
        assert daemon.rows("valve_commands") == []
        async with Wired(daemon.socket) as client:
            if role == "nothing":
                assert await refusal(client, "agent.ask", {"input": VALVE, "id": "q"}) == "forbidden"
            _, reply = await client.call(1, "request.get", {"name": "q"})
        assert reply["error"]["code"] == "forbidden"
        assert reply["tool_calls"] == []
    finally:
        await daemon.__aexit__()


async def test_what_was_done_under_a_role_that_is_gone_is_told(tmp_path: Path) -> None:
    """The daemon died behind the effect, and there is nothing left to do."""
    daemon = Daemon(tmp_path, config=ROLES)
    try:
        daemon.drop_in(NARROWED % "operator")
        await daemon.start("tool.effect")
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"input": VALVE, "id": "q"}]])
            await client.end()
        assert await daemon.ended() == -9
        daemon.drop_in(NARROWED % "viewer")
        await daemon.start()
        await until(lambda: daemon.states() == ["done"])
        assert daemon.rows("valve_commands") == [("north", "open")]
        async with Wired(daemon.socket) as client:
            _, reply = await client.call(1, "request.get", {"name": "q"})
        assert [call["ok"] for call in reply["tool_calls"]] == [True]
    finally:
        await daemon.__aexit__()


async def test_role_keeps_its_tools_over_a_kill_and_a_reload_lifts_them(tmp_path: Path) -> None:
    """The bound is stored with the request; without the tables everything is as it was."""
    daemon = Daemon(tmp_path, config=ROLES)
    try:
        await daemon.start("work.claimed")
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"input": VALVE, "id": "q"}]])
            await client.end()
        assert await daemon.ended() == -9
        await daemon.start()
        await until(lambda: daemon.states() == ["failed"])
        assert daemon.rows("valve_commands") == []
        text = daemon.config.read_text()
        daemon.config.write_text(text[: text.index("[roles.operator]")])
        await daemon.reload()
        async with Wired(daemon.socket) as client:
            _, reply = await client.call(1, "agent.ask", {"input": VALVE})
        assert (reply["status"], daemon.rows("valve_commands")) == ("done", [("north", "open")])
    finally:
        await daemon.__aexit__()


async def test_operator_who_forgot_themselves_may_still_manage(tmp_path: Path) -> None:
    """Root and the daemon's own user, where nobody has a role: no agent answers them, the models obey."""
    async with Daemon(tmp_path, config='[access]\ndefault = ""\n') as daemon:
        asked = await edged("ask", FULL, config=daemon.config)
        assert (asked.code, daemon.states()) == (77, [])
        async with Wired(daemon.socket) as client:
            error, _ = await client.call(1, "models.load", {"name": "small"})
            assert error is None
            assert await client.call(2, "tools.list") == (None, [])
