"""The idle daemon (private memory, time to ready) and what each transport adds to a request.

The daemon is a real child process with a scripted engine (an answer costs it nothing), a real store on disk and a real
mosquitto; so what is measured is everything that is not the model: decoding, the durable commit before and after, the
prompt, delivery. Transports take turns, request by request, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.report import Row, percentile

STARTS = 5  # of which the median counts
ROUNDS = 300  # requests per transport
WARM_UP = 20
IDLE_S = 2.0  # a moment after ready, when what the start needed is given back
LIMIT_S = 30.0


def run() -> list[Row]:
    """Rows: name, unit, median, p99, limit."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        folder = Path(name)
        port = free_port()
        _write_config(folder, port)
        with mosquitto(folder, port):
            starts, memory = zip(*(_start_once(folder) for _ in range(STARTS)), strict=True)
            with daemon(folder):
                unix, over_http, over_mqtt = _latencies(folder, port)
                first_unix, first_http = _first_deltas(folder)
    return [
        _row("ready", "ms", list(starts), 1500),
        _row("idle private memory", "MiB", list(memory), 45),
        _row("added latency, Unix socket", "ms", unix, None),
        _row("added latency, HTTP on its Unix socket", "ms", over_http, None),
        _row("added latency, MQTT 5 QoS 1", "ms", over_mqtt, None),
        _row("from the model's first token to the first delta, Unix socket", "ms", first_unix, 5),
        _row("from the model's first token to the first delta, HTTP", "ms", first_http, 5),
    ]


def _row(name: str, unit: str, values: list[float], limit: float | None) -> Row:
    return {
        "what": name,
        "unit": unit,
        "median": statistics.median(values),
        "p99": percentile(values, 0.99),
        "n": len(values),
        "to reach": "" if limit is None else f"at most {limit}",
    }


def _write_config(folder: Path, port: int) -> None:
    (folder / "script.toml").write_text(
        '[[replies]]\nmatch = "stream"\ntext = "one two three"\ntoken_s = 0.01\n'
        '[[replies]]\nmatch = ""\ntext = "done"\n'
    )
    (folder / "edged.toml").write_text(
        f'[node]\nid = "bench"\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
        f'[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\n'
        f'[models.small]\nsource = "scripted:{folder}/script.toml"\n[agents.house]\nmodel = "small"\n'
    )


def _start_once(folder: Path) -> tuple[float, float]:
    """(milliseconds from exec to READY=1, MiB private memory when idle)."""
    with daemon(folder) as (pid, ready_ms):
        time.sleep(IDLE_S)
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
        )
        private = sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
        return ready_ms, private / 1024


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[tuple[int, float]]:
    """A daemon from exec to its end; gives its pid and the milliseconds until it said READY=1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        path = folder / "notify"
        path.unlink(missing_ok=True)
        notify.bind(str(path))
        notify.settimeout(LIMIT_S)
        environment = {**os.environ, "NOTIFY_SOCKET": str(path), "EDGED_CONFIG": str(folder / "edged.toml")}
        command = [str(Path(sys.executable).parent / "edged"), "run"]
        started = time.perf_counter()
        with (folder / "edged.log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            while b"READY=1" not in notify.recv(4096):
                pass
            yield process.pid, (time.perf_counter() - started) * 1000
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_S)


def _latencies(folder: Path, port: int) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds from sending a request to having its reply, over each transport in turns."""
    unix, over_http = _Unix(folder / "run" / "edged.sock"), _Http(folder / "run" / "http.sock")
    broker = _Mqtt(port)
    taken: tuple[list[float], list[float], list[float]] = ([], [], [])
    try:
        for round_number in range(WARM_UP + ROUNDS):
            for peer, values in zip((unix, over_http, broker), taken, strict=True):
                started = time.perf_counter()
                peer.ask()
                if round_number >= WARM_UP:
                    values.append((time.perf_counter() - started) * 1000)
    finally:
        unix.close()
        over_http.close()
        broker.close()
    return taken


