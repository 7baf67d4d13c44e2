"""The journal of a request's steps: the intent before the effect, the result after it. A resumed request reads it and
does not repeat a finished step."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import apsw
import msgspec
from msgspec import Struct

from edged.types import JSON, ToolCall

if TYPE_CHECKING:
    from edged.store.database import Database  # which imports `salvage`, which reads journals


class Intent(Struct, frozen=True):
    """A call the model decided on. logprob: of the tokens sampled for it, None where none was."""

    call: ToolCall
    logprob: float | None


class Result(Struct, frozen=True):
    """What came of a call."""

    value: JSON
    ok: bool


class Step(Struct, frozen=True):
    """A journalled step; result None: it is not known to have been done."""

    number: int
    intent: Intent
    result: Result | None


def intend(c: apsw.Connection, rid: str, number: int, intent: Intent) -> None:
    """Write down what is about to be done."""
    c.execute("INSERT INTO steps(rid, step, intent) VALUES (?,?,?)", (rid, number, msgspec.json.encode(intent)))


def finish(c: apsw.Connection, rid: str, number: int, result: Result) -> ToolCall:
    """Write down what came of it. Returns the call."""
    query = "UPDATE steps SET result = ? WHERE rid = ? AND step = ? RETURNING intent"
    intent = cast(bytes, c.execute(query, (msgspec.json.encode(result), rid, number)).get)
    return msgspec.json.decode(intent, type=Intent).call


def steps(c: apsw.Connection, rid: str) -> list[Step]:
    """All steps of a request, in order."""
    query = "SELECT step, intent, result FROM steps WHERE rid = ? ORDER BY step"
    return [
        Step(
            cast(int, number),
            msgspec.json.decode(cast(bytes, intent), type=Intent),
            None if result is None else msgspec.json.decode(cast(bytes, result), type=Result),
        )
        for number, intent, result in c.execute(query, (rid,))
    ]


class Journal:
    """The journal of one request. Results and the intents of reads are lazy: losing them with the power only means
    that a read is done again, and an SQL write's result is found again in the tool's own database."""

    def __init__(self, database: Database, rid: str) -> None:
        self._database = database
        self._rid = rid

    async def intend(self, number: int, intent: Intent, *, durable: bool) -> None:
        """Before the act; a write's intent is on the medium when this returns."""
        await self._database.write(lambda c: intend(c, self._rid, number, intent), durable=durable)

    async def finish(self, number: int, result: Result) -> None:
        """After the act."""

        def write(c: apsw.Connection) -> None:
            self.finished(c, finish(c, self._rid, number, result), result)

        await self._database.write(write, durable=False)

    def finished(self, c: apsw.Connection, call: ToolCall, result: Result) -> None:
        """What else is written with the result of a call; nothing here."""
