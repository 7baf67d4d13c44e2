"""For tests, benchmarks and authors of tools: an engine that follows a script instead of a model.

A configuration uses it with `source = "scripted:/path/to/script.toml"`; everything else of the daemon is real:

    [[replies]]
    match = "open the (north|south) valve"      # a regular expression, searched in the user's text
    calls = [{ name = "set_valve", arguments = { valve = "north", position = "open" } }]
    text = "It is open."                        # the final answer
    token_s = 0.0                               # seconds between two words of it
    confidence = 1.0                            # of each call

The first entry that matches counts; without one the answer is the user's text.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.clock import Stopwatch
from edged.errors import ConfigError
from edged.interfaces import Residency
from edged.types import JSON, Completion, Finish, Job, ModelSpec

SCHEME = "scripted:"


class Scripted(Struct, frozen=True, forbid_unknown_fields=True):
    """What to do when the user's text matches."""

    match: str
    calls: tuple[dict[str, JSON], ...] = ()
    text: str = "done"
    token_s: float = 0.0
    confidence: float = 1.0


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    replies: tuple[Scripted, ...] = ()


def read_script(path: Path) -> Script:
    """A script from its file; ConfigError names what is wrong."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Script)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(str(path), "", f"no script: {error}") from None


class ScriptedEngine:
    """Implements `interfaces.Engine` and `interfaces.Loader`. Belongs to the dialect of a model without a template:
    calls are one JSON object, results are messages that begin with "Result: "."""

    def __init__(self, residency: Residency | None = None) -> None:
        self.residency = residency
        self.jobs: list[Job] = []  # what was asked, newest last; only the last KEPT
        self._scripts: dict[str, Script] = {}

    KEPT = 100

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def load(self, spec: ModelSpec) -> None:
        """Read the script."""
        self._scripts[spec.name] = read_script(Path(spec.path))

    async def unload(self, name: str) -> None:
        """Forget the script."""
        del self._scripts[name]

    def progress(self) -> tuple[bool, float]:
        """Never busy."""
        return False, 0.0

    def stats(self) -> list[JSON]:
        """No models."""
        return []

    async def generate(self, job: Job, on_text: Callable[[str], None] | None = None) -> Completion:
        """See interfaces.Engine."""
        self.jobs = [*self.jobs[-self.KEPT + 1 :], job]
        watch = Stopwatch()
        held = self.residency.hold(job.model) if self.residency else contextlib.nullcontext(0.0)
        async with held as load_ms:
            script = self._scripts.get(job.model, Script())
            question, results = _dialogue(job)
            entry = next((r for r in script.replies if re.search(r.match, question)), Scripted("", text=question))
            if job.confidence_marker is not None:  # the agent wants a decision
                call = entry.calls[results] if results < len(entry.calls) else {"name": "reply", "arguments": {}}
                text = msgspec.json.encode(call).decode()
                return _completion(job, text, load_ms, watch.ms(), logprob=math.log(entry.confidence))
            await _stream(entry, on_text)
            return _completion(job, entry.text, load_ms, watch.ms(), logprob=None)


def _dialogue(job: Job) -> tuple[str, int]:
    """The last thing the user said, and how many results of tools came after it."""
    said = [segment.text for segment in job.turn if segment.literal]
    results = 0
    while said and said[-1].startswith("Result: "):
        said.pop()
        results += 1
        if said and said[-1].startswith('{"name"'):
            said.pop()
    return (said[-1] if said else ""), results


async def _stream(entry: Scripted, on_text: Callable[[str], None] | None) -> None:
    for word in re.findall(r"\S+\s*|\s+", entry.text):
        if entry.token_s:
            await asyncio.sleep(entry.token_s)
        if on_text:
            on_text(word)


def _completion(job: Job, text: str, load_ms: float, taken_ms: float, logprob: float | None) -> Completion:
    words = len(text.split())
    return Completion(
        text=text,
        finish=Finish.STOP,
        prompt_tokens=sum(len(segment.text.split()) for segment in (*job.prefix, *job.turn)),
        cached_tokens=0,
        completion_tokens=words,
        forced_tokens=0,
        decode_steps=words,
        logprob=logprob,
        load_ms=load_ms,
        queue_ms=0.0,
        prefill_ms=0.0,
        first_token_ms=taken_ms,
        decode_ms=0.0,
    )
