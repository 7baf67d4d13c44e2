"""The audit log of a real daemon, read by the command line: with the daemon and without."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import aiohttp
import apsw
import pytest

from tests.support.broker import Mosquitto
from tests.support.cli import edged
from tests.support.daemon import REPLY, Customer, Daemon, Wired

pytestmark = pytest.mark.broker
DEVICE = f"mqtt:{REPLY}"
AS_JSON = {"Content-Type": "application/json"}
SECRET = "the-word-that-nobody-may-read"  # planted, no secret


async def log(daemon: Daemon, *arguments: str) -> Any:
    done = await edged("requests", "audit", "--config", str(daemon.config), "--json", *arguments)
    return json.loads(done.out)


async def test_log_tells_who_did_what_and_holds_no_texts(tmp_path: Path) -> None:
    """Requests over two transports, a tool by hand, a refusal, a model, a stop; whole after a kill in the midst."""
    async with Mosquitto(tmp_path) as broker, Customer(broker.port, client_id="customer") as customer:
        async with Daemon(tmp_path, broker=broker.port) as daemon:
            await customer.subscribe(REPLY)
            await customer.online()
            await customer.ask("open the north valve", b"q1")
            await customer.answers([b"q1"])
            async with Wired(daemon.socket) as client:
                await client.call(2, "tools.call", {"name": "note", "arguments": {"text": SECRET}})
                await client.call(3, "agent.ask", {"input": "hello", "agent": "nobody"})
                await client.call(4, "models.unload", {"name": "small"})
                # what has no commit of its own is written with the next one, a moment later at most
                await client.call(1, "agent.ask", {"input": f"hello {SECRET}", "id": "q2"})
            await daemon.kill()
            await daemon.start()
            seen = await log(daemon)
            assert (await log(daemon, "--verify"))["problem"] is None
            assert await daemon.stop() == 0
        told = {(each["what"], each.get("outcome", "ok"), each["who"]) for each in seen}
        uid = next(who for what, _, who in told if what == "manage.done")
        assert told >= {
            ("daemon.started", "ok", "edged"),
            ("request.accepted", "ok", DEVICE),
            ("tool.called", "ok", DEVICE),
            ("request.ended", "ok", DEVICE),
            ("request.accepted", "ok", uid),
            ("request.ended", "ok", uid),
            ("tool.called", "ok", uid),
            ("request.refused", "unknown_agent", uid),
            ("model.loaded", "ok", "edged"),
        }
        assert uid.startswith("unix:")
        [valve] = [each for each in seen if each["what"] == "tool.called" and each["who"] == DEVICE]
        assert valve["about"]["arguments"] == {"valve": "north", "position": "open"}
        assert SECRET not in json.dumps(seen)
        after = await log(daemon, "--limit", "3")
        assert after[-1]["what"] == "daemon.stopping"


async def test_act_is_in_it_when_it_is_over_with_how_it_ended(tmp_path: Path) -> None:
    """Not before it begins: who reads the log sees what was done, what failed and what came too late."""
    ghost = f'[models.ghost]\nsource = "scripted:{tmp_path}/nothing.toml"\n'
    async with Daemon(tmp_path, config=ghost) as daemon, Wired(daemon.socket) as client:
        assert (await client.call(1, "models.load", {"name": "small"}))[0] is None
        assert (await client.call(2, "models.load", {"name": "ghost"}))[0]["code"] == "model_unavailable"
        await client.call(3, "agent.ask", {"input": "note 1;", "id": "done"})
        await client.call(4, "request.cancel", {"name": "done"})
        assert (await client.call(5, "request.requeue", {"name": "done"}))[0]["code"] == "bad_request"
        client.send([0, 6, "agent.ask", [{"input": "never ends", "id": "long"}]])
        await client.running()
        assert (await client.call(7, "request.cancel", {"name": "long"}))[1]["status"] == "cancelled"
        assert await daemon.stop() == 0
    seen = [(each["what"], each.get("outcome", "ok"), each["about"].get("act")) for each in await log(daemon)]
    told = [each for each in seen if each[0].startswith(("manage.", "request.", "model.loaded"))]
    assert told == [
        ("model.loaded", "ok", None),
        ("manage.done", "ok", "load models"),
        ("manage.failed", "model_unavailable", "load models"),
        ("request.accepted", "ok", None),
        ("request.ended", "ok", None),
        ("request.kept", "done", None),
        ("manage.failed", "bad_request", "queue requests again"),
        ("request.accepted", "ok", None),
        ("request.ended", "cancelled", None),
        ("request.cancelled", "ok", None),
    ]


async def test_bytes_that_are_no_request_are_in_it(tmp_path: Path) -> None:
    """Over every transport; a flood of them takes no more room than a few."""
    async with Mosquitto(tmp_path) as broker, Customer(broker.port, client_id="customer") as customer:
        config = '[http]\nlisten = ["unix:http.sock"]\n'
        async with Daemon(tmp_path, broker=broker.port, config=config) as daemon:
            await customer.subscribe(REPLY)
            await customer.online()
            await customer.ask('{"input": ', b"q1")
            await customer.answers([b"q1"])
            for data in (b"\x93\x00\x01\x02", b"\xc1"):
                async with Wired(daemon.socket) as client:
                    await client.raw(data)
                    while await client.read():
                        pass
            connector = aiohttp.UnixConnector(str(tmp_path / "run" / "http.sock"))
            async with aiohttp.ClientSession("http://edged", connector=connector) as http:
                for n in range(100):
                    async with http.post("/v1/agents/house/requests", data=b"{%d" % n, headers=AS_JSON) as answer:
                        assert answer.status == 400
            async with Wired(daemon.socket) as client:
                await client.call(1, "agent.ask", {"input": "hello"})
            seen = await log(daemon)
            assert await daemon.stop() == 0
    refused = [each for each in seen if each["what"] == "request.refused"]
    assert {each["outcome"] for each in refused} == {"bad_request"}
    assert {each["about"]["transport"] for each in refused} == {"mqtt", "unix", "http"}
    assert {each["who"] for each in refused} >= {DEVICE}
    assert len(refused) < 40


async def test_changed_log_is_told_with_its_row(tmp_path: Path) -> None:
    """By the exit code as well; a head that was noted before has to be in it."""
    async with Daemon(tmp_path) as daemon, Wired(daemon.socket) as client:
        await client.call(1, "agent.ask", {"input": "note 1;", "id": "q"})
        head = (await client.call(2, "status"))[1]["queue"]["audit"]["head"]
        assert await daemon.stop() == 0
    verify = ("requests", "audit", "--config", str(daemon.config), "--verify")
    good = await edged(*verify, "--head", head)
    assert good.code == 0
    assert "are as they were written; head" in good.out
    strange = await edged(*verify, "--head", "00" * 31 + "ff")
    assert strange.code == 70
    assert "that head is not in it" in strange.err
    with contextlib.closing(apsw.Connection(str(tmp_path / "state" / "edged.db"))) as store:
        number = store.execute("SELECT min(seq) FROM audit WHERE CAST(body AS TEXT) LIKE '%unix:%'").get
        change = "UPDATE audit SET body = CAST(replace(body, 'unix:', 'unix;') AS BLOB) WHERE seq = ?"
        store.execute(change, (number,)).fetchall()
    bad = await edged(*verify)
    assert bad.code == 70
    assert f"row {number} is not as it was written; rows 1 to {int(number) - 1} are" in bad.err
