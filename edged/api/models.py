"""Models: which a caller may name, what they take, completions and embeddings of plain ones, and their management."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from edged.access import policy
from edged.access.gate import Act, Gate
from edged.completions.embeddings import EmbeddingModels
from edged.completions.plain import Completions
from edged.completions.request import ModelAnswer, ModelAsk, OnCall, OnThought
from edged.completions.text import TextAsk
from edged.config import Agent, Config
from edged.errors import BadRequest, Busy, UnknownAgent
from edged.interfaces import OnPiece
from edged.models.updates.updater import Updater, Watch
from edged.residency.governor import Governor
from edged.types import JSON, Caller, Embeddings, EmbedJob, ModelState
from edged.upstreams import LocalServers


class Kind(StrEnum):
    """What a name stands for: agents and models share one namespace (CONTRACT section 2)."""

    AGENT = "agent"
    MODEL = "model"


class Models:
    """The models of this board.

    Args:
        served: the models that servers on this board run.
    """

    def __init__(
        self,
        config: Config,
        governor: Governor,
        completions: Completions,
        embeddings: EmbeddingModels,
        updater: Updater,
        *,
        served: LocalServers,
        gate: Gate,
    ) -> None:
        self._config = config
        self._governor = governor
        self._completions = completions
        self._embeddings = embeddings
        self._updater = updater
        self._served = served
        self._gate = gate

    # -- names -----------------------------------------------------------------------------------------------------

    def usable(self, caller: Caller) -> dict[str, Kind]:
        """What the caller may name where a model is to be named: plain models first, in the configuration's order.
        Clients that bring their own tools propose the first one, and an agent has its own."""
        models = {name: Kind.MODEL for name in self._config.models if policy.may_model(caller, name)}
        return models | {name: Kind.AGENT for name in self._config.agents if name in caller.agents}

    def agents(self, caller: Caller) -> dict[str, Agent]:
        """The agents that the caller may ask, by name."""
        return {name: agent for name, agent in self._config.agents.items() if name in caller.agents}

    def kind(self, caller: Caller, name: str) -> Kind:
        """What a name stands for, whether the caller may use it or not. Raises UnknownAgent with the usable names."""
        if name in self._config.agents:
            return Kind.AGENT
        if name in self._config.models:
            return Kind.MODEL
        raise UnknownAgent(f"no model {name!r}: there are {', '.join(self.usable(caller)) or 'none for this client'}")

    def context(self, name: str) -> int:
        """Tokens that one request to an agent or a model may use, as configured."""
        agent = self._config.agents.get(name)
        return self._config.models[agent.model if agent else name].context

    # -- what they take --------------------------------------------------------------------------------------------

    def status(self) -> JSON:
        """The configured models by name, in their order, and what they take."""
        return known_models(self._config, self._governor, self._served)

    # -- completions and embeddings --------------------------------------------------------------------------------

    async def complete(
        self,
        caller: Caller,
        ask: ModelAsk,
        on_piece: OnPiece | None = None,
        on_call: OnCall | None = None,
        on_thought: OnThought | None = None,
    ) -> ModelAnswer:
        """One completion of a plain model, as the request says; nothing of it is stored.

        Raises:
            Forbidden: the caller may not use the model.
            EdgedError: as the engine says; Busy where too many such completions wait, or the caller asks too often.
        """
        self._gate.model(caller, ask.model)
        self._gate.spend(caller, "completion.refused")
        ask = msgspec.structs.replace(ask, priority=caller.highest)
        return await self._completions.complete(ask, on_piece, on_call, on_thought)

    async def continue_text(self, caller: Caller, ask: TextAsk, on_piece: OnPiece | None = None) -> ModelAnswer:
        """What a plain model goes on with after a bare text; nothing of it is stored. Raises as `complete`."""
        self._gate.model(caller, ask.model)
        self._gate.spend(caller, "completion.refused")
        ask = msgspec.structs.replace(ask, priority=caller.highest)
        return await self._completions.continue_text(ask, on_piece)

    async def embed(self, caller: Caller, job: EmbedJob) -> Embeddings:
        """Vectors for texts; nothing of it is stored.

        Raises:
            Forbidden: the caller may not use the model.
            EdgedError: as the engine says; Busy where too many such requests wait, or the caller asks too often.
        """
        self._gate.model(caller, job.model)
        self._gate.spend(caller, "completion.refused")
        return await self._embeddings.embed(job)

    # -- management: all of it raises Forbidden where the caller may not manage ------------------------------------

    async def load(self, caller: Caller, name: str) -> None:
        """Load a model now."""
        with self._gate.managing(caller, "load models", model=name):
            self._check_ours(name)
            await self._governor.load(name)

    async def unload(self, caller: Caller, name: str) -> bool:
        """Unload a model; False where it is in use or not loaded."""
        with self._gate.managing(caller, "unload models", model=name) as act:
            self._check_ours(name)
            unloaded = await self._governor.unload(name)
            if not unloaded and self._governor.status()["models"][name]["state"] == ModelState.READY:
                act.outcome = Busy.code  # in use
            return unloaded

    async def update(self, caller: Caller, name: str, source: str | None, watch: Watch) -> JSON:
        """Bring a new file of a model in, if it works (see Updater.update). It goes on where the caller leaves."""
        with self._gate.managing(caller, "update models", model=name) as act:
            self._check_ours(name)
            return _noted(act, await self._updater.update(name, source, watch))

    async def rollback(self, caller: Caller, name: str) -> JSON:
        """Back to the file before the last update."""
        with self._gate.managing(caller, "roll models back", model=name) as act:
            self._check_ours(name)
            return _noted(act, await self._updater.rollback(name))

    def _check_ours(self, name: str) -> None:
        """BadRequest where a model is not edged's to load and unload."""
        if name in self._served:
            text = f"model {name!r} runs in the server at {self._served.where(name)}, which loads and unloads it"
            raise BadRequest(f"{text}; `status` says whether it answers")


def _noted(act: Act, result: JSON) -> JSON:
    """The same result. That of an update that failed has the error in it."""
    if result["error"] is not None:
        act.outcome = result["error"]["code"]
    return result


def known_models(config: Config, governor: Governor, served: LocalServers) -> dict[str, JSON]:
    """The configured models by name, in their order, and what they take."""
    known = {**governor.status()["models"], **served.status()}
    return {name: known[name] for name in config.models if name in known}
