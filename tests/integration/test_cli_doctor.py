"""`edged doctor`: what it finds on a real installation, whole and broken."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from edged.client import AsyncClient
from tests.support import real_model as real
from tests.support.broker import Mosquitto, free_port
from tests.support.cli import Ended, edged
from tests.support.cloud import ScriptedCloud
from tests.support.daemon import Daemon


async def doctor(daemon: Daemon, code: int) -> list[dict[str, Any]]:
    """The checks of an installation; the exit code goes with the worst of them."""
    ended = await edged("doctor", "--json", "--config", str(daemon.config))
    assert (ended.code, ended.err) == (code, "")
    document = ended.json()
    assert (document["result"] == "fail") == (code == 70)
    checks: list[dict[str, Any]] = document["checks"]
    assert all((check["do"] is None) == (check["level"] == "ok") for check in checks)
    return checks


def daemon_in(folder: Path, **options: Any) -> Daemon:
    """An installation in a folder of its own."""
    folder.mkdir()
    return Daemon(folder, **options)


def found(checks: list[dict[str, Any]], name: str, word: str = "") -> list[tuple[str, str]]:
    """Level and sentence of the findings of one check; those with a word in them, or in where they were made."""
    every = [(c, f"{c.get('file')}: {c.get('key')}: {c['message']} {c['do']}") for c in checks if c["check"] == name]
    return [(c["level"], c["message"]) for c, text in every if word in text]


def levels(checks: list[dict[str, Any]], name: str, word: str = "") -> list[str]:
    """Only the levels."""
    return [level for level, _ in found(checks, name, word)]


async def test_whole_installation_has_nothing_that_fails(tmp_path: Path) -> None:
    """With its daemon running; every subject has a line, also for people."""
    async with Daemon(tmp_path) as daemon:
        checks = await doctor(daemon, 0)
        subjects = {"configuration", "daemon", "socket group", "state folder", "free space", "disk", "store", "models"}
        assert subjects | {"memory", "tools", "broker", "upstreams", "clock", "processor"} <= {
            check["check"] for check in checks
        }
        assert f"pid {daemon.pid}" in found(checks, "daemon")[0][1]
        assert levels(checks, "tools", "3 statements") == ["ok"]
        plain = await edged("doctor", "--config", str(daemon.config))
        assert (plain.code, plain.err) == (0, "")
        assert f"ok    configuration {daemon.config}" in plain.out


async def test_it_works_before_the_first_start_and_makes_nothing(tmp_path: Path) -> None:
    """No daemon, no state: that is said, and does not fail."""
    daemon = Daemon(tmp_path)
    checks = await doctor(daemon, 0)
    assert levels(checks, "daemon") == ["warn"]
    assert not (tmp_path / "state").exists()


async def test_daemon_that_was_killed_fails(tmp_path: Path) -> None:
    """Its socket is there, and nobody behind it; its store is whole all the same."""
    async with Daemon(tmp_path) as daemon:
        assert (await edged("ask", "hello", config=daemon.config)).code == 0
        await daemon.kill()
        checks = await doctor(daemon, 70)
        assert levels(checks, "daemon") == ["fail"]
        assert levels(checks, "store") == ["ok"]


async def test_broken_configuration_fails_and_the_board_is_looked_at_all_the_same(tmp_path: Path) -> None:
    """The sentence is that of `edged check`."""
    daemon = Daemon(tmp_path, config="[queue]\nmax_wating = 5\n")
    checks = await doctor(daemon, 70)
    assert levels(checks, "configuration", "queue.max_wating") == ["fail"]
    assert found(checks, "clock")
    assert not found(checks, "store")


async def test_tools_that_cannot_work_fail_one_by_one(tmp_path: Path) -> None:
    """A statement without its table, a module that is missing, one that cannot be imported."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "broken.py").write_text("import no_such_module\n")
    python = '[tools.one]\npython = "missing:f"\n[tools.two]\npython = "broken:f"\n'
    daemon = Daemon(tmp_path, config=python)
    daemon.config.write_text(daemon.config.read_text().replace("tank_levels", "tanks"))
    checks = await doctor(daemon, 70)
    assert levels(checks, "tools", "no such table") == ["fail"]
    assert levels(checks, "tools", "tools.one.python") == ["fail"]
    assert levels(checks, "tools", "no_such_module") == ["fail"]


def with_model(folder: Path, source: str, config: str = "") -> Daemon:
    """An installation whose model is a real kind of file."""
    folder.mkdir(exist_ok=True)
    daemon = Daemon(folder, config=config)
    scripted = f"scripted:{folder}/script.toml"
    daemon.config.write_text(daemon.config.read_text().replace(scripted, source))
    return daemon


