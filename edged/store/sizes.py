"""What models take in memory on this board. A cache: what is lost is found out again."""

from __future__ import annotations

import time

import apsw
import msgspec

from edged.store.database import Database
from edged.types import KnownSize, MemoryNeed

KEPT = 64  # models with their contexts and versions; an update of the libraries makes new ones of all of them


def known(c: apsw.Connection, model: str) -> KnownSize | None:
    """What is known of a model; None: nothing."""
    row = c.execute("SELECT need, measured FROM model_sizes WHERE model = ?", (model,)).fetchone()
    return KnownSize(msgspec.json.decode(row[0], type=MemoryNeed), row[1]) if row else None


def keep(c: apsw.Connection, model: str, size: KnownSize) -> None:
    """Know it from now on; forgets what was not used for longest."""
    need = msgspec.json.encode(size.need)
    c.execute("INSERT OR REPLACE INTO model_sizes VALUES (?,?,?,?)", (model, need, size.measured, time.time()))
    c.execute(
        "DELETE FROM model_sizes WHERE model NOT IN (SELECT model FROM model_sizes ORDER BY used_wall DESC LIMIT ?)",
        (KEPT,),
    )


class Sizes:
    """Implements `interfaces.SizeBook` on the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known(self, model: str) -> KnownSize | None:
        """See interfaces.SizeBook."""
        return await self._database.read(lambda c: known(c, model))

    async def keep(self, model: str, size: KnownSize) -> None:
        """See interfaces.SizeBook."""
        await self._database.write(lambda c: keep(c, model, size), durable=False)
