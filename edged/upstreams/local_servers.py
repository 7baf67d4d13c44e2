"""Models that servers on this board run: NPU and GPU runtimes that speak the OpenAI API. They count as
the board's own: nothing leaves it, nothing is paid, and no request waits for a link. Whether a server is there is found
out as for upstreams (`keeper`), but a request does not wait for the next probe: it looks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from edged.config import Model, Upstream
from edged.errors import ContextRefused, EdgedError, ModelAway, ModelUnavailable
from edged.host import clock, loopback
from edged.types import JSON, SERVER_ENGINE, Chat, ChatAnswer, Message, ModelState
from edged.upstreams.failures import ExchangeFailed, TooLong
from edged.upstreams.http import Endpoint, OnText
from edged.upstreams.keeper import SOON_S, Keeper, Tell, keep
from edged.upstreams.link import LinkState, ProbeTiming, Seen, Sign
from edged.wire import new_rid

# Probes cost next to nothing here, and a client that waits for the server is on the same board: half a minute.
TIMING = ProbeTiming(longest_s=30.0, idle_s=30.0, refused_s=30.0, refused_longest_s=30.0)
CONNECT_S = 5.0  # nothing lies between: a server that takes longer to accept hangs
PROBE_S = 10.0  # a server that computes, in an interpreter of its own and on two busy cores, may be slow to list models
MAX_OFFERED = 10  # names of a server's models that an error lists
WARM = (Message("user", "Hello"),)
STATES = {  # as a model's: missing is what cannot be had now, for whatever reason
    LinkState.UP: ModelState.READY,
    LinkState.DOWN: ModelState.MISSING,
    LinkState.UNKNOWN: ModelState.UNLOADED,
}


class LocalServer(Keeper):
    """The server of one model.

    refused: a request found that it does not take our model or key, which its probes do not show; it is believed until
        a request is answered. users: requests that are with it.
    """

    noun = "model"
    event = "server"
    probe_s = PROBE_S

    def __init__(self, name: str, model: Model, timing: ProbeTiming, woken: asyncio.Event, tell: Tell) -> None:
        address = loopback.parse(model.base_url)
        settings = Upstream(
            base_url=address.url,
            model=model.model,
            api_key_file=model.api_key_file,
            timeout_s=model.timeout_s,
            connect_timeout_s=min(CONNECT_S, model.timeout_s),
            first_byte_timeout_s=model.timeout_s,
        )
        super().__init__(name, Endpoint(settings, loopback.connector(address), waits=True), timing, woken, tell)
        self.model = model
        self.refused = False
        self.users = 0

    @property
    def title(self) -> str:
        """See Keeper."""
        return f"the server of model {self.name}"

    async def be_there(self) -> None:
        """ModelAway where it cannot be asked. One that was away is looked at first: it may be back."""
        if self.link.state is LinkState.DOWN and not self.refused:
            await asyncio.shield(self.probe())
            if self.link.state is LinkState.DOWN:
                raise self._away(self.link.reason)
        if clock.boot() < self.link.paused_until:
            raise self._away(self.link.reason)

    def error(self, failed: ExchangeFailed) -> EdgedError:
        """What a failed exchange is to the client."""
        if isinstance(failed, TooLong):
            return ContextRefused(self._explained(failed.reason))
        if failed.sign in (Sign.GOOD, Sign.REFUSED):
            return ModelUnavailable(self._explained(failed.reason))
        return self._away(failed.reason)

    def status(self) -> dict[str, JSON]:
        """The model as `edged status` shows it: since is a time of day in seconds since the epoch."""
        return {
            "state": STATES[self.link.state],
            "predicted_bytes": None,
            "in_use": self.users,
            "context": self.model.context,
            "engine": SERVER_ENGINE,
            "server": {
                "up": self.link.state is LinkState.UP,
                "since": self.since_wall(),
                "reason": self.link.reason or None,
                "base_url": self.model.base_url,
                "model": self.model.model,
            },
        }

    def _away(self, reason: str) -> ModelAway:
        return ModelAway(self._explained(reason), retry_after_s=max(SOON_S, self.usable_in_s()))

    def _explained(self, reason: str) -> str:
        return f"model {self.name!r}, server {self.model.base_url}: {reason}"

    def _judged(self, names: Sequence[str] | None) -> Seen:
        """See Keeper. A server without a list is asked all the same: a request has to show."""
        model = self.model.model
        if names is None or {model, f"{model}:latest"} & set(names):  # Ollama lists the tag, and takes the bare name
            return Seen(sign=Sign.GOOD, probe=True)
        return Seen(sign=Sign.REFUSED, reason=f"it does not offer {model!r}; it offers {_list(names)}", probe=True)

    def _ended(self, era: int, seen: Seen | None, *, probe: bool = False) -> None:
        """See Keeper."""
        if probe and self.refused and seen is not None and seen.sign is Sign.GOOD:
            seen = Seen(sign=Sign.REFUSED, reason=self.link.reason, probe=True)
        elif probe:
            self.refused = False  # the probe sees what is wrong, and will see when it is right
        elif seen is not None and seen.sign in (Sign.GOOD, Sign.REFUSED):
            self.refused = seen.sign is Sign.REFUSED
        super()._ended(era, seen, probe=probe)


class LocalServers:
    """Owns the states of those servers. `run` is its task.

    Args:
        models: those that a server runs, by alias.
        tell: gets (event name, data): server_up, server_down.
        answered: gets (alias, answer) of every completion.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        tell: Tell = lambda name, data: None,
        answered: Callable[[str, ChatAnswer], None] = lambda model, answer: None,
        timing: ProbeTiming = TIMING,
    ) -> None:
        self._woken = asyncio.Event()
        self._all = {name: LocalServer(name, model, timing, self._woken, tell) for name, model in models.items()}
        self._answered = answered

    def __contains__(self, model: str) -> bool:
        return model in self._all

    async def run(self) -> None:
        """Look after the servers; until cancelled."""
        await keep(tuple(self._all.values()), self._woken)

    async def stop(self) -> None:
        """Close the connections."""
        for server in self._all.values():
            await server.stop()

    async def chat(
        self, model: str, chat: Chat, on_text: OnText | None = None, on_thought: OnText | None = None
    ) -> ChatAnswer:
        """One completion. Cancelling the task closes the connection, by which a server knows that no client waits.

        Args:
            on_text: gets the pieces of the text as they come. Of a server whose model may begin in a thought, for all
                that is known, they come at the end.
            on_thought: gets the pieces of what it thinks before.

        Raises:
            ModelAway: the server does not answer now.
            ContextRefused: it says that the prompt is too long.
            ModelUnavailable: it refuses the request, or the model.
        """
        server = self._all[model]
        await server.be_there()
        server.users += 1
        try:
            with server.exchange():
                answer = await server.server.ask(chat, on_text, on_thought=on_thought)
                self._answered(model, answer)
                return answer
        except ExchangeFailed as failed:
            raise server.error(failed) from None
        finally:
            server.users -= 1

    async def look(self, model: str) -> None:
        """Find out how the server is; `status` knows then."""
        await asyncio.shield(self._all[model].probe())

    async def warm(self, model: str) -> None:
        """Ask for one token: a server that loads on demand has loaded then. Raises as `chat` does."""
        await self.chat(model, Chat(key=new_rid(), messages=WARM, max_tokens=1))

    def where(self, model: str) -> str:
        """Its server's address."""
        return self._all[model].model.base_url

    def status(self) -> dict[str, dict[str, JSON]]:
        """The models as `edged status` shows them."""
        return {name: server.status() for name, server in self._all.items()}


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:MAX_OFFERED])
    return f"{shown} and {len(names) - MAX_OFFERED} more" if len(names) > MAX_OFFERED else shown or "none"