async def test_model_that_is_missing_or_cut_off_fails_with_the_command_that_helps(tmp_path: Path) -> None:
    """Into the folder that this configuration uses."""
    name = "qwen2.5-coder-0.5b-instruct-q4_k_m"
    daemon = with_model(tmp_path, f"catalog:{name}")
    checks = await doctor(daemon, 70)
    assert levels(checks, "models", f"edged models pull {name} --models-dir {tmp_path}/state/models") == ["fail"]
    (tmp_path / "state" / "models").mkdir(parents=True)
    (tmp_path / "state" / "models" / f"{name}.gguf").write_bytes(b"GGUF")
    checks = await doctor(daemon, 70)
    assert levels(checks, "models", "4 bytes instead of") == ["fail"]


async def test_memory_is_compared_with_what_the_smallest_model_needs(tmp_path: Path) -> None:
    """A budget that fits none fails; with room it is well."""
    (tmp_path / "m.gguf").symlink_to(real.model_path())
    fits = await doctor(with_model(tmp_path / "fits", f"file:{tmp_path}/m.gguf"), 0)
    assert levels(fits, "models", "m.gguf") == ["ok"]
    assert levels(fits, "memory", "small, needs about") == ["ok"]
    tight = await doctor(with_model(tmp_path / "tight", f"file:{tmp_path}/m.gguf", '[memory]\nbudget = "2MiB"\n'), 70)
    assert levels(tight, "memory", "[memory] budget") == ["fail"]


async def test_broker_is_reached_or_not(tmp_path: Path) -> None:
    """Whatever listens there; nobody does on the other port."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        checks = await doctor(daemon_in(tmp_path / "up", broker=port), 0)
        assert levels(checks, "broker", f"127.0.0.1:{port}") == ["ok"]
    finally:
        server.close()
    checks = await doctor(daemon_in(tmp_path / "down", broker=free_port()), 70)
    assert levels(checks, "broker", "cannot be reached") == ["fail"]


def answering(status: int, body: object = None, key: str | None = None) -> Any:
    """GET /models of a server."""

    async def models(request: web.Request) -> web.Response:
        if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
            return web.json_response({}, status=401)
        return web.json_response(body, status=status)

    return models


KEY = "k3y-of-the-cloud"
LISTED = {"data": [{"id": "large"}, {"id": "larger"}]}


async def test_upstreams_are_asked_with_their_keys(tmp_path: Path) -> None:
    """Each its own finding: the right key, a wrong one, none to be read, no such model, an error, nobody there."""
    server = web.Application()
    server.router.add_get("/v1/models", answering(200, LISTED, key=KEY))
    server.router.add_get("/open/models", answering(200, LISTED))
    server.router.add_get("/other/models", answering(404))
    server.router.add_get("/ill/models", answering(503))
    runner = web.AppRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    (tmp_path / "right").write_text(f"{KEY}\n")
    (tmp_path / "wrong").write_text("guess\n")
    tables = {
        "good": ("v1", "large", f"{tmp_path}/right"),
        "bad": ("v1", "large", f"{tmp_path}/wrong"),
        "lost": ("v1", "large", f"{tmp_path}/nothing"),
        "given": ("v1", "large", "credential:cloud-key"),
        "unlisted": ("open", "huge", None),
        "simple": ("other", "large", None),
        "ill": ("ill", "large", None),
    }
    config = f'[upstreams.away]\nbase_url = "http://127.0.0.1:{free_port()}"\nmodel = "large"\n'
    for name, (path, model, key) in tables.items():
        config += f'[upstreams.{name}]\nbase_url = "http://127.0.0.1:{port}/{path}"\nmodel = "{model}"\n'
        config += f'api_key_file = "{key}"\n' if key else ""
    try:
        checks = await doctor(daemon_in(tmp_path / "d", config=config), 70)
    finally:
        await runner.cleanup()
    told = {message.partition(":")[0]: (level, message) for level, message in found(checks, "upstreams")}
    assert levels(checks, "secrets", "upstreams.lost.api_key_file") == ["fail"]
    assert {name: level for name, (level, _) in told.items()} == {
        "good": "ok",
        "bad": "fail",
        "given": "warn",
        "unlisted": "warn",
        "simple": "ok",
        "ill": "warn",
        "away": "warn",
    }
    assert "refuses the key" in told["bad"][1]
    assert "'huge'" in told["unlisted"][1]
    assert KEY not in str(checks)


@pytest.mark.parametrize(
    ("model", "level", "told"),
    [("large", "ok", "answers"), ("small", "fail", "it does not offer 'small'; it offers 'large'"), (None, "fail", "")],
)
async def test_model_in_a_server_is_asked_for_there(tmp_path: Path, model: str | None, level: str, told: str) -> None:
    """It has no file to look for; None: nobody listens."""
    async with ScriptedCloud() as server:
        url = server.base_url if model else f"http://127.0.0.1:{free_port()}/v1"
        config = f'[models.npu]\nengine = "openai"\nbase_url = "{url}"\nmodel = "{model or "large"}"\n'
        checks = await doctor(Daemon(tmp_path, config=config), 0 if level == "ok" else 70)
    [(found_level, message)] = found(checks, "models", "npu")
    assert found_level == level
    assert told in message
    assert url in message


async def test_check_asks_no_server(tmp_path: Path) -> None:
    """A configuration is right or wrong by itself."""
    model = '[models.npu]\nengine = "openai"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "m"\n'
    ended = await edged("check", "--config", str(Daemon(tmp_path, config=model).config))
    assert (ended.code, ended.err) == (0, "")


AS_NOBODY = """
import contextlib, os, sys
from edged.cli import main
shown, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(nothing, 1)
with contextlib.suppress(SystemExit):
    main()  # loads what somebody without rights may not read in this folder
