"""For tests, benchmarks and authors of tools: an engine that follows a script instead of a model.

A configuration uses it with `source = "scripted:/path/to/script.toml"`; everything else of the daemon is real:

    [[replies]]
    match = "open the (north|south) valve"      # a regular expression, searched in the user's text
    sees = "bring water"                        # optional: another, searched in the dialogue, examples included
    calls = [{ name = "set_valve", arguments = { valve = "north", position = "open" } }]
    text = "It is open."                        # the final answer
    token_s = 0.0                               # seconds between two words of it
    confidence = 1.0                            # of each call

`\\1` in an argument or in the text is what the first group of `match` found.

    [[self_test]]                               # as in a manifest of the catalog: what an update asks it
    prompt = "open the north valve"
    expect = { contains = "open" }

The first entry that matches counts; without one the answer is the user's text. It ends where a stop string of the
request comes, and is as long as it is written, whatever `max_tokens` says. Where a client offers tools of its own, the
calls that are among them are made, one a turn. Every token, which is a word here, is certain.

With `dialect = "compact"` before the replies it decides in that dialect, and all calls of an entry that are still to be
made at once, as far as the grammar has them; `unable` and `escalate` are among its calls then.

With `dimensions = 8` it is the script of an embedding model: the same text has always the same vector.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
import struct
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from edged.engines.kind import (
    BaseEngine,
    ChatTemplate,
    EngineKind,
    FileFacts,
    Surroundings,
    embeds_only,
    generates_only,
)
from edged.errors import BadRequest, ConfigError, ModelUnavailable
from edged.host.clock import Stopwatch
from edged.interfaces import OnPiece, Residency
from edged.types import JSON, Completion, Embeddings, EmbedJob, Finish, Job, ModelSpec, Priority, SelfTest, TokenLogprob

SCHEME = "scripted:"  # of sources


class Scripted(Struct, frozen=True, forbid_unknown_fields=True):
    """What to do when the user's text matches."""

    match: str
    sees: str = ""
    calls: tuple[dict[str, JSON], ...] = ()
    text: str = "done"
    token_s: float = 0.0
    confidence: float = 1.0


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    """The file. dimensions: of the vectors; 0: it makes none. dialect: that it decides in, if it is taught one."""

    replies: tuple[Scripted, ...] = ()
    dialect: str = ""
    dimensions: int = 0
    self_test: tuple[SelfTest, ...] = ()


