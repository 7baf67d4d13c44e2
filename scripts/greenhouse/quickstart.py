"""Run the greenhouse example once and show what it does (scripts/quickstart). Needs what scripts/setup installs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
DEFAULT, SMALLEST = "qwen2.5-coder-0.5b-instruct-q4_k_m", "smollm2-135m-instruct-q4_1"
DEFAULT_NEEDS_KIB = 1_200_000  # of MemAvailable: twice what the default model takes with its context
START_S = 30.0  # a daemon that is not there by then never will be
REQUEST_S = 120  # the first request loads the model and computes the prompt; minutes on the smallest board


def main() -> int:
    """Everything in order; whatever was started is ended, also after an error."""
    model, models_dir = choose_model()
    folder = Path(tempfile.mkdtemp(prefix="edged-quickstart-"))
    try:
        with contextlib.ExitStack() as stack:
            port, cloud = free_port(), free_port()
            environment = write_config(folder, port, cloud, model, models_dir)
            stack.enter_context(broker(folder, port))
            stack.enter_context(
                running(
                    "device",
                    [sys.executable, str(HERE / "device.py"), str(folder / "plant.db"), str(port)],
                    folder,
                    until="device: ready",
                )
            )
            stack.enter_context(
                running("cloud", [sys.executable, str(HERE / "cloud.py"), str(cloud)], folder, until="cloud: ready")
            )
            started = time.perf_counter()
            stack.enter_context(
                running("edged", [str(BIN / "edged"), "run"], folder, env=environment, until="is ready")
            )
            say(f"daemon ready after {time.perf_counter() - started:.1f} s; its files are in {folder}")
            wait_until_online(port)
            return show(folder, port, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def show(folder: Path, port: int, environment: dict[str, str]) -> int:
    """One request that writes, over MQTT; one that reads and one that streams, over the Unix socket; one too hard for
    the board, over HTTP."""
    say('\n1. over MQTT: mosquitto_rr -V 5 -t edged/greenhouse/agents/house/request -m "open the north valve" ...')
    reply = ask_mqtt(port, "open the north valve")
    answer(reply)
    say('\n2. over the Unix socket: edged ask "how full is the south tank?"')
    second = ask_socket("how full is the south tank?", environment)
    answer(second)
    say('\n3. streamed: edged ask --stream "why do plants need light?"')
    streamed = subprocess.run(
        [BIN / "edged", "ask", "--stream", "why do plants need light?"], env=environment, check=False
    )
    hard = "write a detailed plan for the next three months"
    say(
        "\n4. too hard for the board, over HTTP: curl --unix-socket http.sock http://edged/v1/agents/house/requests ..."
    )
    fourth = ask_http(folder / "run" / "http.sock", hard)
    answer(fourth)
    with contextlib.closing(sqlite3.connect(folder / "plant.db")) as database:
        commands = database.execute("SELECT valve, position, count(*) FROM valve_commands GROUP BY 1, 2").fetchall()
    say("\nvalve commands in the plant's database: " + "; ".join(f"{v} {p}, {n} time(s)" for v, p, n in commands))
    fine = reply["status"] == second["status"] == fourth["status"] == "done" and streamed.returncode == 0
    say("done; nothing is left running" if fine else "a request failed: see its error above")
    return 0 if fine else 1


def choose_model() -> tuple[str, Path]:
    """The default model, or the smallest where that cannot be had or would not fit."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "models"
    available = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("MemAvailable")
    )
    if available < DEFAULT_NEEDS_KIB:
        say(f"{DEFAULT} would not fit in {available // 1024} MiB: taking {SMALLEST}, which knows little")
    elif pull(DEFAULT, cache):
        return DEFAULT, cache
    else:
        say(f"{DEFAULT} cannot be had: taking {SMALLEST}, which knows little")
    if not pull(SMALLEST, cache):
        sys.exit("quickstart: no model can be had; the reasons are above, and running it again goes on from there")
    return SMALLEST, cache


def pull(model: str, cache: Path) -> bool:
    """Fetch a model unless it is there."""
    return subprocess.run([BIN / "edged", "models", "pull", "--models-dir", cache, model], check=False).returncode == 0