os.dup2(shown, 1)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
main()
"""


async def test_stranger_is_told_what_only_the_owner_can_see(tmp_path: Path) -> None:
    """Warnings with the way to know more; the group of the socket is what fails."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    for folder in (tmp_path, *tmp_path.parents[:-2]):  # pytest keeps others out of its folders
        folder.chmod(0o755)
    async with Daemon(tmp_path) as daemon:
        (tmp_path / "state").chmod(0o700)
        daemon.plant.chmod(0o600)
        ended: Ended = await edged("doctor", "--json", "--config", str(daemon.config), program=AS_NOBODY)
        assert ended.code == 70, ended.err
        checks = ended.json()["checks"]
        assert levels(checks, "daemon") == ["warn"]
        assert levels(checks, "socket group") == ["fail"]
        assert levels(checks, "state folder") == ["warn"]
        assert levels(checks, "store") == ["warn"]
        assert set(levels(checks, "tools")) == {"warn"}


async def test_two_daemons_with_one_node_id_are_told_apart_from_a_wrong_password(tmp_path: Path) -> None:
    """The broker throws the one out for the other; user and password are right."""
    for name in ("one", "two", "broker"):
        (tmp_path / name).mkdir()
    async with (
        Mosquitto(tmp_path / "broker") as broker,
        Daemon(tmp_path / "one", broker=broker.port) as one,
        Daemon(tmp_path / "two", broker=broker.port) as two,
    ):
        [waits] = await first_of(one, two)
        [(level, message)] = found(await doctor(waits, 70), "broker")
        assert level == "fail"
        assert "gave the connection of client edged-n1 to another one" in message
        [check] = [each for each in await doctor(waits, 70) if each["check"] == "broker"]
        assert "give each daemon its own [node] id" in check["do"]
        assert "password" not in check["do"]
        [other] = {one, two} - {waits}
        await other.stop()


async def first_of(*daemons: Daemon) -> list[Daemon]:
    """The daemons that were thrown out by another client and wait, as soon as there is one."""
    async with asyncio.timeout(60):
        while True:
            links = [(each, await link(each)) for each in daemons]
            if waiting := [each for each, found in links if found["cause"] == "taken_over" and not found["connected"]]:
                return waiting
            await asyncio.sleep(0.1)


async def link(daemon: Daemon) -> dict[str, Any]:
    """What a daemon says of its connection to the broker."""
    async with AsyncClient(daemon.socket) as client:
        told: dict[str, Any] = (await client.call("status"))["mqtt"]
        return told


async def test_port_that_speaks_tls_is_named_without_a_daemon(tmp_path: Path) -> None:
    """A greeting in TLS is answered, so mqtt:// is wrong there."""
    certificate = tmp_path / "c.pem"
    subprocess.run(  # noqa: ASYNC221  # takes milliseconds
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", certificate, "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", certificate)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        checks = await doctor(daemon_in(tmp_path / "d", broker=server.sockets[0].getsockname()[1]), 70)
    [(level, message)] = found(checks, "broker")
    assert (level, "that port speaks TLS: write mqtts:// in mqtt.url" in message) == ("fail", True)
