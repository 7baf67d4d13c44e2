"""Secrets stay where they are: planted ones are looked for in everything that the daemon says and writes."""

from __future__ import annotations

import secrets
import stat
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from tests.support.broker import Mosquitto, free_port, until
from tests.support.cli import edged
from tests.support.cloud import USAGE, Asked, Behaviour, ScriptedCloud, completion
from tests.support.daemon import REPLY, Customer, Daemon, Wired

pytestmark = pytest.mark.broker


class Planted:
    """Secrets by what they are for, and everything that was heard."""

    def __init__(self) -> None:
        self.words = {
            name: secrets.token_hex(16) for name in ("wrong", "right", "key", "bad key", "cloud", "credential")
        }
        self.heard: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> str:
        return self.words[name]

    def hear(self, where: str, what: Any) -> None:
        """Something that the daemon said."""
        data = (
            what if isinstance(what, bytes) else what.encode() if isinstance(what, str) else msgspec.json.encode(what)
        )
        self.heard[where] = self.heard.get(where, b"") + data

    def leaks(self) -> list[str]:
        """Which secret was where."""
        return [
            f"{name} in {where}"
            for where, data in self.heard.items()
            for name, word in self.words.items()
            if word.encode() in data
        ]


def saying_the_key(code: int) -> Behaviour:
    """An upstream that says the key it was shown, in a header and in its words."""

    async def behave(asked: Asked) -> web.StreamResponse:
        key = asked.request.headers["Authorization"]
        said = f"your {key} is on the list"
        body = (
            completion({"role": "assistant", "content": said}, "stop", USAGE)
            if code == 200
            else {"error": {"message": said}}
        )
        return web.json_response(body, status=code, headers={"X-Your-Key": key})

    return behave


def files(folder: Path) -> list[Path]:
    return [path for part in ("state", "run") for path in (folder / part).rglob("*") if path.is_file()]


async def test_planted_secrets_are_nowhere_to_be_found(tmp_path: Path) -> None:
    """In the log, the files, status, metrics, replies, events and commands; with wrong secrets, right ones, and an
    upstream that says them back."""
    planted = Planted()
    passwords, credentials, port = tmp_path / "passwords", tmp_path / "credentials", free_port()
    credentials.mkdir()
    (credentials / "second").write_text(planted["credential"])
    (tmp_path / "password").write_text(planted["wrong"])
    (tmp_path / "keys").write_text(f"panel:{planted['key']}\n")
    (tmp_path / "cloud-key").write_text(planted["cloud"])
    make = ["mosquitto_passwd", "-c", "-b", str(passwords), "board", planted["right"]]
    subprocess.run(make, check=True, capture_output=True)  # noqa: ASYNC221  # takes milliseconds
    async with (
        Mosquitto(tmp_path, lines=("allow_anonymous true", f"password_file {passwords}")) as broker,
        ScriptedCloud() as cloud,
    ):
        config = (
            f'[http]\nlisten = ["unix:http.sock", "127.0.0.1:{port}"]\napi_keys_file = "{tmp_path}/keys"\n'
            f'[upstreams.cloud]\nbase_url = "{cloud.base_url}"\nmodel = "large"\n'
            f'api_key_file = "{tmp_path}/cloud-key"\n'
            f'[upstreams.second]\nbase_url = "{cloud.base_url}"\nmodel = "large"\napi_key_file = "credential:second"\n'
            '[agents.far]\nmodel = "small"\nroute = "cloud"\nprivacy = "any"\nwhen_offline = "fail"\n'
        )  # fmt: skip
        daemon = Daemon(
            tmp_path, broker=broker.port, config=config, environment={"CREDENTIALS_DIRECTORY": str(credentials)}
        )
        daemon.drop_in(f'[mqtt]\nusername = "board"\npassword_file = "{tmp_path}/password"\n')
        async with daemon, Wired(daemon.socket) as client:
            while not (found := (await client.call(1, "status"))[1])["mqtt"]["error"]:
                pass
            planted.hear("status with a wrong password", found)
            assert "Not authorized" in found["mqtt"]["error"]
            await daemon.stop()
        (tmp_path / "password").write_text(planted["right"])
        async with daemon, Customer(broker.port, client_id="customer") as customer:
            await customer.subscribe(REPLY)
            await customer.subscribe("edged/#")
            await customer.online()
            cloud.will(saying_the_key(401), saying_the_key(401))
            cloud.otherwise = saying_the_key(500)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
                for name in ("bad key", "key"):
                    headers = {"Authorization": f"Bearer {planted[name]}"}
                    for agent in ("house", "far", "nobody"):
                        url = f"/v1/agents/{agent}/requests"
                        async with http.post(url, json={"input": "note 1;", "id": agent}, headers=headers) as answer:
                            planted.hear("HTTP", await answer.read())
                    async with http.get("/metrics", headers=headers) as answer:
                        planted.hear("metrics", await answer.read())
            cloud.otherwise = saying_the_key(200)
            await customer.ask("note 2;", b"q")
            planted.hear("a reply", b"".join((await customer.answers([b"q"]))[b"q"]))
            async with Wired(daemon.socket) as client:
                for number, method in enumerate(("status", "requests.list", "tools.list", "models.list")):
                    planted.hear(method, await client.call(number, method))
                planted.hear(
                    "a reply that says it", (await client.call(9, "agent.ask", {"input": "x", "agent": "far"}))[1]
                )
            await until(lambda: any(m.topic.endswith("/state") for m in customer.kept()))
            for message in customer.kept():
                planted.hear("MQTT", bytes(message.payload))
            for command in (("doctor", "--json"), ("check",), ("status", "--json"), ("requests", "audit", "--json")):
                done = await edged(*command, config=daemon.config)
                planted.hear(" ".join(command), done.out + done.err)
            for path in files(tmp_path):
                planted.hear(str(path), path.read_bytes())
            await daemon.stop()
        daemon.config.write_text(daemon.config.read_text() + "[nonsense]\n")
        done = await edged("check", config=daemon.config)
        assert done.code == 78
        planted.hear("check of a wrong configuration", done.out + done.err)
    planted.hear("the log", daemon.text())
    assert planted.leaks() == []
    assert {"HTTP", "MQTT", "metrics", "the log", "a reply"} <= planted.heard.keys()


async def test_files_are_for_nobody_else(tmp_path: Path) -> None:
    """0600 and 0700, whatever the umask; sockets as configured."""
    async with (
        Daemon(tmp_path, config='[ipc]\nmode = "0640"\n', environment={}) as daemon,
        Wired(daemon.socket) as client,
    ):
        await client.call(1, "agent.ask", {"input": "note 1;", "id": "q"})
        state = tmp_path / "state"
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.rglob("*") if path.is_file()}
        assert {"edged.db", "edged.db-wal", "edged.db-shm", "edged.lock"} <= modes.keys()
        assert set(modes.values()) == {0o600}
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o640
