"""The Ollama API (contract, section 6): agents and plain models for everything that speaks with Ollama.

Names are `NAME:latest`, with or without the tag and in letters of any case. An agent goes the way of every request;
nothing of a plain model's is stored. What Ollama does with a model's memory is a wish here: the governor decides.
"""

from __future__ import annotations

import hashlib
import struct

from aiohttp import web

from edged.api.models import Kind
from edged.errors import EdgedError, UnknownAgent
from edged.host.clock import Stopwatch
from edged.models.catalog import ModelFile
from edged.models.pull import Progress
from edged.transport.http.core import errors
from edged.transport.http.core.connection import caller
from edged.transport.http.core.errors import NotBuilt
from edged.transport.http.core.headers import idempotency_key
from edged.transport.http.core.ignored import Ignored
from edged.transport.http.core.stream import LINES, START_S, EventStream
from edged.transport.http.core.surface import Board
from edged.transport.http.ollama import reply as shapes
from edged.transport.http.ollama import request as ollama_request
from edged.transport.http.ollama import values
from edged.transport.http.ollama.answers import Answers, error_line, failure, json, line
from edged.transport.http.ollama.request import Asked, Embedding
from edged.types import JSON, Ask, Caller, EmbedJob
from edged.wire import fault

RUNNING = "Ollama is running"
NOT_BUILT = ("create", "copy", "push")  # what makes models: they are made elsewhere, and named in the configuration
FLOAT_BYTES = 4


