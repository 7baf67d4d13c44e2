"""Models that servers on this board run: NPU and GPU runtimes that speak the OpenAI API. The board's own in all but who
computes: nothing leaves it, nothing is paid, nobody waits for a link. Whether a server is there is found out as an
upstream's link is (`link`), but a request does not wait for the next probe: it looks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence

from edged.config import Model
from edged.config import Upstream as Settings
from edged.errors import ContextRefused, EdgedError, ModelAway, ModelUnavailable
from edged.host import clock, loopback
from edged.types import JSON, SERVER_ENGINE, Chat, ChatAnswer, Message, ModelState
from edged.upstreams import link
from edged.upstreams import loopback as here
from edged.upstreams.failures import TooLong, Trouble
from edged.upstreams.http import OnText, Upstream
from edged.upstreams.link import Link, LinkState, ProbeTiming, Seen, Sign
from edged.wire import new_rid

log = logging.getLogger("edged.served")

# Probes cost next to nothing here, and who waits for the server to come back is on the same board: half a minute.
PACE = ProbeTiming(longest_s=30.0, idle_s=30.0, refused_s=30.0, refused_longest_s=30.0)
CONNECT_S = 5.0  # nothing lies between: a server that takes longer to accept hangs
# A server that computes may be slow to tell its models, on two busy cores and in an interpreter of its own.
PROBE_S = 10.0
SOON_S = 1.0  # least that is told as a time to ask again; 0 would be taken at its word
MAX_OFFERED = 10  # names of a server's models that an error lists
WARM = (Message("user", "Hello"),)


class _Books:
    """What is known of one model's server.

    refused: a request found that it does not take our model or key, which its probes do not show; it is believed until
        a request is answered. users: requests that are with it.
    """

    def __init__(self, name: str, settings: Model) -> None:
        server = loopback.parse(settings.base_url)
        self.name, self.settings = name, settings
        self.link = link.fresh(clock.boot())
        self.server = Upstream(
            Settings(
                base_url=server.url,
                model=settings.model,
                api_key_file=settings.api_key_file,
                timeout_s=settings.timeout_s,
                connect_timeout_s=min(CONNECT_S, settings.timeout_s),
                first_byte_timeout_s=settings.timeout_s,
            ),
            here.connector(server),
        )
        self.refused = False
        self.users = 0
        self.look: asyncio.Task[None] | None = None


class Served:
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
        tell: Callable[[str, dict[str, JSON]], None] = lambda name, data: None,
        answered: Callable[[str, ChatAnswer], None] = lambda model, answer: None,
        pace: ProbeTiming = PACE,
    ) -> None:
        self._all = {name: _Books(name, model) for name, model in models.items()}
        self._tell, self._answered, self._pace = tell, answered, pace
        self._woken = asyncio.Event()

    def __contains__(self, model: str) -> bool:
        return model in self._all

    async def run(self) -> None:
        """Look after the servers; until cancelled."""
        while True:
            self._woken.clear()
            now = clock.boot()
            for books in self._all.values():
                due = link.next_probe(books.link)
                if due is not None and due <= now:
                    self._look(books)
            later = (link.next_probe(books.link) for books in self._all.values())  # those just begun have none
            next_s = min((max(0.0, due - clock.boot()) for due in later if due is not None), default=None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(next_s):
                    await self._woken.wait()

    async def stop(self) -> None:
        """Close the connections."""
        for books in self._all.values():
            if books.look is not None:
                books.look.cancel()
                await asyncio.wait([books.look])
            await books.server.close()

    async def chat(self, model: str, chat: Chat, on_text: OnText | None = None) -> ChatAnswer:
        """One completion. Cancelling the task closes the connection, by which a server knows that nobody waits.

        Args:
            on_text: gets the pieces of the text as they come.

        Raises:
            ModelAway: the server does not answer now.
            ContextRefused: it says that the prompt is too long.
            ModelUnavailable: it refuses the request, or the model.
        """
        books = self._all[model]
        await self._be_there(books)
        era, seen, failure = books.link.era, None, None
        self._set(books, link.begin(books.link))
        books.users += 1
        try:
            answer = await books.server.ask(chat, on_text)
            seen = Seen(sign=Sign.GOOD)
            self._answered(model, answer)
            return answer
        except Trouble as trouble:
            seen, failure = trouble.seen(), trouble
        finally:
            books.users -= 1
            self._ended(books, era, seen)
        raise self._error(books, failure)

    async def look(self, model: str) -> None:
        """Find out how the server is; `status` knows then."""
        await asyncio.shield(self._look(self._all[model]))

    async def warm(self, model: str) -> None:
        """Ask for one token: a server that loads on demand has loaded then. Raises as `chat` does."""
        await self.chat(model, Chat(key=new_rid(), messages=WARM, max_tokens=1))

    def where(self, model: str) -> str:
        """Its server's address."""
        return self._all[model].settings.base_url

    def status(self) -> dict[str, dict[str, JSON]]:
        """The models as `edged status` shows them: since is a time of day in seconds since the epoch."""
        now = clock.boot()
        return {
            name: {
                "state": _state(books.link),
                "predicted_bytes": None,
                "in_use": books.users,
                "context": books.settings.context,
                "engine": SERVER_ENGINE,
                "server": {
                    "up": books.link.state is LinkState.UP,
                    "since": round(clock.wall() - (now - books.link.since), 1),
                    "reason": books.link.reason or None,
                    "base_url": books.settings.base_url,
                    "model": books.settings.model,
                },
            }
            for name, books in self._all.items()
        }

    async def _be_there(self, books: _Books) -> None:
        """Raise where the server cannot be asked. One that was away is looked at first: it may be back."""
        if books.link.state is LinkState.DOWN and not books.refused:
            await asyncio.shield(self._look(books))
            if books.link.state is LinkState.DOWN:
                raise self._away(books, books.link.reason)
        if clock.boot() < books.link.paused_until:
            raise self._away(books, books.link.reason)

    def _error(self, books: _Books, trouble: Trouble) -> EdgedError:
        """What a failed exchange is to whoever asked."""
        if isinstance(trouble, TooLong):
            return ContextRefused(self._explained(books, trouble.reason))
        if trouble.sign in (Sign.GOOD, Sign.REFUSED):
            return ModelUnavailable(self._explained(books, trouble.reason))
        return self._away(books, trouble.reason)

    def _away(self, books: _Books, reason: str) -> ModelAway:
        now = clock.boot()
        return ModelAway(
            self._explained(books, reason), retry_after_s=max(SOON_S, link.usable_at(books.link, now) - now)
        )

    def _explained(self, books: _Books, reason: str) -> str:
        return f"model {books.name!r}, server {books.settings.base_url}: {reason}"

    # -- what was seen ---------------------------------------------------------------------------------------------

    def _look(self, books: _Books) -> asyncio.Task[None]:
        """A probe; one at a time, and everybody waits for the same."""
        if books.look is None or books.look.done():
            books.link = link.begin_probe(books.link)
            books.look = asyncio.create_task(self._probe(books), name=f"edged.served.{books.name}")
        return books.look

    async def _probe(self, books: _Books) -> None:
        era, seen = books.link.era, None
        try:
            async with asyncio.timeout(PROBE_S):
                seen = _judged(books, await books.server.probe())
        except Trouble as trouble:
            seen = trouble.seen(probe=True)
        except TimeoutError:
            seen = Seen(sign=Sign.WEAK, reason=f"no list of its models within {PROBE_S:g} s", probe=True)
        except Exception:  # other models may be all right: no reason to end the daemon
            log.exception("the probe of model %s failed through a bug", books.name)
            seen = Seen(sign=Sign.WEAK, reason="a bug of edged; its log has the details", probe=True)
        finally:
            if seen is not None and seen.sign is Sign.GOOD and books.refused:
                seen = Seen(sign=Sign.REFUSED, reason=books.link.reason, probe=True)
            else:
                books.refused = False  # the probe sees what is wrong, and will see when it is right
            self._ended(books, era, seen, probe=True)

    def _ended(self, books: _Books, era: int, seen: Seen | None, *, probe: bool = False) -> None:
        """An exchange is over; `seen` is None where it was broken off by ourselves."""
        if seen is None:
            self._set(books, link.abandoned(books.link, era, probe=probe))
            return
        if not probe and seen.sign in (Sign.GOOD, Sign.REFUSED):
            books.refused = seen.sign is Sign.REFUSED
        chance = random.random()  # noqa: S311  # jitter, no secret
        self._set(books, link.ended(books.link, era, seen, clock.boot(), chance, self._pace))

    def _set(self, books: _Books, new: Link) -> None:
        """The next state, told to everybody whom it concerns."""
        before, books.link = books.link, new
        self._woken.set()
        if new.state is before.state:
            if new.reason and new.reason != before.reason:
                log.info("model %s: its server: %s", books.name, new.reason)
        elif new.state is LinkState.UP:
            log.info("model %s: its server answers", books.name)
            self._tell("server_up", {"model": books.name, "reason": "it answers"})
        else:
            log.warning("model %s: its server cannot be used: %s", books.name, new.reason)
            self._tell("server_down", {"model": books.name, "reason": new.reason})


def _judged(books: _Books, names: Sequence[str] | None) -> Seen:
    """What a list of models says. None: the server has none, so a request has to show."""
    model = books.settings.model
    if names is None or {model, f"{model}:latest"} & set(names):  # Ollama lists the tag, and takes the name without
        return Seen(sign=Sign.GOOD, probe=True)
    return Seen(sign=Sign.REFUSED, reason=f"it does not offer {model!r}; it offers {_list(names)}", probe=True)


def _state(known: Link) -> ModelState:
    """As a model's: missing is what cannot be had now, for whatever reason."""
    match known.state:
        case LinkState.UP:
            return ModelState.READY
        case LinkState.DOWN:
            return ModelState.MISSING
        case _:
            return ModelState.UNLOADED


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:MAX_OFFERED])
    return f"{shown} and {len(names) - MAX_OFFERED} more" if len(names) > MAX_OFFERED else shown or "none"
