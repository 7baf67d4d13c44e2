"""The books of an upstream: what is reserved, spent and written down, whatever happens meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from edged.upstreams.budget import Budget

TODAY, TOMORROW = "2027-01-15", "2027-01-16"


class Tokens:
    """A ledger. lock: while it is held nothing is written; broken: it refuses."""

    def __init__(self, **spent: int) -> None:
        self.days = {TODAY: 0, **spent}
        self.lock = asyncio.Lock()
        self.broken = False

    async def spent(self, upstream: str, day: str) -> int:
        return self.days.get(day, 0)

    async def add(self, upstream: str, day: str, tokens: int) -> None:
        async with self.lock:
            if self.broken:
                raise OSError("no space left on device")
            self.days[day] = max(0, self.days.get(day, 0) + tokens)


async def a_budget(ledger: Tokens, limit: int | None = 100) -> Budget:
    budget = Budget("cloud", limit, ledger)
    await budget.load(TODAY)
    return budget


async def test_budget_reserves_and_corrects_in_memory_and_ledger() -> None:
    """While a request runs it costs what was reserved, afterwards what it used."""
    ledger = Tokens()
    budget = await a_budget(ledger)
    async with budget.reserved(TODAY, 60) as one:
        assert budget.tokens(TODAY) == ledger.days[TODAY] == 60
        one.used = 12
    assert budget.tokens(TODAY) == ledger.days[TODAY] == 12


async def test_budget_gives_back_what_a_failed_request_reserved() -> None:
    """It costs nothing."""
    ledger = Tokens()
    budget = await a_budget(ledger)
    with pytest.raises(KeyError):
        async with budget.reserved(TODAY, 60):
            raise KeyError
    assert budget.tokens(TODAY) == ledger.days[TODAY] == 0


async def test_budget_counts_what_was_spent_before_a_restart() -> None:
    """The ledger remembers."""
    budget = await a_budget(Tokens(**{TODAY: 100}))
    assert not budget.is_left(TODAY)
    assert not budget.has_room(TODAY)


async def test_budget_full_of_reservations_has_no_room_and_is_not_spent() -> None:
    """Whoever is next waits for what the others really cost."""
    budget = await a_budget(Tokens())
    async with budget.reserved(TODAY, 100) as one:
        assert budget.is_left(TODAY)
        assert not budget.has_room(TODAY)
        one.used = 99
    assert budget.has_room(TODAY)
    async with budget.reserved(TODAY, 500) as one:  # the last of a day may exceed it
        one.used = 400
    assert not budget.is_left(TODAY)


async def test_budget_without_a_limit_counts_and_never_ends() -> None:
    """Status shows what was spent all the same."""
    budget = await a_budget(Tokens(**{TODAY: 10**9}), None)
    assert budget.is_left(TODAY)
    assert budget.has_room(TODAY)
    assert budget.tokens(TODAY) == 10**9


async def test_budget_request_over_midnight_is_spent_on_the_day_it_began() -> None:
    """Also when the clock is set back afterwards, as a board does that learns the date late."""
    ledger = Tokens()
    budget = await a_budget(ledger)
    async with budget.reserved(TODAY, 60) as one:
        await budget.load(TOMORROW)
        assert budget.tokens(TOMORROW) == 0
        await budget.load(TODAY)
        assert budget.tokens(TODAY) == 60
        one.used = 12
    assert ledger.days == {TODAY: 12}
    await budget.load(TOMORROW)
    await budget.load("2027-01-17")
    await budget.load(TODAY)  # forgotten meanwhile, and read again
    assert budget.tokens(TODAY) == 12


@pytest.mark.parametrize("impatient", [False, True])
async def test_budget_cancelled_while_the_ledger_writes_balances_in_the_end(impatient: bool) -> None:
    """The reservation is written and taken back, in this order: the ledger never goes below 0."""
    ledger = Tokens(**{TODAY: 5})
    budget = await a_budget(ledger)
    entered = asyncio.Event()

    async def use() -> None:
        async with budget.reserved(TODAY, 60):
            entered.set()

    await ledger.lock.acquire()
    task = asyncio.create_task(use())
    while budget.tokens(TODAY) != 65:
        await asyncio.sleep(0)
    task.cancel()
    while budget.tokens(TODAY) != 5:
        await asyncio.sleep(0)
    if impatient:  # whoever cancels does not even wait for the way back
        task.cancel()
    ledger.lock.release()
    await asyncio.wait([task])
    await budget.stop()
    assert task.cancelled()
    assert not entered.is_set()
    assert budget.tokens(TODAY) == ledger.days[TODAY] == 5


async def test_budget_tells_the_ledger_later_what_a_full_disk_refused() -> None:
    """No answer is lost over it, and in the end both know the same."""
    ledger = Tokens()
    budget = await a_budget(ledger)
    ledger.broken = True
    async with budget.reserved(TODAY, 60) as one:
        one.used = 12
    assert budget.tokens(TODAY) == 12
    assert ledger.days[TODAY] == 0
    ledger.broken = False
    async with budget.reserved(TODAY, 60) as one:
        one.used = 3
    assert budget.tokens(TODAY) == ledger.days[TODAY] == 15
