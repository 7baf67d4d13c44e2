"""Models as things one has: what each name is, which of them are loaded and for how long, pulls and deletions."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.access import policy
from edged.access.gate import Gate
from edged.api.models import Kind
from edged.config import Config
from edged.errors import BadRequest, Busy, ModelUnavailable
from edged.models import catalog, pull
from edged.models.cards import Card, Cards
from edged.models.catalog import ModelFile
from edged.models.pull import Progress
from edged.models.updates.fetch import fetch
from edged.residency.governor import Governor
from edged.types import Caller, ModelState
from edged.upstreams import LocalServers

FORMAT = 1  # of what is put into digests: another one makes all of them other ones


class Title(Struct, frozen=True):
    """What can be named as a model. digest: of all that decides what it is and can do, in hex: no other name has the
    same. card: of the model; an agent's is that of the model that it speaks with."""

    name: str
    kind: Kind
    digest: str
    card: Card

    @property
    def is_agent(self) -> bool:
        """Whether it brings its own tools."""
        return self.kind is Kind.AGENT


class Loaded(Struct, frozen=True):
    """A title whose model is in memory. bytes: that it takes there. until: when it leaves if nobody uses it any more,
    in seconds since the epoch; None: it stays. context: tokens that one request may use now."""

    title: Title
    bytes: int
    until: float | None
    context: int


class Library:
    """The models of this board, and the agents that speak with them.

    Args:
        bring_in: loads a model, or has its server do so.
    """

    def __init__(
        self,
        config: Config,
        governor: Governor,
        cards: Cards,
        *,
        bring_in: Callable[[str], Awaitable[None]],
        served: LocalServers,
        gate: Gate,
    ) -> None:
        self._config = config
        self._governor = governor
        self._cards = cards
        self._bring_in = bring_in
        self._served = served
        self._gate = gate

    @property
    def folder(self) -> Path:
        """Where the files of models are that edged brings here."""
        return self._config.models_dir

    # -- looking ---------------------------------------------------------------------------------------------------

    async def titles(self, caller: Caller) -> list[Title]:
        """What the caller may name, in the configuration's order, plain models first: all agents, and the models whose
        files are here."""
        models = [await self._title(name) for name in self._config.models if policy.may_model(caller, name)]
        agents = [await self._title(name) for name in self._config.agents if name in caller.agents]
        return [title for title in models if title.card.here] + agents

    async def title(self, caller: Caller, name: str) -> Title:
        """One of them, whether its file is here or not. Forbidden where the caller may not use it."""
        self._enter(caller, name)
        return await self._title(name)

    async def loaded(self, caller: Caller) -> list[Loaded]:
        """Those whose model edged has in memory now."""
        states = self._governor.status()["models"]
        now = time.time()
        found = []
        for title in await self.titles(caller):
            state = states.get(title.card.name)
            if state is None or state["state"] != ModelState.READY:
                continue
            stays_s = self._governor.stays_s(title.card.name)
            until = None if stays_s is None else now + stays_s
            found.append(Loaded(title, state["measured_bytes"] or 0, until, state["context"]))
        return found

    # -- memory ----------------------------------------------------------------------------------------------------

    async def load(self, caller: Caller, name: str) -> None:
        """Bring a model in, as a request would. Raises Forbidden, Busy, and as a request."""
        self._enter(caller, name)
        self._gate.spend(caller, "completion.refused")
        await self._bring_in(self._model(name))

    def keep(self, caller: Caller, name: str, seconds: float | None) -> None:
        """The wish of a caller who has just used a model, that it stays so long: never longer than the board's own
        policy has it. None: as that has it."""
        self._enter(caller, name)
        if (model := self._model(name)) not in self._served:
            self._governor.keep(model, seconds)

    async def release(self, caller: Caller, name: str) -> None:
        """The caller does not need a model any more: it is taken out if nobody uses it, else as soon as nobody does. A
        pinned one stays, and what a server holds is the server's."""
        self._enter(caller, name)
        if (model := self._model(name)) in self._served or self._config.models[model].pin:
            return
        self._governor.keep(model, 0.0)
        await self._governor.unload(model)

    # -- files: for those who may manage ---------------------------------------------------------------------------

    async def pull(self, caller: Caller, name: str, report: Callable[[ModelFile, Progress], None]) -> None:
        """Bring the files of a model here, or of the model of an agent. What is here already is checked.

        Raises:
            Forbidden: the caller may not manage.
            PullFailed, Unreachable, ModelUnavailable: it did not come; or it is the user's own file, and not there.
        """
        model = self._model(name)
        with self._gate.managing(caller, "pull models", model=model):
            for file in self._files(model):
                if file.files:
                    await fetch(file, functools.partial(report, file))
                    for part in file.files:  # not every way of bytes counts them to the end
                        size = part.bytes or 0
                        report(file, Progress(part.name, size, size, 0.0))
                elif not file.present():
                    raise ModelUnavailable(f"{file.path} is the user's own file: there is nowhere to pull it from")

    async def delete(self, caller: Caller, name: str) -> None:
        """Remove the files of a model that was pulled.

        Raises:
            Forbidden: the caller may not manage.
            BadRequest: it is an agent, a model of a server, an updated one, or another name stands for the same file.
            Busy: a request uses it.
            PullFailed: the file is the user's own.
        """
        with self._gate.managing(caller, "delete models", model=name):
            if name in self._config.agents:
                raise BadRequest(f"{name!r} is an agent: it is the configuration's to name, and has no file")
            files = self._files(name)
            self._check_alone(name, files)
            await self._governor.unload(name)
            if self._governor.is_resident(name):
                raise Busy(f"model {name!r} is in use", retry_after_s=1.0)
            for file in files:
                await pull.remove(file, progress=lambda progress: None)

    def _files(self, model: str) -> list[ModelFile]:
        if model in self._served:
            raise BadRequest(f"model {model!r} runs in the server at {self._served.where(model)}, which has its files")
        return [catalog.resolve(source, self._config.models_dir) for source in self._config.models[model].sources]

    def _check_alone(self, name: str, files: list[ModelFile]) -> None:
        paths = {str(file.path) for file in files}
        for other, alias in self._governor.aliases.items():
            used = {spec.path for spec in alias.variants}
            if other == name and used - paths:
                raise BadRequest(f"model {name!r} was updated to another file: `edged models rollback {name}` first")
            if other != name and used & paths:
                raise BadRequest(f"model {other!r} has the same file")

    # -- names -----------------------------------------------------------------------------------------------------

    def find(self, name: str) -> str | None:
        """The agent or model that is called so, in letters of any case, whoever may use it; None: there is none."""
        names = [*self._config.models, *self._config.agents]
        return name if name in names else next((one for one in names if one.casefold() == name.casefold()), None)

    def _enter(self, caller: Caller, name: str) -> None:
        if name in self._config.agents:
            self._gate.ask(caller, name, None)
        else:
            self._gate.model(caller, name)

    def _model(self, name: str) -> str:
        """The model that a name stands for, or that an agent speaks with."""
        agent = self._config.agents.get(name)
        return agent.model if agent else name

    async def _title(self, name: str) -> Title:
        agent = self._config.agents.get(name)
        card = await self._cards.of(agent.model if agent else name)
        about = (FORMAT, name, card, agent)
        digest = hashlib.sha256(msgspec.json.encode(about, order="deterministic")).hexdigest()
        return Title(name, Kind.AGENT if agent else Kind.MODEL, digest, card)
