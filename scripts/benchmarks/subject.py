"""A daemon whose memory is measured: how it is started and asked, and what it says of its models."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import board, smaps
from benchmarks.calls import Connection
from benchmarks.peers import tail
from benchmarks.smaps import Memory
from edged.client import Client, EdgedCallError

START_S = 60.0
STOP_S = 60.0
POLL_S = 0.01
SETTLE_S = 1.0  # without work, before a level is read: caches of prefixes are written, freed memory is handed back
LOOKS, BETWEEN_LOOKS_S = 3, 0.2
ANSWER_TOKENS = 16  # of a request that is there to use the model, not to be read
BUDGET = "90%"  # of the board: what does not fit then does not fit a board of its own either
PRESSURE = "MEMORY_PRESSURE_"  # of the service that a bench may run in, and not of the daemon it starts
QUESTION = "In one short sentence: what is a valve?"


class SubjectError(Exception):
    """The daemon does not run, or lacks what a section measures. The text says which."""


@dataclass(frozen=True)
class Subject:
    """A running daemon."""

    pid: int
    folder: Path

    def client(self, timeout_s: float = board.REQUEST_S) -> Client:
        """A connection of one's own."""
        return Client(self.folder / "run" / "edged.sock", timeout_s=timeout_s)

    def http(self) -> Connection:
        """The same over HTTP."""
        return board.http(self.folder)

    def memory(self) -> Memory:
        """Now."""
        try:
            return smaps.of(self.pid)
        except OSError as error:
            raise SubjectError(f"the daemon has ended: {error.strerror}\n{tail(self.folder / 'edged.log')}") from None

    def settled(self) -> Memory:
        """After a moment without work: the least of some looks, for what is used for a moment only is not held."""
        time.sleep(SETTLE_S)
        looks = [self.memory()]
        for _ in range(LOOKS - 1):
            time.sleep(BETWEEN_LOOKS_S)
            looks.append(self.memory())
        return min(looks, key=lambda memory: memory.whole)


def catalog_model(name: str, context: int, **keys: str) -> str:
    """Lines of a model's table.

    Args:
        keys: more of them, values as TOML writes them.
    """
    more = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f'source = "catalog:{name}"\ncontext = {context}\n{more}'


def write_config(folder: Path, models: Mapping[str, str], *, budget: str = BUDGET, idle_unload_s: int = 3600) -> None:
    """The configuration below a folder: models by the lines of their tables, each with an agent `ask-NAME` that only
    talks. Nothing is unloaded for idleness before `idle_unload_s`."""
    text = (
        f'[node]\nid = "bench"\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
        f'models_dir = "{board.models_dir()}"\n[memory]\nbudget = "{budget}"\nidle_unload_s = {idle_unload_s}\n'
    )
    for name, lines in models.items():
        text += f"[models.{name}]\n{lines}"
        if "all-minilm" not in lines:  # it embeds, and answers nobody
            text += f'[agents.ask-{name}]\nmodel = "{name}"\nmax_tokens = 256\n'
            text += 'system = "You are a helpful assistant."\n'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "edged.toml").write_text(text)


@contextlib.contextmanager
def running(folder: Path, *, prefix: tuple[str, ...] = (), **environment: str) -> Iterator[Subject]:
    """The daemon of a folder from exec to its end.

    Args:
        prefix: goes before its command.

    Raises:
        SubjectError: it does not start; with the end of its log.
    """
    log = folder / "edged.log"
    command = [*prefix, str(Path(sys.executable).parent / "edged"), "run"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PRESSURE)}
    settings = {**inherited, "EDGED_CONFIG": str(folder / "edged.toml"), **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=settings, stderr=output)
    try:
        _wait_until_it_answers(process, folder, log)
        yield Subject(process.pid, folder)
    finally:
        process.send_signal(signal.SIGTERM)  # does nothing to one that has ended
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), board.client(folder) as client:
            client.call("status", {})  # who connects earlier waits for the start, too
            return
        if process.poll() is not None:
            raise SubjectError(f"edged ended with {process.returncode} at its start:\n{tail(log)}")
        if time.monotonic() > until:
            raise SubjectError(f"edged does not answer after {START_S:.0f} s:\n{tail(log)}")
        time.sleep(POLL_S)


# -- what is asked of it -----------------------------------------------------------------------------------------------


def ask(client: Client, model: str, text: str = QUESTION, tokens: int = ANSWER_TOKENS, **fields: Any) -> None:
    """One request of the model's agent; SubjectError where it has no answer."""
    try:
        reply = client.ask(text, agent=f"ask-{model}", max_tokens=tokens, **fields)
    except (EdgedCallError, OSError) as error:
        raise SubjectError(f"{model} was asked: {error}") from None
    if reply["status"] != "done":
        raise SubjectError(f"{model} did not answer: {reply['error']}")


def load(client: Client, model: str) -> None:
    """Bring it in."""
    try:
        client.call("models.load", {"name": model})
    except EdgedCallError as error:
        raise SubjectError(f"{model} cannot be loaded: {error}") from None


def unload(client: Client, model: str) -> None:
    """Take it out. A request that was just answered may still hold it for a moment."""
    until = time.monotonic() + STOP_S
    while not client.call("models.unload", {"name": model})["unloaded"]:
        if time.monotonic() > until:
            raise SubjectError(f"{model} is not unloaded: {client.call('status')['models'][model]}")
        time.sleep(POLL_S)


def resident(client: Client, model: str) -> bool:
    """Whether it is in memory."""
    return bool(client.call("status")["models"][model]["state"] == "ready")


def predicted(client: Client, model: str) -> int:
    """Bytes that status says it will take."""
    told = client.call("status")["models"][model]
    found = told.get("predicted_bytes")
    if not found:
        raise SubjectError(f"status tells no predicted_bytes of {model}: {told}")
    return int(found)


def budget(client: Client) -> int:
    """Bytes of `status.memory.budget_bytes`."""
    return int(client.call("status")["memory"]["budget_bytes"])


class Events:
    """The daemon's events from now on, each with the time.monotonic() of its coming. Ends with the daemon."""

    def __init__(self, subject: Subject) -> None:
        self._seen: list[tuple[float, dict[str, Any]]] = []
        self._more = threading.Condition()
        incoming = Client(subject.folder / "run" / "edged.sock").events()
        threading.Thread(target=self._read, args=(incoming,), daemon=True).start()

    def first(
        self, wanted: Callable[[dict[str, Any]], bool], within_s: float, *, since: float = 0.0
    ) -> tuple[float, dict[str, Any]] | None:
        """The first one like that which came (not before `since`) or comes within so many seconds."""
        with self._more:
            self._more.wait_for(lambda: self._found(wanted, since) is not None, within_s)
            return self._found(wanted, since)

    def _found(self, wanted: Callable[[dict[str, Any]], bool], since: float) -> tuple[float, dict[str, Any]] | None:
        return next(((at, event) for at, event in self._seen if at >= since and wanted(event)), None)

    def since(self, began: float) -> list[str]:
        """Names of all that came since then, each with its model where it is about one, in order."""
        with self._more:
            seen = [event for at, event in self._seen if at >= began]
        return [" ".join(str(event[key]) for key in ("event", "model") if key in event) for event in seen]

    def _read(self, incoming: Iterator[dict[str, Any]]) -> None:
        with contextlib.suppress(OSError):
            for event in incoming:
                with self._more:
                    self._seen.append((time.monotonic(), event))
                    self._more.notify_all()
