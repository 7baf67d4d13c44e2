"""All upstreams: which of them can be used now, what they have cost, and a completion from one of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime

from edged.config import Upstream as Settings
from edged.errors import ModelUnavailable, NoLink, OverBudget
from edged.host import clock
from edged.interfaces import Ledger
from edged.types import JSON, Chat, ChatAnswer, UpstreamFacts
from edged.upstreams import link, request
from edged.upstreams.budget import Budget
from edged.upstreams.failures import Trouble
from edged.upstreams.http import OnBody, OnText, Upstream
from edged.upstreams.link import Link, LinkState, ProbeTiming, Seen, Sign

log = logging.getLogger("edged.upstreams")

DAY_S = 86400.0  # of UTC
SOON_S = 1.0  # least that is told as a time to ask again; 0 would be taken at its word


class _Books:
    """What is known of one upstream. free: places it had when that was last looked at."""

    def __init__(self, name: str, settings: Settings, ledger: Ledger) -> None:
        self.name = name
        self.model = settings.model
        self.link = link.fresh(clock.boot())
        self.server = Upstream(settings)
        self.budget = Budget(name, settings.daily_token_budget, ledger)
        self.free = 0


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
        upstreams: Mapping[str, Settings],
        ledger: Ledger,
        *,
        tell: Callable[[str, dict[str, JSON]], None] = lambda name, data: None,
        changed: Callable[[], None] = lambda: None,
        answered: Callable[[str, ChatAnswer], None] = lambda model, answer: None,
        pace: ProbeTiming | None = None,
    ) -> None:
        self._all = {name: _Books(name, settings, ledger) for name, settings in upstreams.items()}
        self._tell, self._changed, self._answered = tell, changed, answered
        self._pace = pace or ProbeTiming()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Probe what is down or unknown, and now and then what is up; until cancelled."""
        async with asyncio.TaskGroup() as probes:
            while True:
                self._woken.clear()
                now, day = clock.boot(), _today()
                for books in self._all.values():
                    await books.budget.load(day)
                    due = link.next_probe(books.link)
                    if due is not None and due <= now:
                        books.link = link.begin_probe(books.link)
                        probes.create_task(self._probe(books), name=f"edged.upstreams.probe.{books.name}")
                    self._look(books)  # a pause may have ended, or a day
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._sleep_s(now)):
                        await self._woken.wait()

    async def stop(self) -> None:
        """Close the connections."""
        for books in self._all.values():
            await books.server.close()
            await books.budget.stop()

    def facts(self, names: Collection[str]) -> tuple[UpstreamFacts, ...]:
        """What is known of these upstreams now, in the given order."""
        return tuple(self._facts(name) for name in names)

    def room(self, names: Collection[str]) -> int:
        """How many more requests these upstreams would take now."""
        return sum(self._places(self._all[name]) for name in names if name in self._all)

    def retry_after_s(self, names: Collection[str]) -> float | None:
        """When one of these upstreams may be usable again, in seconds; None where that cannot be told."""
        waits = [self._wait_s(self._all[name]) for name in names if name in self._all]
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
        books = self._all.get(name)
        if books is None:
            raise NoLink(f"no upstream {name!r} is configured")
        day = _today()
        await books.budget.load(day)
        self._check(books, day)
        era, seen = books.link.era, None
        self._set(books, link.begin(books.link))
        try:
            answer = await self._paid(books, day, chat, on_text, on_body)
            seen = Seen(sign=Sign.GOOD)
            return answer
        except Trouble as trouble:
            seen = trouble.seen()
        finally:
            self._ended(books, era, seen)
        told = f"upstream {name!r}: {seen.reason}"
        if seen.sign is Sign.GOOD:
            raise ModelUnavailable(told)
        raise NoLink(told, retry_after_s=self._wait_s(books) or SOON_S)

    def status(self) -> dict[str, JSON]:
        """The links as `edged status` shows them, by upstream: times of day in seconds since the epoch, others from
        now on."""
        now, day = clock.boot(), _today()
        return {
            name: {
                "state": str(books.link.state),
                "since": round(clock.wall() - (now - books.link.since), 1),
                "reason": books.link.reason or None,
                "next_probe_s": _left(link.next_probe(books.link), now),
                "paused_s": _left(books.link.paused_until, now) or None,
                "in_flight": books.link.in_flight,
                "window": books.link.window,
                "tokens_today": books.budget.tokens(day),
                "daily_token_budget": books.budget.limit,
            }
            for name, books in self._all.items()
        }

    # -- what may go out -------------------------------------------------------------------------------------------

    def _facts(self, name: str) -> UpstreamFacts:
        books = self._all.get(name)
        if books is None:
            return UpstreamFacts(name, up=False)
        day = _today()
        return UpstreamFacts(
            name,
            up=link.usable(books.link, clock.boot()),
            room=books.link.in_flight < books.link.window and books.budget.has_room(day),
            budget_left=books.budget.is_left(day),
        )

    def _places(self, books: _Books) -> int:
        return link.places(books.link, clock.boot()) if books.budget.has_room(_today()) else 0

    def _wait_s(self, books: _Books) -> float | None:
        """Seconds until an upstream may be usable; None where it is full, which ends when it ends."""
        now = clock.boot()
        if not books.budget.is_left(_today()):
            return max(SOON_S, DAY_S - clock.wall() % DAY_S, link.usable_at(books.link, now) - now)
        if link.usable(books.link, now):
            return 0.0 if self._places(books) else None
        return max(SOON_S, link.usable_at(books.link, now) - now)

    def _check(self, books: _Books, day: str) -> None:
        """The last look before a place is taken. Raises as `chat` does."""
        wait_s = self._wait_s(books)
        if not link.usable(books.link, clock.boot()):
            raise NoLink(f"upstream {books.name!r}: {books.link.reason}", retry_after_s=wait_s)
        if not books.budget.is_left(day):
            spent, limit = books.budget.tokens(day), books.budget.limit
            told = f"upstream {books.name!r}: {spent} tokens of today's {limit} are spent (daily_token_budget)"
            raise OverBudget(told, retry_after_s=wait_s)
        if not self._places(books):
            told = f"upstream {books.name!r} takes no more beside the {books.link.in_flight} it works on"
            raise NoLink(told, retry_after_s=wait_s)

    async def _paid(
        self, books: _Books, day: str, chat: Chat, on_text: OnText | None, on_body: OnBody | None
    ) -> ChatAnswer:
        """A completion whose tokens are reserved before and corrected afterwards; one that fails costs nothing."""
        most = request.estimated_tokens(request.prompt_characters(chat)) + (chat.max_tokens or 0)
        async with books.budget.reserved(day, most) as reservation:
            answer = await books.server.ask(chat, on_text, on_body)
            reservation.used = answer.prompt_tokens + answer.completion_tokens
            self._answered(books.model, answer)
            return answer

    # -- what was seen ---------------------------------------------------------------------------------------------

    async def _probe(self, books: _Books) -> None:
        era, seen = books.link.era, None
        try:
            await books.server.probe()
            seen = Seen(sign=Sign.GOOD, probe=True)
        except Trouble as trouble:
            seen = trouble.seen(probe=True)
        except Exception:  # the board answers without the cloud: no reason to end the daemon
            log.exception("the probe of upstream %s failed through a bug", books.name)
            seen = Seen(sign=Sign.WEAK, reason="a bug of edged; its log has the details", probe=True)
        finally:
            self._ended(books, era, seen, probe=True)

    def _ended(self, books: _Books, era: int, seen: Seen | None, *, probe: bool = False) -> None:
        """An exchange is over; `seen` is None where it was broken off by ourselves."""
        if seen is None:
            self._set(books, link.abandoned(books.link, era, probe=probe))
        else:
            chance = random.random()  # noqa: S311  # jitter, no secret
            self._set(books, link.ended(books.link, era, seen, clock.boot(), chance, self._pace))

    def _set(self, books: _Books, new: Link) -> None:
        """The next state of a link, told to everybody whom it concerns."""
        before, books.link = books.link, new
        self._woken.set()
        if new.state is not before.state:
            if new.state is LinkState.UP:
                log.info("upstream %s answers", books.name)
                self._tell("link_up", {"upstream": books.name, "reason": "it answers"})
            else:
                log.warning("upstream %s is down: %s", books.name, new.reason)
                self._tell("link_down", {"upstream": books.name, "reason": new.reason})
        elif new.reason and new.reason != before.reason:
            log.info("upstream %s: %s", books.name, new.reason)
        self._look(books)

    def _look(self, books: _Books) -> None:
        """Say so if there are more places than at the last look."""
        before, books.free = books.free, self._places(books)
        if books.free > before:
            self._changed()

    def _sleep_s(self, now: float) -> float | None:
        """Seconds until something happens by itself: a probe, the end of a pause, a new day; None: nothing does."""
        at = [due for books in self._all.values() if (due := link.next_probe(books.link)) is not None]
        at += [books.link.paused_until for books in self._all.values() if books.link.paused_until > now]
        if any(books.budget.limit is not None for books in self._all.values()):
            at.append(now + DAY_S - clock.wall() % DAY_S)
        return max(0.0, min(at) - clock.boot()) if at else None


def _today() -> str:
    return datetime.fromtimestamp(clock.wall(), UTC).date().isoformat()


def _left(until: float | None, now: float) -> float | None:
    return None if until is None else round(max(0.0, until - now), 1)
