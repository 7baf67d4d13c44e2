"""Passwords, certificates and access lists: what works, what is refused, and what the log says of it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker import Mosquitto, Node, until

pytestmark = pytest.mark.broker

ASK = "edged/n1/agents/house/request"


class Authority:
    """A private certificate authority in a folder, made with the openssl program."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self._folder = folder
        self.file = folder / "ca.pem"
        self._openssl("req", "-x509", "-subj", f"/CN={name}", "-days", "2", *self._key("ca"), "-out", str(self.file))

    def issue(self, name: str, *, days: int = 2, alternative: str = "DNS:localhost,IP:127.0.0.1") -> tuple[str, str]:
        """A certificate and its key, as file names; with negative `days` it has expired."""
        request, cert = self._folder / f"{name}.csr", self._folder / f"{name}.pem"
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternative}\n")
        self._openssl("req", "-subj", f"/CN={name}", *self._key(name), "-out", str(request))
        self._openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.file), "-CAkey", str(self._folder / "ca.key")),
            *("-CAcreateserial", "-days", str(days), "-extfile", str(extensions), "-out", str(cert)),
        )
        return str(cert), str(self._folder / f"{name}.key")

    def _key(self, name: str) -> tuple[str, ...]:
        key = str(self._folder / f"{name}.key")
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The one the broker's certificate comes from."""
    if shutil.which("openssl") is None:
        pytest.fail("the openssl program is missing; apt-get install openssl")
    return Authority(tmp_path_factory.mktemp("tls") / "ca", "the plant")


def tls_listener(authority: Authority, certificate: tuple[str, str], *, clients: bool = False) -> tuple[str, ...]:
    """A listener's lines for TLS."""
    lines = (f"cafile {authority.file}", f"certfile {certificate[0]}", f"keyfile {certificate[1]}")
    return (*lines, "require_certificate true") if clients else lines


async def ask_and_answer(node: Node, *, tool_topic: str = "app/x") -> None:
    """The link carries something in both directions."""
    await node.online()
    await node.transport.publish(ASK, b"to myself", qos=1)
    await node.asked()
    await node.transport.publish(tool_topic, b"x", qos=1)


async def test_wrong_password_is_said_and_the_right_one_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A refused connection is tried again: the broker's list may be what is wrong."""
    passwords = tmp_path / "passwords"
    command = ["mosquitto_passwd", "-c", "-b", str(passwords), "board", "right"]
    subprocess.run(command, check=True, capture_output=True)  # noqa: ASYNC221  # takes milliseconds
    async with Mosquitto(tmp_path, lines=(f"password_file {passwords}",)) as broker:
        async with Node(broker.port, username="board", password="wrong") as node:
            await until(lambda: node.transport.status()["error"])
            assert "Not authorized" in str(node.transport.status()["error"])
            assert node.transport.status()["version"] == "5", "a refusal says nothing about the version"
        assert "Not authorized" in caplog.text
        async with Node(broker.port, username="board", password="right") as node:
            await ask_and_answer(node)


async def test_subscription_that_is_refused_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """The node would look well and never be asked anything. mosquitto 2.0 grants what it then does not serve, so here
    a few bytes play the broker."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\x20\x03\x00\x00\x00")  # CONNACK
        subscribe = await reader.read(1000)
        assert subscribe[0] == 0x82
        writer.write(b"\x90\x05" + subscribe[2:4] + b"\x00\x87\x01")  # SUBACK: not authorized, granted
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Node(server.sockets[0].getsockname()[1]) as node:
        await until(lambda: node.transport.status()["refused_subscriptions"])
        status = node.transport.status()
        assert status["refused_subscriptions"] == {"edged/n1/agents/+/request": "Not authorized"}
        assert not status["subscribed"]
        await node.crash()  # this broker confirms no farewell
    assert "refused the subscription to edged/n1/agents/+/request: Not authorized" in caplog.text


async def test_tls_with_a_private_authority(tmp_path: Path, authority: Authority) -> None:
    """The broker's certificate and its name are checked; large packets come through whole."""
    listener = tls_listener(authority, authority.issue("broker"))
    settings: dict[str, Any] = {"scheme": "mqtts", "host": "localhost", "ca_file": str(authority.file)}
    async with Mosquitto(tmp_path, listener=listener) as broker, Node(broker.port, **settings) as node:
        await ask_and_answer(node)
        # Several of TLS's 16 KiB records, and many packets in one record.
        big = b"x" * 200_000
        await node.transport.publish(ASK, big, qos=1)
        assert len((await node.asked(2)).request.messages[-1].content) == len(big)
        for n in range(50):
            await node.transport.publish(ASK, str(n).encode(), qos=0)
        await node.asked(52)