def read_script(path: Path) -> Script:
    """A script from its file; ConfigError names what is wrong."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8-sig")), Script)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(path), "", f"no script: {error}") from None


class ScriptedKind(EngineKind):
    """Scripts as a kind of engine. Their dialect is that of a model without a template: calls are one JSON object,
    results are messages that begin with "Result: "."""

    name = "scripted"
    scheme = "scripted"
    embeds = True

    def make(self, around: Surroundings) -> BaseEngine:
        """See EngineKind."""
        return ScriptedEngine()

    def chat_template(self, path: Path) -> ChatTemplate:
        """See EngineKind."""
        with contextlib.suppress(ConfigError):  # the load says what is wrong
            return ChatTemplate(taught=read_script(path).dialect)
        return ChatTemplate()

    def facts(self, path: Path) -> FileFacts:
        """See EngineKind."""
        with contextlib.suppress(ConfigError):  # the load says what is wrong
            return FileFacts(format=self.name, embeds=bool(read_script(path).dimensions))
        return FileFacts(format=self.name)

    def self_tests(self, path: Path) -> tuple[SelfTest, ...]:
        """See EngineKind."""
        try:
            return read_script(path).self_test
        except ConfigError as error:
            raise ModelUnavailable(str(error)) from None


class ScriptedEngine(BaseEngine):
    """Says what scripts say. See BaseEngine."""

    def __init__(self, residency: Residency | None = None) -> None:
        self.residency = residency
        self.jobs: list[Job] = []  # what was asked, newest last; only the last KEPT
        self.warmed: list[Job] = []  # the same of `warm`
        self.trims = 0  # how often it was told to
        self._scripts: dict[str, Script] = {}
        self._batch_goes_on = asyncio.Event()
        self._batch_goes_on.set()

    KEPT = 100

    async def load(self, spec: ModelSpec) -> None:
        """Read the script."""
        try:
            self._scripts[spec.name] = read_script(Path(spec.path))
        except ConfigError as error:
            raise ModelUnavailable(str(error)) from None

    async def unload(self, name: str) -> None:
        """Forget the script."""
        del self._scripts[name]

    async def trim(self) -> int:
        """Nothing takes memory."""
        self.trims += 1
        return 0

    def pause_batch(self, paused: bool) -> None:
        """Batch jobs say no further word while paused."""
        if paused:
            self._batch_goes_on.clear()
        else:
            self._batch_goes_on.set()

    async def warm(self, job: Job) -> None:
        """See interfaces.Engine: brings the script in; there is nothing to compute."""
        held = self.residency.hold(job.model) if self.residency else contextlib.nullcontext(0.0)
        async with held:
            self.warmed = [*self.warmed[-self.KEPT + 1 :], job]

    async def embed(self, job: EmbedJob) -> Embeddings:
        """See interfaces.Embedder."""
        held = self.residency.hold(job.model) if self.residency else contextlib.nullcontext(0.0)
        async with held:
            has = self._scripts.get(job.model, Script()).dimensions
            if not has:
                raise generates_only(job.model)
            if job.dimensions not in (None, has):
                raise BadRequest(f"dimensions: the model makes vectors of {has}, which cannot be cut: leave it out")
            vectors = tuple(_vector(text, has, unit=job.normalise) for text in job.texts)
            return Embeddings(vectors=vectors, tokens=sum(len(text.split()) for text in job.texts))

    async def generate(
        self, job: Job, on_text: Callable[[str], None] | None = None, *, on_piece: OnPiece | None = None
    ) -> Completion:
        """See interfaces.Engine."""
        self.jobs = [*self.jobs[-self.KEPT + 1 :], job]
        watch = Stopwatch()
        held = self.residency.hold(job.model) if self.residency else contextlib.nullcontext(0.0)
        async with held as load_ms:
            script = self._scripts.get(job.model, Script())
            if script.dimensions:
                raise embeds_only(job.model)
            question, results = _dialogue(job)
            entry = _entry(script, question, "".join(segment.text for segment in job.turn))
            call = entry.calls[results] if results < len(entry.calls) else None
            if job.confidence_marker is not None:  # the agent wants a decision
                text = _decision(entry.calls[results:]) if script.dialect else _json_call(call or REPLY)
                return _completion(job, text, load_ms, watch.ms(), logprob=math.log(entry.confidence))
            if (offered := _compactly(job)) is not None:
                text = _decision(offered(entry.calls[results:]))
            else:
                text = _json_call(call) if call and _offers(job, call) else _until_stop(entry.text, job)
            words = re.findall(r"\S+\s*|\s+", text)
            told = tuple(_certain(word, job.logprobs) for word in words) if job.logprobs is not None else ()
            first_ms: float | None = None
            for i, word in enumerate(words):
                if entry.token_s:
                    await asyncio.sleep(entry.token_s)
                if job.priority is Priority.BATCH:
                    await self._batch_goes_on.wait()
                first_ms = watch.ms() if first_ms is None else first_ms
                if on_text:
                    on_text(word)
                if on_piece:
                    on_piece(word, told[i : i + 1])
            return _completion(job, text, load_ms, watch.ms(), first_ms=first_ms, logprob=None, logprobs=told)


REPLY: dict[str, JSON] = {"name": "reply", "arguments": {}}


def _json_call(call: dict[str, JSON]) -> str:
    return msgspec.json.encode(call).decode()


def _decision(calls: tuple[dict[str, JSON], ...]) -> str:
    """All calls as the compact dialect writes them."""
    lines = []
    for call in calls or (REPLY,):
        arguments = ", ".join(f"{name}={_json_call(value)}" for name, value in call.get("arguments", {}).items())
        lines.append(f"{call['name']}({arguments})")
    return "\n".join(lines)


def _entry(script: Script, question: str, dialogue: str) -> Scripted:
    """The first that matches, with what its groups found."""
    for entry in script.replies:
        if (found := re.search(entry.match, question)) and re.search(entry.sees, dialogue):
            if not found.re.groups:
                return entry
            calls = tuple({name: _filled(value, found) for name, value in call.items()} for call in entry.calls)
            return structs.replace(entry, calls=calls, text=_filled(entry.text, found))
    return Scripted("", text=question)


def _filled(value: JSON, found: re.Match[str]) -> JSON:
    """With the groups in place of their numbers; of one that there is not, the number stays."""
    if isinstance(value, dict):
        return {name: _filled(inner, found) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, found) for inner in value]
    if isinstance(value, str):
        return re.sub(r"\\(\d)", lambda m: (found[int(m[1])] or "") if int(m[1]) <= found.re.groups else m[0], value)
    return value


def _vector(text: str, dimensions: int, *, unit: bool) -> bytes:
    """By the digest of the text; tokens are words. unit: of length 1."""
    digest = hashlib.shake_256(text.encode()).digest(dimensions)
    numbers = [byte - 127.5 for byte in digest]
    length = math.hypot(*numbers) if unit else 1.0
    return struct.pack(f"<{dimensions}f", *(number / length for number in numbers))


def _dialogue(job: Job) -> tuple[str, int]:
    """The last thing the user said, and how many results of tools came after it."""
    # of a bare text, in which nothing is anybody's words, all of it
    said = [segment.text for segment in job.turn if segment.literal] or [segment.text for segment in job.turn]
    results = 0
    while said and said[-1].startswith("Result: "):
        said.pop()
        results += 1
        if said and re.match(r'\{"name"|[\w.-]+\(', said[-1]):
            said.pop()
    return (said[-1] if said else ""), results


def _offers(job: Job, call: dict[str, JSON]) -> bool:
    """Whether the grammar has calls of this tool: their heads differ in spaces and escapes only."""
    head = rf'"name".{{0,40}}?"{re.escape(call["name"])}"'
    return job.grammar is not None and re.search(head, job.grammar.replace("\\", "")) is not None


def _compactly(job: Job) -> Callable[[tuple[dict[str, JSON], ...]], tuple[dict[str, JSON], ...]] | None:
    """What takes of calls those that a grammar in the compact dialect has, no more of them than it takes; None: it is
    none."""
    heads = re.findall(r'^call_\d+: "([^"(]+)\("', job.grammar or "", re.MULTILINE)
    if not heads:
        return None
    start = (job.grammar or "").partition("\n")[0]
    names = {*heads, *re.findall(r'"(\w+)\(\)"', start)}
    more = re.search(r"\{0,(\d+)\}", start)
    most = 1 + (int(more[1]) if more else 0)
    return lambda calls: tuple(call for call in calls if call["name"] in names)[:most]


def _until_stop(text: str, job: Job) -> str:
    for stop in job.stop:
        text = text.partition(stop)[0]
    return text


def _certain(word: str, top: int | None) -> TokenLogprob:
    spelled = (word, word.encode())
    return TokenLogprob(*spelled, 0.0, ((*spelled, 0.0),) if top else ())


def _completion(
    job: Job,
    text: str,
    load_ms: float,
    taken_ms: float,
    *,
    first_ms: float | None = None,
    logprob: float | None,
    logprobs: tuple[TokenLogprob, ...] = (),
) -> Completion:
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
        logprobs=logprobs,
        load_ms=load_ms,
        queue_ms=0.0,
        prefill_ms=(taken_ms if first_ms is None else first_ms) - load_ms,
        first_token_ms=taken_ms if first_ms is None else first_ms,
        decode_ms=0.0 if first_ms is None else taken_ms - first_ms,
    )
