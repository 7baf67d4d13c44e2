"""The journals of requests: what earlier attempts have done, read for the next attempt and for the reply."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

import apsw

from edged.agent.loop import Run
from edged.config import Tool
from edged.errors import ToolFailed
from edged.requests.storing import until_stored
from edged.store import audit, conversations, journal
from edged.store.database import Database, Work
from edged.store.journal import Journal, Result, Step
from edged.store.lookup import Row
from edged.tools.toolbox import Toolbox
from edged.types import JSON, AuditEntry, PastTurn, ToolCall, ToolRecord

log = logging.getLogger("edged.requests")


class Journals:
    """Reads them. Keeps nothing itself."""

    def __init__(self, database: Database, toolbox: Toolbox) -> None:
        self._database = database
        self._toolbox = toolbox

    def of(self, row: Row) -> Journal:
        """The journal of a request, to be written."""
        return _AuditedJournal(self._database, row, self._toolbox.tools)

    async def known(self, row: Row) -> tuple[list[PastTurn], list[Step]]:
        """The conversation so far, and the steps of earlier attempts. Most requests have neither: then the store is
        not asked. Raises as `steps`."""
        if row.conversation is None and not row.begun:
            return [], []
        history = await self._database.read(lambda c: conversations.history(c, row))
        return history, await self.steps(row) if row.begun else []

    async def steps(self, row: Row) -> list[Step]:
        """What was done for a request. A call that did not get into the journal is found with its tool, where the tool
        knows: an SQL write beside its effect.

        Raises:
            ToolFailed: a tool cannot look. What was done is not known then, and nothing may be done again.
        """
        steps = {step.number: step for step in await self._database.read(lambda c: journal.steps(c, row.rid))}
        for done in await self._toolbox.recall(row.rid):
            step = journal.kept(done.step, done.intent, done.result)
            if step.number not in steps or steps[step.number].result is None:
                await self.of(row).finish(step)
                steps[step.number] = step
        return [steps[number] for number in sorted(steps)]

    async def records(self, row: Row, run: Run | None = None) -> tuple[ToolRecord, ...]:
        """What was done for a request that has no answer, also by earlier attempts its run did not get to take over."""
        if run is None and not row.begun:
            return ()
        try:
            steps = await self.steps(row)
        except ToolFailed as error:
            log.warning("the reply tells what the journal knows: %s", error.message, extra={"rid": row.rid})
            steps = await self._database.read(lambda c: journal.steps(c, row.rid))
        known = [_record(step) for step in steps if step.result or self._toolbox.is_write(step.intent.call.name)]
        return max(tuple(known), run.records if run else (), key=len)


class _AuditedJournal(Journal):
    """Waits for a disk that refuses, as the settling after it has to: a step that is not written down and fails would
    be told as not done. A call's entry in the audit log is part of the commit of its result."""

    def __init__(self, database: Database, row: Row, tools: Mapping[str, Tool]) -> None:
        super().__init__(database, row.rid)
        self._row = row
        self._tools = tools

    async def write(self, work: Work[None], *, durable: bool) -> None:
        """See Journal."""
        await until_stored(functools.partial(super().write, work, durable=durable))

    def finished(self, c: apsw.Connection, step: Step) -> None:
        """See Journal."""
        row, outcome = self._row, "ok" if step.result and step.result.ok else "tool_failed"
        about = audited_call(self._tools, step.intent.call)
        entry = AuditEntry(what="tool.called", who=row.client, role=row.role, rid=row.rid, outcome=outcome, about=about)
        audit.append(c, entry)


def audited_call(tools: Mapping[str, Tool], call: ToolCall) -> dict[str, JSON]:
    """A call as the audit log tells it: {tool, arguments}, with private values masked."""
    tool = tools.get(call.name)
    named = {name for name, schema in tool.parameters.items() if "enum" in schema} if tool else ()
    private = tool.private if tool else True
    hidden = call.arguments if private is True else private or ()
    return {"tool": call.name, "arguments": audit.masked(call.arguments, named, hidden)}


def _record(step: Step) -> ToolRecord:
    """A step of the journal as a reply tells it."""
    result = step.result or Result({"error": "the daemon ended meanwhile: it may have happened"}, False)
    return ToolRecord(step.intent.call.name, step.intent.call.arguments, result.value, result.ok)
