"""Models that are there before the first request: `preload` in the configuration."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from edged.agent.prompts import Prompts
from edged.config import Agent, Model
from edged.errors import EdgedError
from edged.host.clock import Stopwatch
from edged.interfaces import Engine
from edged.types import JSON, Job, Preference, Priority
from edged.wire import new_rid

log = logging.getLogger("edged.warm")


class Warmer:
    """Brings in the models that are to be preloaded, and what their agents' prompts have in common.

    Args:
        speak: gives the prompts of an agent.
        load: brings a model in; the governor decides how long it stays.
        tell: gets (event name, data).
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        agents: Mapping[str, Agent],
        engine: Engine,
        speak: Callable[[str], Awaitable[Prompts]],
        *,
        load: Callable[[str], Awaitable[None]],
        tell: Callable[[str, dict[str, JSON]], None],
    ) -> None:
        self._models = {name: model for name, model in models.items() if model.preload}
        self._agents = agents
        self._engine = engine
        self._speak = speak
        self._load = load
        self._tell = tell

    async def run(self) -> None:
        """One model after the other, one prefix after the other; requests go first. What goes wrong is logged and told
        as an event, and nothing more: a request that needs it will fail again, or find it put right."""
        for model in self._models:
            watch = Stopwatch()
            try:
                await self._load(model)
            except Exception as error:  # a preload must not end the daemon, at every start, whatever it is
                self._failed(model, None, error)
                continue
            prefixes = 0
            for agent in self._agents_of(model):
                try:
                    prefixes += await self._warm(agent)
                except Exception as error:  # the others may be all right
                    self._failed(model, agent, error)
            log.info("model %s is warm after %.0f ms: %d prefixes", model, watch.ms(), prefixes)
            self._tell("model_warmed", {"model": model, "prefixes": prefixes, "ms": watch.ms()})

    def _agents_of(self, model: str) -> list[str]:
        """Those that ask it; an agent of the cloud's does not. The prefixes of a model in a server are the server's."""
        if self._models[model].is_served:
            return []
        return [n for n, a in self._agents.items() if a.model == model and a.route is not Preference.CLOUD]

    async def _warm(self, agent: str) -> int:
        """Returns how many prefixes there were."""
        fixed = (await self._speak(agent)).fixed()
        for prompt, rules in fixed:
            job = Job(
                rid=new_rid(),
                model=self._agents[agent].model,
                prefix=prompt.prefix,
                turn=prompt.turn,
                max_tokens=1,  # of which none is generated
                grammar=rules,
                priority=Priority.BATCH,
            )
            await self._engine.warm(job)
        return len(fixed)

    def _failed(self, model: str, agent: str | None, error: Exception) -> None:
        known = isinstance(error, EdgedError)
        code, reason = (error.code, error.message) if isinstance(error, EdgedError) else ("internal", repr(error))
        what = f"agent {agent} of model {model}" if agent else f"model {model}"
        log.warning("%s is not preloaded: %s", what, reason, exc_info=None if known else error)
        self._tell("preload_failed", {"model": model, "agent": agent, "code": code, "reason": reason})
