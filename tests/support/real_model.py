"""The real daemon with the smallest real model, and what its engine says of itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged.client import AsyncClient
from edged.engines.llama import predict
from edged.types import MemoryNeed, ModelSpec
from tests.support.daemon import START_S, Daemon

FILE = "smollm2-135m-instruct-q4_1.gguf"
SMALL = 256  # tokens that one request of "talk" may use; its model's context holds two such requests
# One thread: two that wait for each other are many times slower where a neighbour wants the cores as well.
CONFIG = """
[compute]
threads = 1
[models.small]
source = "file:{path}"
context = 256
[models.long]
source = "file:{path}"
context = 2048
[agents.house]
model = "long"
[agents.talk]
model = "small"
max_tokens = 80
system = "You are the assistant of a small board in a house. Answer in short sentences, and only what is asked."
[agents.reader]
model = "long"
max_tokens = 100
system = "You read long texts and say what is in them. Answer in short sentences, and only what is asked."
"""
# A text that is no shorter: the model cannot end by itself before its tokens are used up.
ENDLESS = {"type": "string", "minLength": 2000}


def model_path() -> Path:
    """Of the smallest model; scripts/test pulls it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(os.environ.get("EDGED_TEST_MODELS_DIR") or cache / "edged" / "models") / FILE
    assert path.is_file(), f"{path} is missing: scripts/test pulls it"
    return path


def real(folder: Path, *, broker: int | None = None) -> Daemon:
    """A daemon with agents "talk" and "reader"; it is not started."""
    daemon = Daemon(folder, broker=broker)
    daemon.drop_in(CONFIG.format(path=model_path()))
    return daemon


class Calculated:
    """Implements `interfaces.Sizer` by the files' numbers alone."""

    async def predict(self, spec: ModelSpec, spare: Callable[[], int]) -> MemoryNeed:
        """What they say."""
        return await asyncio.to_thread(predict.predict, spec)

    async def observe(self, spec: ModelSpec, measured_bytes: int) -> None:
        """Nothing is learned."""


class Board:
    """A running daemon and a client of it that looks after it."""

    def __init__(self, daemon: Daemon, client: AsyncClient) -> None:
        self.daemon, self.client = daemon, client

    async def engine(self, model: str = "small") -> dict[str, Any]:
        """What `status` says of a loaded model's engine."""
        status = await self.client.call("status")
        engine: dict[str, Any] = status["engine"][model]
        return engine

    async def until(self, model: str = "small", **wanted: int) -> dict[str, Any]:
        """Ask until the engine says so."""
        async with asyncio.timeout(START_S):
            while True:
                engine = await self.engine(model)
                if all(engine[name] == value for name, value in wanted.items()):
                    return engine

    async def fill(self) -> None:
        """Two requests at once that need all the memory of "small"."""
        words = SMALL - 50
        asks = [self.client.ask(f"{word} " * words, agent="talk") for word in ("red", "blue")]
        for reply in await asyncio.gather(*asks):
            assert reply["status"] == "done", reply["error"]
            assert reply["usage"]["prompt_tokens"] > words
