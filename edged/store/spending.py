"""What the upstreams have cost. Lazy: the newest entries may be lost with the power, and the budget is a bound of
money, not of safety."""

from __future__ import annotations

from typing import cast

import apsw

from edged.store.database import Database

DAYS_KEPT = 31  # for whoever wants to see the last month


def spent(c: apsw.Connection, upstream: str, day: str) -> int:
    """Tokens of one day."""
    query = "SELECT coalesce(sum(tokens), 0) FROM spending WHERE upstream = ? AND day = ?"
    return cast(int, c.execute(query, (upstream, day)).get)


def add(c: apsw.Connection, upstream: str, day: str, tokens: int) -> None:
    """More tokens of one day; forgets days that nobody looks at any more."""
    c.execute(
        "INSERT INTO spending VALUES (?,?,?) ON CONFLICT DO UPDATE SET tokens = max(0, tokens + excluded.tokens)",
        (upstream, day, tokens),
    )
    c.execute("DELETE FROM spending WHERE day < date(?, ?)", (day, f"-{DAYS_KEPT} days"))


class Spending:
    """Implements `interfaces.Ledger` on the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def spent(self, upstream: str, day: str) -> int:
        """See interfaces.Ledger."""
        return await self._database.read(lambda c: spent(c, upstream, day))

    async def add(self, upstream: str, day: str, tokens: int) -> None:
        """See interfaces.Ledger."""
        await self._database.write(lambda c: add(c, upstream, day, tokens), durable=False)