def _first_deltas(folder: Path) -> tuple[list[float], list[float]]:
    """Milliseconds from the model's first token to the client's first delta, over each transport in turns: the client's
    wait less what the reply says the first token took. The way of the request to its acceptance is part of it."""
    unix, over_http = _Unix(folder / "run" / "edged.sock"), _Http(folder / "run" / "http.sock")
    taken: tuple[list[float], list[float]] = ([], [])
    try:
        for round_number in range(WARM_UP + ROUNDS):
            for peer, values in zip((unix, over_http), taken, strict=True):
                started = time.perf_counter()
                first, reply = peer.stream()
                if round_number >= WARM_UP:
                    values.append((first - started) * 1000 - reply["timing"]["first_token_ms"])
    finally:
        unix.close()
        over_http.close()
    return taken


class _Unix:
    """A client without edged's code."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT_S)
        self._socket.connect(str(path))
        self._unpacker = msgpack.Unpacker()

    def ask(self) -> None:
        """A request and its reply."""
        self._socket.sendall(msgpack.packb([0, 1, "agent.ask", [{"input": "hello", "agent": "house"}]]))
        while True:
            for frame in self._unpacker:
                if frame[0] == 1:
                    assert frame[2] is None, frame
                    assert frame[3]["status"] == "done", frame
                    return
            self._unpacker.feed(self._socket.recv(65536))

    def stream(self) -> tuple[float, dict[str, Any]]:
        """(when the first delta came, the reply) of a streamed request."""
        ask = {"input": "stream", "agent": "house", "stream": True}
        self._socket.sendall(msgpack.packb([0, 1, "agent.ask", [ask]]))
        first = None
        while True:
            for frame in self._unpacker:
                if frame[0] == 2 and first is None:
                    first = time.perf_counter()
                if frame[0] == 1:
                    assert first is not None, frame
                    return first, frame[3]
            self._unpacker.feed(self._socket.recv(65536))

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


class _Http:
    """A client on the HTTP socket, its connection kept."""

    def __init__(self, path: Path) -> None:
        self._connection = http.client.HTTPConnection("localhost", timeout=LIMIT_S)
        self._connection.sock = socket.socket(socket.AF_UNIX)
        self._connection.sock.connect(str(path))

    def ask(self) -> None:
        """A request and its reply."""
        response = self._send({"input": "hello"})
        assert b'"status":"done"' in response.read()

    def stream(self) -> tuple[float, dict[str, Any]]:
        """(when the first delta came, the reply) of a streamed request."""
        response = self._send({"input": "stream", "stream": True})
        first = None
        data = b""
        while line := response.readline():
            if line.startswith(b"event: delta") and first is None:
                first = time.perf_counter()
            data = line if line.startswith(b"data:") else data
        assert first is not None, data
        reply: dict[str, Any] = json.loads(data.removeprefix(b"data:"))
        return first, reply

    def _send(self, body: dict[str, Any]) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/agents/house/requests", json.dumps(body), headers)
        return self._connection.getresponse()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


class _Mqtt:
    """A publisher that waits for its reply."""

    def __init__(self, port: int) -> None:
        self._replies: queue.Queue[bytes] = queue.Queue()
        subscribed: queue.Queue[int] = queue.Queue()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "bench", protocol=mqtt.MQTTv5)
        self._client.on_message = lambda _, __, message: self._replies.put(message.payload)
        self._client.on_subscribe = lambda _, __, mid, *___: subscribed.put(mid)
        self._client.connect("127.0.0.1", port)
        self._client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.loop_start()
        self._client.subscribe("bench/reply", qos=1)
        subscribed.get(timeout=LIMIT_S)

    def ask(self) -> None:
        """A request and its reply."""
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = "bench/reply"
        self._client.publish("edged/bench/agents/house/request", b"hello", qos=1, properties=properties)
        assert b'"status":"done"' in self._replies.get(timeout=LIMIT_S)

    def close(self) -> None:
        """End the connection."""
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def mosquitto(folder: Path, port: int, more: str = "") -> Iterator[None]:
    """A broker of our own. Without TCP_NODELAY its answers wait 40 ms for the kernel.

    Args:
        more: lines of its configuration.
    """
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nlog_dest none\n{more}\n")
    with subprocess.Popen(["/usr/sbin/mosquitto", "-c", str(config)]) as process:
        try:
            _wait_for(port)
            yield
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    until = time.monotonic() + LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
