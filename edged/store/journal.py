"""The journal of a request's steps: the intent before the effect, the result after it. A resumed request reads it and
does not repeat a finished step.

An SQL write's intent is in one transaction with its effect, in the tool's own database, where a resumed request looks
too: one sync less, and no moment at which one of both is there without the other. It comes here with its result, in the
next commit that is made for the request anyway.
"""

from __future__ import annotations

from typing import cast

import apsw
import msgspec
from msgspec import Struct

from edged.store.database import Database, Work
from edged.types import JSON, ToolCall


class Intent(Struct, frozen=True, omit_defaults=True):
    """A call the model decided on. logprob: of the tokens sampled for the decision, None where none was, or an earlier
    call has it. then: the calls of the same decision that are made after it, if it works. upstream: one has decided
    it."""

    call: ToolCall
    logprob: float | None
    then: tuple[ToolCall, ...] = ()
    upstream: bool = False


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


def finish(c: apsw.Connection, rid: str, step: Step) -> bool:
    """Write down what came of it. False where that is known already."""
    c.execute(
        "INSERT INTO steps(rid, step, intent, result) VALUES (?,?,?,?)"
        " ON CONFLICT(rid, step) DO UPDATE SET result = excluded.result WHERE result IS NULL",
        (rid, step.number, msgspec.json.encode(step.intent), msgspec.json.encode(step.result)),
    )
    return c.changes() > 0


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
        self._held: list[Step] = []

    async def intend(self, number: int, intent: Intent, *, durable: bool) -> None:
        """Before the act of whatever does not keep its intent itself; a write's is on the medium when this returns."""

        def work(c: apsw.Connection) -> None:
            self.catch_up(c)
            intend(c, self._rid, number, intent)

        await self._commit(work, durable=durable)

    async def finish(self, step: Step) -> None:
        """After the act. The step has a result."""
        self.hold(step)
        await self._commit(self.catch_up, durable=False)

    def hold(self, step: Step) -> None:
        """After the act of what keeps its intent itself: its step is written with the next commit."""
        self._held.append(step)

    def catch_up(self, c: apsw.Connection) -> None:
        """In the writer: write what is held back. Once more changes nothing."""
        for step in self._held:
            if finish(c, self._rid, step):
                self.finished(c, step)

    async def _commit(self, work: Work[None], *, durable: bool) -> None:
        held = len(self._held)
        await self.write(work, durable=durable)
        del self._held[:held]

    async def write(self, work: Work[None], *, durable: bool) -> None:
        """A commit of the journal's."""
        await self._database.write(work, durable=durable)

    def finished(self, c: apsw.Connection, step: Step) -> None:
        """What else is written with the result of a call; nothing here."""
