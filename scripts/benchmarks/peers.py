"""The servers edged is measured against, each a child process on a loopback port.

* llama.cpp's server: the file of `--peer-bin`, else `llama-server` on the PATH, else the one in the `xllamacpp` wheel
  (llama.cpp's own C++ server in process, behind the same HTTP; `xllamacpp_server.py` starts it).
* `llama_cpp.server`, the OpenAI server of llama-cpp-python, on the very wheel that edged runs on.

What is missing is installed from the configured package index into an environment of its own below the user's cache
folder, once: complete or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.calls import Connection

# The newest wheel when the figures in the README were made. It calls llama.cpp's server by its parameters' names, which
# change without notice, so another version may not start with ours.
XLLAMACPP = "xllamacpp==2026.10.11549"
# What llama_cpp.server imports (llama-cpp-python's extra `server`), in the versions of our own lock: its tests and ours
# run with them.
SERVER_NEEDS = ("fastapi", "pydantic-settings", "pyyaml", "sse-starlette", "starlette-context", "uvicorn")

SCRIPTS = Path(__file__).parent.parent
LAUNCHER = Path(__file__).parent / "xllamacpp_server.py"
LOCK = SCRIPTS / "requirements.lock"
START_S = 180.0  # a peer that is not healthy by then never will be: loading takes seconds, on a busy board a minute
STOP_S = 10.0  # after SIGTERM, before SIGKILL
POLL_S = 0.002  # between two looks at its health: what a client that cannot wait would do
LOG_TAIL_LINES = 25
REQUEST_S = 600.0


class PeerError(Exception):
    """A peer cannot be installed, or does not run. Its text has the end of the log."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every llama.cpp server is started with.

    context: tokens one request may use; a slot has as many cells of its own, as a unified pool would make every row
        attend over the cells of all slots (masked, but computed): slower on a CPU.
    warm_up: an empty run before the first request. Without it the server is up earlier.
    """

    model: Path
    slots: int
    context: int
    threads: int
    unified: bool = False
    warm_up: bool = True
    slot_save_path: Path | None = None

    def flags(self, port: int) -> list[str]:
        """llama-server's own flags; the launcher takes the same. Prompt cache, continuous batching and flash attention
        (where the backend has it) are on by default."""
        save = ["--slot-save-path", str(self.slot_save_path)] if self.slot_save_path else []
        return [
            *("--model", str(self.model), "--host", "127.0.0.1", "--port", str(port)),
            *("--parallel", str(self.slots), "--ctx-size", str(self.slots * self.context)),
            *("--threads", str(self.threads), "--threads-batch", str(self.threads)),
            "--kv-unified" if self.unified else "--no-kv-unified",
            "--warmup" if self.warm_up else "--no-warmup",
            *save,
        ]


@dataclass(frozen=True, kw_only=True)
class Router:
    """What llama.cpp's server is started with for several models.

    models_dir: GGUF files; a model's name is its file's stem. models_max: loaded at once. cells: of a model's context,
        shared by its slots.
    """

    models_dir: Path
    models_max: int
    slots: int
    cells: int
    threads: int

    def flags(self, port: int) -> list[str]:
        """What is not named is on its default."""
        return [
            *("--models-dir", str(self.models_dir), "--models-max", str(self.models_max)),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--parallel", str(self.slots), "--ctx-size", str(self.cells), "--kv-unified"),
            *("--threads", str(self.threads), "--threads-batch", str(self.threads)),
        ]


@dataclass(frozen=True)
class Program:
    """How a peer is started, and what it is: name and version for the table."""

    command: tuple[str, ...]
    label: str
    version: str


@dataclass
class Peer:
    """A running peer."""

    program: Program
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    ready_ms: float = 0.0  # from exec to healthy
    _open: list[Connection] = field(default_factory=list)

    def connect(self) -> Connection:
        """A connection of one's own, closed with the peer."""
        self._open.append(Connection.tcp(self.port, timeout_s=REQUEST_S))
        return self._open[-1]

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, and wait until it has ended."""
        for connection in self._open:
            connection.close()
        self._open.clear()
        self.process.send_signal(number)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def llama_server(given: Path | None = None) -> Program:
    """llama.cpp's server: as given, else from the PATH, else the wheel's."""
    found = given or shutil.which("llama-server")
    if found:
        try:
            told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        except OSError as error:
            raise PeerError(f"{found} does not run: {error}") from None
        match = re.search(r"version: (.*)", told.stdout + told.stderr)
        if match is None:
            raise PeerError(f"{found} --version does not tell a version: is it llama.cpp's server?")
        return Program((str(found),), "llama-server", f"{match[1]} ({found})")
    python = environment()
    asked = [str(python), str(LAUNCHER), "--version"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return Program((str(python), str(LAUNCHER)), "llama-server", " ".join(version.split()))


def python_server() -> Program:
    """llama_cpp.server on the bindings edged runs on."""
    code = "import llama_cpp; print(llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())"
    asked = [str(environment()), "-c", code]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return Program((str(environment()), "-m", "llama_cpp.server"), "llama_cpp.server", " ".join(version.split()))


@contextlib.contextmanager
def serving(program: Program, settings: Settings, folder: Path) -> Iterator[Peer]:
    """llama.cpp's server from exec to its end, healthy in between."""
    peer = start(program, settings, folder)
    try:
        yield peer
    finally:
        peer.stop()


