"""The journal of a request's steps: the intent before the effect, the result after it. A resumed request reads it and
does not repeat a finished step.

An SQL write's intent is in one transaction with its effect, in the tool's own database, and comes here with its result:
one sync less, and there is no moment at which one of both is there without the other.
"""

from __future__ import annotations

from typing import cast

import apsw
import msgspec
from msgspec import Struct

from edged.store.database import Database
from edged.types import JSON, ToolCall


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


def finish(c: apsw.Connection, rid: str, step: Step) -> None:
    """Write down what came of it."""
    c.execute(
        "INSERT INTO steps(rid, step, intent, result) VALUES (?,?,?,?)"
        " ON CONFLICT(rid, step) DO UPDATE SET result = excluded.result",
        (rid, step.number, msgspec.json.encode(step.intent), msgspec.json.encode(step.result)),
    )


def packed(intent: Intent) -> str:
    """For who keeps it beside the effect."""
    return msgspec.json.encode(intent).decode()


def kept(number: int, intent: str, result: JSON) -> Step:
    """A step that was found beside its effect."""
    return Step(number, msgspec.json.decode(intent, type=Intent), Result(result, True))


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
    that a read is done again, and an SQL write is found again in the tool's own database."""

    def __init__(self, database: Database, rid: str) -> None:
        self._database = database
        self._rid = rid

    async def intend(self, number: int, intent: Intent, *, durable: bool) -> None:
        """Before the act of whatever does not keep its intent itself; a write's is on the medium when this returns."""
        await self._database.write(lambda c: intend(c, self._rid, number, intent), durable=durable)

    async def finish(self, step: Step) -> None:
        """After the act. The step has a result."""

        def write(c: apsw.Connection) -> None:
            finish(c, self._rid, step)
            self.finished(c, step)

        await self._database.write(write, durable=False)

    def finished(self, c: apsw.Connection, step: Step) -> None:
        """What else is written with the result of a call; nothing here."""
