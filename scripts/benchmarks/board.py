"""The daemon that is measured, its model, and the same prompt and schema for a peer."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.calls import Connection
from benchmarks.ipc import daemon
from benchmarks.report import say
from benchmarks.streams import TOPICS, question
from edged import config
from edged.agent.dialects.chat_template import Dialect
from edged.agent.prompts import Prompts
from edged.agent.styles import REPLY, specs
from edged.client import Client, EdgedCallError
from edged.engines.llama import gguf
from edged.models import catalog
from edged.types import Message

__all__ = [
    "CONTEXT",
    "SOURCE",
    "Prompting",
    "batch_streams",
    "client",
    "daemon",
    "http",
    "killable",
    "model",
    "models_dir",
    "threads",
    "write_plain_config",
]

MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m"  # the project's default
SOURCE = f"catalog:{MODEL}"
CONTEXT = 4096  # tokens of one request, for edged and for every peer
REQUEST_S = 600.0
STOP_S = 30.0
BATCH_TOKENS = 512  # of an answer: it lasts longer than what is measured beside it


def threads() -> int:
    """What every peer computes with: the cores this process may use."""
    return len(os.sched_getaffinity(0))


def models_dir() -> Path:
    """Where the weights are kept, shared with scripts/quickstart."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "models"


@functools.cache
def model() -> Path:
    """The model's file; pulled where it is missing.

    Raises:
        SystemExit: it cannot be had; `edged models pull` has said why.
    """
    command = [str(Path(sys.executable).parent / "edged"), "models", "pull", "--models-dir", str(models_dir()), MODEL]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        sys.exit(f"{MODEL} cannot be had, see above")
    return Path(catalog.resolve(SOURCE, models_dir()).path)


def client(folder: Path) -> Client:
    """A connection to the daemon of a folder."""
    return Client(folder / "run" / "edged.sock", timeout_s=REQUEST_S)


@contextlib.contextmanager
def killable(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that may be killed meanwhile, from exec on: whoever uses it connects when its socket answers."""
    environment = {**os.environ, "EDGED_CONFIG": str(folder / "edged.toml")}
    with (folder / "edged.log").open("ab") as log:
        process = subprocess.Popen([str(Path(sys.executable).parent / "edged"), "run"], env=environment, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)  # does nothing to one that has ended
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def http(folder: Path) -> Connection:
    """A connection to the daemon's HTTP socket."""
    return Connection.unix(folder / "run" / "http.sock", timeout_s=REQUEST_S)


def write_plain_config(folder: Path, threads: str = '"auto"') -> None:
    """edged's configuration with the plain model `small` and an agent that only talks, below a folder."""
    (folder / "edged.toml").write_text(
        f'[node]\nid = "bench"\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
        f'models_dir = "{models_dir()}"\n[compute]\nthreads = {threads}\n'
        f'[models.small]\nsource = "{SOURCE}"\ncontext = {CONTEXT}\n'
        '[agents.talker]\nmodel = "small"\nsystem = "You are a helpful assistant."\n'
    )


@contextlib.contextmanager
def batch_streams(folder: Path, count: int) -> Iterator[Callable[[], int]]:
    """So many long answers of batch priority under way, all of them past their first piece of text; each that ends is
    followed by another. Gives how many are under way."""
    texts: list[threading.Event] = [threading.Event() for _ in range(count)]
    under_way: set[str] = set()
    stop = threading.Event()

    def work(number: int) -> None:
        with client(folder) as own:
            for turn in itertools.count():
                if stop.is_set():
                    return
                id = f"batch-{number}-{turn}-{time.monotonic_ns()}"
                under_way.add(id)
                own.ask(
                    question(TOPICS[number % len(TOPICS)]),
                    agent="talker",
                    id=id,
                    priority="batch",
                    max_tokens=BATCH_TOKENS,
                    on_text=lambda _: texts[number].set(),
                )
                under_way.discard(id)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    try:
        until = time.monotonic() + REQUEST_S
        for text in texts:
            if not text.wait(max(0.0, until - time.monotonic())):
                say("a batch stream has not begun")  # it is told, and what is measured is still measured
        yield lambda: len(under_way)
    finally:
        stop.set()
        with client(folder) as other:
            for id in list(under_way):
                with contextlib.suppress(EdgedCallError):
                    other.call("request.cancel", {"name": id})
        for worker in workers:
            worker.join()


class Prompting:
    """An agent's deciding prompt and the schema of its calls, for a peer: rendered by edged's own code from the same
    configuration, so both models read the same bytes."""

    def __init__(self, folder: Path, agent: str = "house") -> None:
        settings = config.load(str(folder / "edged.toml"))
        pairs = gguf.metadata(model())
        template = pairs["tokenizer.chat_template"]
        assert isinstance(template, str)
        self._spoken = Dialect(template, gguf.special_tokens(model(), pairs))
        self._agent = settings.agents[agent]
        self._prompts = Prompts(self._agent, settings.tools, self._spoken)
        self._tools = (*specs({name: settings.tools[name] for name in self._agent.tools}), REPLY)

    @property
    def system(self) -> str:
        """System text and tools as the model's template writes them in the system message; no examples."""
        told = (Message("system", self._agent.system),)
        text = "".join(segment.text for segment in self._spoken.render(told, self._tools, generate=False))
        return text.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")

    def prompt(self, text: str) -> str:
        """With the mark a call begins with: edged's grammar forces it, here it is part of the prompt."""
        made = self._prompts.deciding((), (Message("user", text),), ())
        return "".join(segment.text for segment in (*made.prefix, *made.turn)) + self._spoken.calls.before

    def schema(self) -> dict[str, Any]:
        """A JSON Schema of one call: any of the tools, and `reply` as edged offers it."""
        return {"anyOf": [_call(tool.name, tool.parameters) for tool in self._tools]}


def _call(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    closed = {"additionalProperties": False, **parameters}
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": closed},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