def write_config(folder: Path, port: int, cloud: int, model: str, models_dir: Path) -> dict[str, str]:
    """The example's configuration with a drop-in for this folder; returns the environment that finds it."""
    shutil.copy(HERE / "edged.toml", folder / "edged.toml")
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "quickstart.toml").write_text(
        f'[node]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\nmodels_dir = "{models_dir}"\n'
        f'[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\n'
        f'[databases.plant]\npath = "{folder}/plant.db"\n'
        f'[models.small]\nsource = "catalog:{model}"\n'
        f'[upstreams.cloud]\nbase_url = "http://127.0.0.1:{cloud}/v1"\nmodel = "stand-in"\n'
        '[agents.house]\nprivacy = "any"\n'  # without it nothing leaves the board
    )
    return {**os.environ, "EDGED_CONFIG": str(folder / "edged.toml")}


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def broker(folder: Path, port: int) -> Iterator[None]:
    """A mosquitto of our own on loopback. Without TCP_NODELAY its answers wait 40 ms for the kernel."""
    (folder / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nlog_dest stderr\npersistence false\n"
    )
    path = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    with running("mosquitto", [str(path), "-c", str(folder / "mosquitto.conf")], folder, until="running"):
        yield


@contextlib.contextmanager
def running(
    name: str, command: list[str], folder: Path, *, until: str, env: dict[str, str] | None = None
) -> Iterator[None]:
    """A child process, from the line that says it is ready until the end of the block."""
    log = folder / f"{name}.log"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    ready = threading.Event()

    def copy() -> None:
        assert process.stdout is not None
        with log.open("w") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if until in line:
                    ready.set()
        ready.set()  # ended: whoever waits looks at the exit status

    threading.Thread(target=copy, daemon=True).start()
    try:
        if not ready.wait(START_S) or process.poll() is not None:
            sys.exit(f"quickstart: {name} did not start:\n{log.read_text()}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_online(port: int) -> None:
    """The daemon is ready before it knows its broker; what is published before its first subscription is lost."""
    topic = ["-t", "edged/greenhouse/status", "-C", "1", "-W", str(int(START_S))]
    command = ["mosquitto_sub", "-V", "5", "-h", "127.0.0.1", "-p", str(port), *topic]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if '"online"' not in done.stdout:
        sys.exit(f"quickstart: the daemon did not come online at its broker: {done.stdout}{done.stderr}")


def ask_mqtt(port: int, text: str) -> dict[str, Any]:
    """A request with Debian's own MQTT client; no line of edged's code is used."""
    command = ["mosquitto_rr", "-V", "5", "-h", "127.0.0.1", "-p", str(port), "-q", "1", "-W", str(REQUEST_S)]
    topics = ["-t", "edged/greenhouse/agents/house/request", "-e", "quickstart/reply"]
    done = subprocess.run([*command, *topics, "-m", text], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"quickstart: no reply over MQTT: {done.stderr}")
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


def ask_socket(text: str, environment: dict[str, str]) -> dict[str, Any]:
    """A request over the Unix socket."""
    done = subprocess.run(
        [BIN / "edged", "ask", "--json", text], env=environment, capture_output=True, text=True, check=False
    )
    if not done.stdout:
        sys.exit(f"quickstart: no reply over the socket: {done.stderr}")
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


def ask_http(path: Path, text: str) -> dict[str, Any]:
    """A request over HTTP on its Unix socket, with Python's own client."""
    connection = http.client.HTTPConnection("localhost", timeout=REQUEST_S)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.connect(str(path))
        connection.sock = unix
        body, headers = json.dumps({"input": text}), {"Content-Type": "application/json"}
        connection.request("POST", "/v1/agents/house/requests", body, headers)
        reply: dict[str, Any] = json.loads(connection.getresponse().read())
    return reply


def answer(reply: dict[str, Any]) -> None:
    """What came back and where the time went."""
    say(f"   {reply['output'] if reply['status'] == 'done' else reply['error']}")
    for call in reply["tool_calls"]:
        say(f"   called {call['name']}({json.dumps(call['arguments'])}) -> {json.dumps(call['result'])}")
    t, used, route = reply["timing"], reply["usage"], reply["route"]
    if route["where"] == "cloud":
        say(f"   answered by {route['model']} (upstream {route['upstream']}), because: {route['reason']}")
    say(
        f"   {t['total_ms']:.0f} ms: queue {t['queue_ms']:.0f}, load {t['load_ms']:.0f}, prompt {t['prefill_ms']:.0f}, "
        f"generation {t['decode_ms']:.0f}, tools {t['tools_ms']:.1f}, other {t['other_ms']:.0f}; "
        f"{used['prompt_tokens']} prompt tokens, {used['cached_tokens']} of them cached, "
        f"{used['completion_tokens']} generated in {used['decode_steps']} steps"
    )


def say(text: str) -> None:
    """Print at once: the output may go into a pipe."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
