"""What Foundry Local's SDK 0.5.1 asks of its service: the catalogue, what is here and loaded, loads, unloads, downloads
(contract, section 6). Its completions are OpenAI's, below /v1. Control calls come without a key, so all of this is on a
listener of its own, `[http] foundry`.

GET loads and unloads: so the SDK has it. A page of a browser cannot make use of that, as none may ask here that
`[http] origins` does not name.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from edged import wire
from edged.errors import BadRequest, EdgedError, UnknownAgent
from edged.models.catalog import ModelFile
from edged.models.pull import Progress
from edged.transport.http.core.connection import caller
from edged.transport.http.core.errors import response
from edged.transport.http.core.stream import START_S, EventStream
from edged.transport.http.core.surface import Board
from edged.transport.http.foundry.catalogue import VERSION, entry, percent
from edged.types import JSON, Caller, Fault, Format
from edged.wire.values import checked

# The SDK knows by these words that a model has to be downloaded first.
NOT_HERE = "No OpenAIService provider found for modelName"
TEXT = "text/plain"


class Foundry:
    """See core.surface.Surface. Everything on its listener that is not OpenAI's belongs to it."""

    paths = ("/",)
    open_paths = ()

    def __init__(self, board: Board) -> None:
        self._models, self._library = board.api.models, board.api.library
        self._heartbeat_s = board.heartbeat_s

    def routes(self) -> list[web.RouteDef]:
        """See Surface."""
        return [
            web.get("/foundry/list", self.catalogue),
            web.get("/openai/status", self.status),
            web.get("/openai/models", self.here),
            web.get("/openai/loadedmodels", self.loaded),
            web.get("/openai/load/{name}", self.load),
            web.get("/openai/unload/{name}", self.unload),
            web.post("/openai/download", self.download),
        ]

    def error(self, request: web.BaseRequest, error: EdgedError) -> web.Response:
        """See Surface. The SDK quotes all of it, and after a download looks for `errorMessage`."""
        told = wire.fault(error)
        return response(error, msgspec.json.encode({**_failed(told), "error": told}))

    async def catalogue(self, http: web.Request) -> web.Response:
        """GET /foundry/list: all that the caller may use, also models whose files are not here."""
        who = caller(http)
        return _json([entry(await self._library.title(who, name)) for name in self._models.usable(who)])

    async def status(self, http: web.Request) -> web.Response:
        """GET /openai/status: where files of models are."""
        return _json({"modelDirPath": str(self._library.folder)})

    async def here(self, http: web.Request) -> web.Response:
        """GET /openai/models: names of what can be used without a download."""
        return _json([title.name for title in await self._library.titles(caller(http))])

    async def loaded(self, http: web.Request) -> web.Response:
        """GET /openai/loadedmodels: names of what is in memory now."""
        return _json([one.title.name for one in await self._library.loaded(caller(http))])

    async def load(self, http: web.Request) -> web.Response:
        """GET /openai/load/NAME?ttl=SECONDS: bring a model in. How long it stays is a wish."""
        who, name = caller(http), self._name(http.match_info["name"])
        ttl_s = _seconds(http.query.get("ttl"))
        if not (await self._library.title(who, name)).card.here:
            raise UnknownAgent(f"{NOT_HERE}: {name}")
        await self._library.load(who, name)
        if ttl_s is not None:
            self._library.keep(who, name, ttl_s)
        return _json({"model": name, "loaded": True})

    async def unload(self, http: web.Request) -> web.Response:
        """GET /openai/unload/NAME: the caller does not need it any more. A request that uses it comes to its end."""
        name = self._name(http.match_info["name"])
        await self._library.release(caller(http), name)
        return _json({"model": name, "unloaded": True})

    async def download(self, http: web.Request) -> web.StreamResponse:
        """POST /openai/download: lines with `NN%`, then {"success": ...}. What is here already is there at once; to
        bring a file the caller has to be one that may manage."""
        who, name = caller(http), self._name(_model(await http.read()))
        stream = EventStream[float](
            http,
            lambda pieces: b"".join(b"Total %.2f%%\n" % piece for piece in pieces),
            start_s=START_S,
            heartbeat_s=self._heartbeat_s,
            heartbeat=lambda: b"Total: still working\n",
            content_type=TEXT,
        )

        def report(file: ModelFile, progress: Progress) -> None:
            if (now := percent(progress.done, progress.total)) is not None:
                stream.add(now)

        done = msgspec.json.encode({"success": True, "errorMessage": None})
        return await stream.run(
            self._bring(who, name, report),
            ended=lambda _: done,
            failed=lambda error: msgspec.json.encode(_failed(wire.fault(error))),
        )

    async def _bring(self, who: Caller, name: str, report: Callable[[ModelFile, Progress], None]) -> None:
        if not (await self._library.title(who, name)).card.here:
            await self._library.pull(who, name, report)

    def _name(self, given: str) -> str:
        """The agent or model that is meant, with the version that the SDK may put behind it or without."""
        found = self._library.find(given) or self._library.find(given.removesuffix(f":{VERSION}"))
        if found is None:
            raise UnknownAgent(f"no model {given!r}")
        return found


def _model(payload: bytes) -> str:
    """Which model a download is about."""
    body = checked(wire.decode(payload, Format.JSON), 'a map: {"model": {"Name": ...}}')
    model = body.get("model")
    name = model.get("Name") if isinstance(model, dict) else None
    if not isinstance(name, str):
        raise BadRequest("model: is a map with the model's Name")
    return name


def _seconds(ttl: str | None) -> float | None:
    if ttl is None:
        return None
    if not (ttl.isascii() and ttl.isdigit()):
        raise BadRequest(f"ttl: {ttl[:40]!r} is no number of seconds")
    return float(ttl[:9])  # 30 years are enough


def _failed(error: Fault) -> dict[str, JSON]:
    return {"success": False, "errorMessage": error.message}


def _json(value: JSON) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
