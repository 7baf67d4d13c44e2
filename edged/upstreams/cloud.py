"""All upstreams: which of them can be used now, what they have cost, and a completion from one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime

from edged.config import Upstream
from edged.errors import ModelUnavailable, NoLink, OverBudget
from edged.host import clock
from edged.interfaces import Ledger
from edged.types import JSON, Chat, ChatAnswer, UpstreamFacts
from edged.upstreams import link, request
from edged.upstreams.budget import Budget
from edged.upstreams.failures import ExchangeFailed
from edged.upstreams.http import Endpoint, OnBody, OnText
from edged.upstreams.keeper import SOON_S, Keeper, Tell, keep
from edged.upstreams.link import ProbeTiming, Sign

DAY_S = 86400.0  # of UTC


class CloudServer(Keeper):
    """An upstream, with its budget. room: called whenever it takes more requests than it did."""

    noun = "upstream"
    event = "link"

    def __init__(
        self,
        name: str,
        settings: Upstream,
        ledger: Ledger,
        timing: ProbeTiming,
        woken: asyncio.Event,
        tell: Tell,
        room: Callable[[], None],
    ) -> None:
        super().__init__(name, Endpoint(settings), timing, woken, tell)
        self.model = settings.model
        self.budget = Budget(name, settings.daily_token_budget, ledger)
        self._room = room
        self._free = 0  # places it had when that was last looked at

    async def stop(self) -> None:
        """See Keeper."""
        await super().stop()
        await self.budget.stop()

    async def look_after(self) -> float | None:
        """See Keeper. A new day has a new budget, and the end of a pause makes room."""
        await self.budget.load(today())
        wait_s = await super().look_after()
        self._changed()
        if self.budget.limit is None:
            return wait_s
        day_s = DAY_S - clock.wall() % DAY_S
        return day_s if wait_s is None else min(wait_s, day_s)

    def facts(self) -> UpstreamFacts:
        """What the router needs to know."""
        day = today()
        return UpstreamFacts(
            self.name,
            up=link.usable(self.link, clock.boot()),
            room=self.link.in_flight < self.link.window and self.budget.has_room(day),
            budget_left=self.budget.is_left(day),
        )

    def places(self) -> int:
        """How many more requests it would take now."""
        return link.places(self.link, clock.boot()) if self.budget.has_room(today()) else 0

    def wait_s(self) -> float | None:
        """Seconds until it may be usable; None where it is full, which ends when it ends."""
        if not self.budget.is_left(today()):
            return max(SOON_S, DAY_S - clock.wall() % DAY_S, self.usable_in_s())
        if link.usable(self.link, clock.boot()):
            return 0.0 if self.places() else None
        return max(SOON_S, self.usable_in_s())

    def check(self, day: str) -> None:
        """The last look before a place is taken. Raises as `Cloud.chat` does."""
        wait_s = self.wait_s()
        if not link.usable(self.link, clock.boot()):
            raise NoLink(f"upstream {self.name!r}: {self.link.reason}", retry_after_s=wait_s)
        if not self.budget.is_left(day):
            spent, limit = self.budget.tokens(day), self.budget.limit
            message = f"upstream {self.name!r}: {spent} tokens of today's {limit} are spent (daily_token_budget)"
            raise OverBudget(message, retry_after_s=wait_s)
        if not self.places():
            message = f"upstream {self.name!r} takes no more beside the {self.link.in_flight} it works on"
            raise NoLink(message, retry_after_s=wait_s)

    async def paid(self, day: str, chat: Chat, on_text: OnText | None, on_body: OnBody | None) -> ChatAnswer:
        """A completion whose tokens are reserved before and corrected afterwards; one that fails costs nothing."""
        most = request.estimated_tokens(request.prompt_characters(chat)) + (chat.max_tokens or 0)
        async with self.budget.reserved(day, most) as reservation:
            answer = await self.server.ask(chat, on_text, on_body)
            reservation.used = answer.prompt_tokens + answer.completion_tokens
            return answer

    def status(self) -> dict[str, JSON]:
        """The link as `edged status` shows it: since is a time of day in seconds since the epoch, others from now."""
        now = clock.boot()
        return {
            "state": str(self.link.state),
            "since": self.since_wall(),
            "reason": self.link.reason or None,
            "next_probe_s": _left(link.next_probe(self.link), now),
            "paused_s": _left(self.link.paused_until, now) or None,
            "in_flight": self.link.in_flight,
            "window": self.link.window,
            "tokens_today": self.budget.tokens(today()),
            "daily_token_budget": self.budget.limit,
        }

    def _changed(self) -> None:
        before, self._free = self._free, self.places()
        if self._free > before:
            self._room()


class Cloud:
    """Owns the upstreams' link states. `run` is its task.

    Args:
        ledger: keeps what was spent, through restarts.
        tell: gets (event name, data): link_up, link_down.
        changed: called whenever an upstream that could not be used can be now, or has room again.
        answered: gets (model, answer) of every completion.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        ledger: Ledger,
        *,
        tell: Tell = lambda name, data: None,
        changed: Callable[[], None] = lambda: None,
        answered: Callable[[str, ChatAnswer], None] = lambda model, answer: None,
        timing: ProbeTiming | None = None,
    ) -> None:
        self._woken = asyncio.Event()
        timing = timing or ProbeTiming()
        self._all = {
            name: CloudServer(name, settings, ledger, timing, self._woken, tell, changed)
            for name, settings in upstreams.items()
        }
        self._answered = answered

    async def run(self) -> None:
        """Probe what is down or unknown, and now and then what is up; until cancelled."""
        await keep(tuple(self._all.values()), self._woken)

    async def stop(self) -> None:
        """Close the connections."""
        for server in self._all.values():
            await server.stop()

    def facts(self, names: Collection[str]) -> tuple[UpstreamFacts, ...]:
        """What is known of these upstreams now, in the given order."""
        return tuple(self._all[name].facts() if name in self._all else UpstreamFacts(name, up=False) for name in names)

    def room(self, names: Collection[str]) -> int:
        """How many more requests these upstreams would take now."""
        return sum(self._all[name].places() for name in names if name in self._all)

    def retry_after_s(self, names: Collection[str]) -> float | None:
        """When one of these upstreams may be usable again, in seconds; None where that cannot be told."""
        waits = [self._all[name].wait_s() for name in names if name in self._all]
        return min((wait for wait in waits if wait is not None), default=None)

    async def chat(
        self, name: str, chat: Chat, on_text: OnText | None = None, *, on_body: OnBody | None = None
    ) -> ChatAnswer:
        """One completion. The caller has just seen room in `facts`.

        Args:
            on_text: gets the pieces of the text as they come.
            on_body: gets what is about to be sent, each time that it is put in other words.

        Raises:
            NoLink: the upstream cannot be used now, for whatever reason; its state knows already.
            OverBudget: today's tokens are spent.
            ModelUnavailable: it refuses this request, and would again.
        """
        server = self._all.get(name)
        if server is None:
            raise NoLink(f"no upstream {name!r} is configured")
        day = today()
        await server.budget.load(day)
        server.check(day)
        try:
            with server.exchange():
                answer = await server.paid(day, chat, on_text, on_body)
                self._answered(server.model, answer)
                return answer
        except ExchangeFailed as failed:
            message = f"upstream {name!r}: {failed.reason}"
            if failed.sign is Sign.GOOD:
                raise ModelUnavailable(message) from None
            raise NoLink(message, retry_after_s=server.wait_s() or SOON_S) from None

    def status(self) -> dict[str, dict[str, JSON]]:
        """The links as `edged status` shows them, by upstream."""
        return {name: server.status() for name, server in self._all.items()}


def today() -> str:
    """The day of a budget, of UTC: YYYY-MM-DD."""
    return datetime.fromtimestamp(clock.wall(), UTC).date().isoformat()


def _left(until: float | None, now: float) -> float | None:
    return None if until is None else round(max(0.0, until - now), 1)