def start(program: Program, settings: Settings, folder: Path) -> Peer:
    """A llama.cpp server that has become healthy; whoever calls stops it."""
    port = free_port()
    return _started(program, [*program.command, *settings.flags(port)], port, "/health", folder)


def has_router(program: Program) -> bool:
    """Whether it takes a folder of models and loads what is asked for."""
    told = subprocess.run([*program.command, "--help"], capture_output=True, text=True, check=False)
    return "--models-dir" in told.stdout + told.stderr


@contextlib.contextmanager
def serving_router(program: Program, router: Router, folder: Path, prefix: tuple[str, ...] = ()) -> Iterator[Peer]:
    """llama.cpp's server for a folder of models, from exec to its end; each model runs in a child of its own.

    Args:
        prefix: goes before its command.
    """
    port = free_port()
    peer = _started(program, [*prefix, *program.command, *router.flags(port)], port, "/health", folder)
    try:
        yield peer
    finally:
        peer.stop()


@contextlib.contextmanager
def serving_python(program: Program, settings: Settings, folder: Path) -> Iterator[Peer]:
    """llama_cpp.server from exec to its end. It has one sequence, whatever the number of slots."""
    port = free_port()
    flags = [
        *("--model", str(settings.model), "--host", "127.0.0.1", "--port", str(port)),
        *("--n_ctx", str(settings.context), "--flash_attn", "true", "--verbose", "false"),
        *("--interrupt_requests", "false"),  # else a new request ends the stream of the one before
        *("--n_threads", str(settings.threads), "--n_threads_batch", str(settings.threads)),
    ]
    peer = _started(program, [*program.command, *flags], port, "/v1/models", folder)
    try:
        yield peer
    finally:
        peer.stop()


def _started(program: Program, command: list[str], port: int, health: str, folder: Path) -> Peer:
    log = folder / f"{program.label}-{port}.log"
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    peer = Peer(program, port, process, log)
    try:
        _wait_until_healthy(peer, health)
    except BaseException:
        peer.stop()
        raise
    peer.ready_ms = (time.perf_counter() - began) * 1000
    return peer


def _wait_until_healthy(peer: Peer, path: str) -> None:
    until = time.monotonic() + START_S
    while not _answers(peer.port, path):
        if peer.process.poll() is not None:
            raise PeerError(f"{peer.program.label} ended with {peer.process.returncode}:\n{tail(peer.log)}")
        if time.monotonic() > until:
            raise PeerError(f"{peer.program.label} is not healthy after {START_S:.0f} s:\n{tail(peer.log)}")
        time.sleep(POLL_S)


def _answers(port: int, path: str) -> bool:
    connection = Connection.tcp(port, timeout_s=START_S)
    try:
        return connection.get(path)[0] == 200
    except OSError:
        return False
    finally:
        connection.close()


def tail(log: Path) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- the environment ---------------------------------------------------------------------------------------------------


def environment() -> Path:
    """The peers' Python, installed where it is missing.

    Raises:
        PeerError: with pip's words.
    """
    wheel, pinned = _bindings(), pins(LOCK.read_text())
    text = "\n".join((XLLAMACPP, wheel.parent.name, *pinned, platform.python_version()))
    folder = cache_root() / hashlib.sha256(text.encode()).hexdigest()[:16]
    python = folder / "bin" / "python"
    if python.exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another bench may be at it
        if not python.exists():
            _install(folder, wheel, pinned)
    return python


def cache_root() -> Path:
    """Where the environments lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "peers"


def _bindings() -> Path:
    """The wheel edged runs on; built where it is missing."""
    built = subprocess.run(
        [sys.executable, str(SCRIPTS / "llama_wheel.py")], check=False, stdout=subprocess.PIPE, text=True
    )
    if built.returncode:
        raise PeerError("no llama-cpp-python, see above")
    return Path(built.stdout.splitlines()[-1])


def pins(lock: str) -> list[str]:
    """Every `name==version`, with its marker, of a lock file."""
    return [pin.strip() for pin in re.findall(r"^([A-Za-z0-9._-]+==[^\\\n]+)", lock, re.MULTILINE)]


def _install(folder: Path, wheel: Path, pinned: list[str]) -> None:
    print(f"installing the peers into {folder}, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="installing-") as name:
        made = Path(name) / "environment"  # it works under any name as long as its scripts are not used
        constraints = Path(name) / "constraints.txt"
        constraints.write_text("\n".join(pinned) + "\n")
        _told([sys.executable, "-m", "venv", str(made)])
        pip = [str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        _told([*pip, XLLAMACPP, str(wheel), *SERVER_NEEDS])
        made.replace(folder)


def _told(command: list[str]) -> None:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise PeerError(f"{' '.join(command)}\n{done.stdout.strip()}\ncannot install the peers (pip config list)")


def about(*programs: Program) -> dict[str, Any]:
    """Name to version."""
    return {program.label: program.version for program in programs}