async def test_client_certificate_is_shown_and_its_lack_is_said(tmp_path: Path, authority: Authority) -> None:
    """A renewed file is read at the next attempt, without a restart."""
    listener = tls_listener(authority, authority.issue("broker2"), clients=True)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    async with Mosquitto(tmp_path, listener=listener) as broker:
        settings: dict[str, Any] = {"scheme": "mqtts", "host": "localhost", "ca_file": str(authority.file)}
        async with Node(broker.port, **settings) as node:
            await until(lambda: node.transport.status()["error"])
            assert "it may want a client certificate" in str(node.transport.status()["error"])
            assert node.transport.status()["version"] == "5"
        async with Node(broker.port, **settings, cert_file=str(cert), key_file=str(key)) as node:
            await until(lambda: node.transport.status()["error"])
            assert str(cert) in str(node.transport.status()["error"])
            issued = authority.issue("board")
            shutil.copy(issued[1], key)
            shutil.copy(issued[0], cert)
            await ask_and_answer(node)


@pytest.mark.parametrize(
    ("certificate", "trusted", "says"),
    [
        ({"name": "expired", "days": -1}, "own", "expired"),
        ({"name": "elsewhere", "alternative": "DNS:broker.example"}, "own", "not valid for 'localhost'"),
        ({"name": "fine"}, "other", "ca_file names the authorities"),
        ({"name": "fine2"}, "system", "ca_file names the authorities"),
        ({"name": "fine3"}, "missing", "/nowhere/ca.pem: No such file"),
    ],
    ids=["expired", "wrong host", "wrong authority", "system's authorities", "no such file"],
)
async def test_broker_that_cannot_be_trusted_is_not_used(
    tmp_path: Path,
    authority: Authority,
    certificate: dict[str, object],
    trusted: str,
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has the reason; nothing was sent."""
    other = Authority(tmp_path / "other", "somebody")
    ca_file = {"own": str(authority.file), "other": str(other.file), "system": None, "missing": "/nowhere/ca.pem"}
    issued = authority.issue(**certificate)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"scheme": "mqtts", "host": "localhost", "ca_file": ca_file[trusted]}
    listener = tls_listener(authority, issued)
    async with Mosquitto(tmp_path, listener=listener) as broker, Node(broker.port, **settings) as node:
        await until(lambda: node.transport.status()["error"])
        assert says in str(node.transport.status()["error"])
        assert not node.transport.status()["connected"]
    assert says in caplog.text


async def test_plain_broker_behind_a_tls_url_is_said(tmp_path: Path, authority: Authority) -> None:
    """The likely mistake: mqtts:// and the port of mqtt://."""
    settings: dict[str, Any] = {"scheme": "mqtts", "host": "localhost", "ca_file": str(authority.file)}
    async with Mosquitto(tmp_path) as broker, Node(broker.port, **settings) as node:
        await until(lambda: node.transport.status()["error"])
        error = str(node.transport.status()["error"])
        assert "is that its port for TLS?" in error
        assert "for the port without TLS write mqtt:// in mqtt.url" in error


async def test_tls_broker_behind_a_plain_url_is_said(tmp_path: Path, authority: Authority) -> None:
    """The mistake the other way round: mqtt:// and the port of mqtts://."""
    listener = tls_listener(authority, authority.issue("encrypted"))
    async with Mosquitto(tmp_path, listener=listener) as broker, Node(broker.port) as node:
        await until(lambda: node.transport.status()["error"])
        assert "a port that speaks TLS does so too: then write mqtts://" in str(node.transport.status()["error"])


async def test_web_server_behind_a_tls_url_is_said(tmp_path: Path, authority: Authority) -> None:
    """It answers, in plain text."""

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    http = await asyncio.start_server(refuse, "127.0.0.1", 0)
    settings: dict[str, Any] = {"scheme": "mqtts", "host": "localhost", "ca_file": str(authority.file)}
    async with http, Node(http.sockets[0].getsockname()[1], **settings) as node:
        await until(lambda: "for the port without TLS write mqtt://" in str(node.transport.status()["error"]))
