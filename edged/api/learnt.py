"""What agents have learnt: examples that are written, corrected, listed and forgotten."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import apsw
import msgspec

from edged.access.gate import Gate
from edged.agent.learning import Learning
from edged.errors import BadRequest
from edged.store import conversations, lifecycle
from edged.store import learnt as store
from edged.store.database import Database
from edged.store.learnt import Calls, Lesson
from edged.store.lookup import Row
from edged.types import JSON, Caller, Reply


class Learnt:
    """For callers who may manage.

    Args:
        find: a request by id or rid, for a caller; raises as `api.requests.Requests.find`.
    """

    def __init__(
        self, database: Database, learning: Learning, gate: Gate, find: Callable[[Caller, str], Awaitable[Row]]
    ) -> None:
        self._database, self._learning, self._gate, self._find = database, learning, gate, find

    async def add(self, caller: Caller, agent: str, text: str, calls: JSON, role: str | None = None) -> JSON:
        """An example that the caller has written; as `known` lists it.

        Args:
            calls: [{name, arguments}].
            role: whose requests are to see it; None: of the caller's own.

        Raises:
            Forbidden: the caller may not manage.
            EdgedError: why it is no example.
        """
        with self._gate.managing(caller, "teach agents", agent=agent):
            lesson = await self._learning.added(agent, self._role(caller, role), text, _calls(calls))
            return await self._keep(lesson)

    async def correct(self, caller: Caller, name: str, calls: JSON) -> JSON:
        """What would have been right for a request that has ended; as `known` lists it. Raises as `add` and `find`."""
        with self._gate.managing(caller, "teach agents", request=name):
            row = await self._find(caller, name)
            if row.reply is None or row.state in lifecycle.UNFINISHED:
                raise BadRequest(f"request {name!r} has no outcome yet")
            if await self._database.read(lambda c: conversations.follows(c, row)):
                raise BadRequest("it goes on from what was said before, and an example is one request alone")
            role = self._gate.policy.later(row.client, row.transport, row.role).role
            done = msgspec.json.decode(row.reply, type=Reply).tool_calls
            return await self._keep(await self._learning.corrected(row.request, row.rid, role, _calls(calls), done))

    async def known(self, caller: Caller, agent: str | None = None, role: str | None = None) -> list[JSON]:
        """The examples, oldest first: [{id, agent, role, source: upstream | corrected | added, text, calls: [{name,
        arguments}], rid, private, at}]. Raises Forbidden."""
        self._gate.manage(caller, "see what agents have learnt")
        found = await self._database.read(lambda c: store.known(c, agent, role))
        return [_document(each) for each in found]

    async def forget(
        self, caller: Caller, id: int | None = None, agent: str | None = None, role: str | None = None
    ) -> JSON:
        """Forget one example, or all of an agent, of a role, of both, or all there are: {forgotten}.

        Raises:
            Forbidden: the caller may not manage.
            BadRequest: there is no such example.
        """
        about: dict[str, JSON] = {"example": id, "agent": agent, "of_role": role}
        with self._gate.managing(caller, "forget what agents have learnt", **about):
            count = await self._database.write(lambda c: store.forget(c, id, agent, role))
            if id is not None and not count:
                raise BadRequest(f"no example {id}; `edged learn ls` lists them")
            return {"forgotten": count}

    async def _keep(self, lesson: Lesson) -> JSON:
        def work(c: apsw.Connection) -> store.Learnt:
            id = store.keep(c, lesson)
            return next(each for each in store.known(c, lesson.agent, lesson.role) if each.id == id)

        return _document(await self._database.write(work))

    def _role(self, caller: Caller, role: str | None) -> str:
        known = self._gate.policy.roles
        if role is None:
            role = caller.role
        if known and role not in known:
            raise BadRequest(f"role: {role!r} is none; allowed are {', '.join(known)}")
        if not known and role:
            raise BadRequest(f"role: {role!r} is none: no roles are configured")
        return role


def _calls(calls: JSON) -> Calls:
    try:
        return msgspec.convert(calls, type=Calls)
    except msgspec.ValidationError as error:
        raise BadRequest(f"calls: are a list of {{name, arguments}}: {error}") from None


def _document(learnt: store.Learnt) -> JSON:
    lesson = learnt.lesson
    return {
        "id": learnt.id,
        "agent": lesson.agent,
        "role": lesson.role,
        "source": lesson.source.value,
        "text": lesson.text,
        "calls": [{"name": call.name, "arguments": call.arguments} for call in lesson.calls],
        "rid": lesson.rid,
        "private": lesson.private,
        "at": learnt.at,
    }