class Ollama:
    """See core.surface.Surface.

    Args:
        alone: it is the only one on its listener beside OpenAI's, so what is nobody else's belongs to it.
    """

    open_paths = ()

    def __init__(self, board: Board, *, alone: bool = False) -> None:
        self.paths = ("/",) if alone else ("/api",)
        self._models, self._library = board.api.models, board.api.library
        self._answers = Answers(board.api.requests, self._models, self._library, heartbeat_s=board.heartbeat_s)
        self._heartbeat_s = board.heartbeat_s
        self._ignored = Ignored(board.ignored)

    def routes(self) -> list[web.RouteDef]:
        """See Surface."""
        return [
            web.get("/", self.running),
            web.get("/api/version", self.version),
            web.get("/api/tags", self.tags),
            web.get("/api/ps", self.loaded),
            web.post("/api/show", self.show),
            web.post("/api/chat", self.chat),
            web.post("/api/generate", self.generate),
            web.post("/api/embed", self.embed),
            web.post("/api/embeddings", self.embeddings),
            web.post("/api/pull", self.pull),
            web.delete("/api/delete", self.delete),
            *(web.post(f"/api/{what}", self.not_built) for what in NOT_BUILT),
            web.route("*", "/api/blobs/{digest}", self.not_built),
        ]

    def error(self, _: web.BaseRequest, error: EdgedError) -> web.Response:
        """See Surface."""
        return errors.response(error, failure(error))

    # -- looking ---------------------------------------------------------------------------------------------------

    async def running(self, _: web.Request) -> web.Response:
        """GET /: by which clients know that somebody is there."""
        return web.Response(text=RUNNING)

    async def version(self, _: web.Request) -> web.Response:
        """GET /api/version: of Ollama's API."""
        return json({"version": shapes.VERSION})

    async def tags(self, http: web.Request) -> web.Response:
        """GET /api/tags: what this caller may name."""
        return json({"models": [shapes.listed(title) for title in await self._library.titles(caller(http))]})

    async def loaded(self, http: web.Request) -> web.Response:
        """GET /api/ps: of these, what is in memory."""
        return json({"models": [shapes.running(each) for each in await self._library.loaded(caller(http))]})

    async def show(self, http: web.Request) -> web.Response:
        """POST /api/show."""
        named = values.model(await _body(http))
        return json(shapes.shown(await self._library.title(caller(http), self._name(named))))

    # -- asking ----------------------------------------------------------------------------------------------------

    async def chat(self, http: web.Request) -> web.StreamResponse:
        """POST /api/chat."""
        return await self._answer(http, ollama_request.chat(await _body(http)))

    async def generate(self, http: web.Request) -> web.StreamResponse:
        """POST /api/generate."""
        return await self._answer(http, ollama_request.generate(await _body(http)))

    async def _answer(self, http: web.Request, asked: Asked) -> web.StreamResponse:
        who, name = caller(http), self._name(asked.model)
        if asked.is_empty:
            return await self._load(who, name, asked)
        if asked.images:
            raise ollama_request.lacks(asked.model, "vision")
        samplers = tuple(f"options.{sampler}" for sampler in asked.options.samplers)
        if self._models.kind(who, name) is Kind.AGENT:
            self._ignored.note(http, who.client, (*asked.options.ignored, *samplers))  # it has its own way
            request = ollama_request.agent_request(asked, name, idempotency_key(http.headers))
            return await self._answers.by_agent(http, asked, Ask(request=request, caller=who))
        self._ignored.note(http, who.client, asked.options.ignored)
        if asked.think:
            card = (await self._library.title(who, name)).card
            if not (card.facts.thinks or card.served):  # whether a server's does only shows when it answers
                raise ollama_request.lacks(asked.model, "thinking")
        return await self._answers.by_model(http, asked, who, name)

    async def _load(self, who: Caller, name: str, asked: Asked) -> web.Response:
        """Nothing is asked: the model is to be there, or may go."""
        reason = "unload" if asked.keep_alive == 0 else "load"
        if reason == "unload":
            await self._library.release(who, name)
        else:
            await self._library.load(who, name)
            if asked.keep_alive is not None:
                self._library.keep(who, name, asked.keep_alive)
        return json(shapes.Shape(asked.model, generates=asked.generates).part(end={"done_reason": reason}))

    async def embed(self, http: web.Request) -> web.Response:
        """POST /api/embed: a vector of length 1 for each text."""
        watch = Stopwatch()
        wanted = ollama_request.embed(await _body(http))
        vectors, tokens = await self._vectors(caller(http), wanted)
        return json(shapes.embedded(wanted.model, vectors, tokens, watch.ms()))

    async def embeddings(self, http: web.Request) -> web.Response:
        """POST /api/embeddings, Ollama's older way: one vector, as the model made it."""
        wanted = ollama_request.embeddings(await _body(http))
        vectors, _ = await self._vectors(caller(http), wanted)
        return json({"embedding": vectors[0] if vectors else []})

    async def _vectors(self, who: Caller, wanted: Embedding) -> tuple[list[tuple[float, ...]], int]:
        """(vectors, tokens of the texts)."""
        name = self._name(wanted.model)
        if self._models.kind(who, name) is Kind.AGENT:
            raise ollama_request.lacks(wanted.model, "embeddings")
        if not wanted.texts:  # nothing to compute; who may not use the model hears it all the same
            await self._library.title(who, name)
            return [], 0
        job = EmbedJob(
            model=name,
            texts=wanted.texts,
            dimensions=wanted.dimensions,
            truncate=wanted.truncate,
            normalise=wanted.normalise,
        )
        made = await self._models.embed(who, job)
        if wanted.keep_alive is not None:
            self._library.keep(who, name, wanted.keep_alive)
        return [struct.unpack(f"<{len(vector) // FLOAT_BYTES}f", vector) for vector in made.vectors], made.tokens

    # -- files -----------------------------------------------------------------------------------------------------

    async def pull(self, http: web.Request) -> web.StreamResponse:
        """POST /api/pull: bring the configured file of a model here."""
        body, who = await _body(http), caller(http)
        name, streams = self._name(values.model(body)), values.flag(body, "stream", default=True)
        if not streams:
            await self._library.pull(who, name, lambda file, progress: None)
            return json({"status": "success"})
        first = {"status": "pulling manifest"}

        def written(pieces: list[JSON]) -> bytes:
            return b"".join(map(line, pieces))

        stream = EventStream[JSON](
            http,
            written,
            start_s=START_S,
            heartbeat_s=self._heartbeat_s,
            heartbeat=lambda: line(first),
            content_type=LINES,
        )

        def report(file: ModelFile, progress: Progress) -> None:
            if not stream.begun:
                stream.add(first)
            stream.add(_progress(file, progress))

        def ended(_: None) -> bytes:
            done = [{"status": status} for status in ("verifying sha256 digest", "writing manifest", "success")]
            return written(done if stream.begun else [first, *done])

        work = self._library.pull(who, name, report)
        return await stream.run(work, ended=ended, failed=lambda error: error_line(fault(error)))

    async def delete(self, http: web.Request) -> web.Response:
        """DELETE /api/delete: remove the file of a model that was pulled."""
        await self._library.delete(caller(http), self._name(values.model(await _body(http))))
        return web.Response()

    async def not_built(self, http: web.Request) -> web.Response:
        """What makes models of other ones, or takes them elsewhere."""
        raise NotBuilt(f"{http.path} is not built: models are made elsewhere, and named in edged's configuration")

    def _name(self, given: str) -> str:
        """The agent or model that a client names. Raises UnknownAgent."""
        found = self._library.find(values.bare_name(given))
        if found is None:
            raise UnknownAgent(f"model {given!r} not found")
        return found


async def _body(http: web.Request) -> dict[str, JSON]:
    return ollama_request.body(await http.read())


def _progress(file: ModelFile, progress: Progress) -> JSON:
    """A line about a file. One whose sha256 nobody said is known by its name."""
    known = next((spec.sha256 for spec in file.files if spec.name == progress.file and spec.sha256), None)
    digest = known or hashlib.sha256(progress.file.encode()).hexdigest()
    total = {} if progress.total is None else {"total": progress.total}
    return {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", **total, "completed": progress.done}
