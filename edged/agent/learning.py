"""What requests teach: which calls become examples for a second look (`[agents.X] learn`), and which requests see them.

An upstream's calls are learnt where they are all that was decided about a question that stands alone, and worked. A
call with a time is not: the journal has the absolute one, which is right once. What an upstream may not see is not kept
either; and a request that was not to leave the board teaches only with `learn = "local"`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

import msgspec

from edged.agent import times
from edged.agent.examples import Shown
from edged.agent.loop import Run
from edged.agent.privacy.masking import Masking
from edged.agent.prompts import as_messages
from edged.agent.router import stricter
from edged.agent.styles import MOST_CALLS, specs
from edged.agent.world import Values
from edged.config import Agent, Config
from edged.errors import BadRequest, EdgedError, ToolFailed, UnknownAgent
from edged.store import learnt
from edged.store.database import Database
from edged.store.learnt import Calls, Lesson, Source
from edged.tools import check
from edged.tools.toolbox import Toolbox
from edged.tools.values import complete, given, schema
from edged.types import AnswerKind, Chat, Message, Privacy, Request, ToolCall, ToolRecord

log = logging.getLogger("edged.agent")

LONGEST = (
    300  # characters of a request, and of its calls as JSON: with four such examples a prompt has some 300 tokens more
)
# What found nothing may have looked for the wrong thing, and what could not be done is no example of how to do it.
TELLING = (AnswerKind.ACTED, AnswerKind.ANSWERED)


class Learning:
    """Judges what may be learnt, and gives what was to who looks for it. Keeps nothing itself: the store does."""

    def __init__(self, config: Config, toolbox: Toolbox, database: Database) -> None:
        self._config, self._toolbox, self._database = config, toolbox, database

    async def examples(self, run: Run) -> list[Shown]:
        """What was learnt by this agent from requests of the same role: a Source of examples."""
        learns, agent, role = run.agent.learn, run.request.agent, run.role
        if not learns:
            return []
        found = await self._database.read(lambda c: learnt.known(c, agent, role))
        lessons = [each.lesson for each in found if learns == "local" or not each.lesson.private]
        return [Shown(each.text, each.calls) for each in lessons if self._are_there(run.agent, each.calls)]

    async def lesson(self, run: Run, kind: AnswerKind | None, *, follows: bool) -> Lesson | None:
        """What a finished run teaches; None: nothing. Raises no error: what was done is done, and has to be told.

        Args:
            kind: of its answer.
            follows: something was said before the question.
        """
        request, records = run.request, run.records
        decided_once = run.by_upstream and run.last_calls == len(records)
        if not run.agent.learn or not decided_once or follows or len(request.messages) > 1 or kind not in TELLING:
            return None
        if not records or not all(record.ok for record in records):
            return None
        calls = tuple(ToolCall(record.name, record.arguments) for record in records)
        try:
            self._check_learns(request)
            if any(self._has_times(call) for call in calls):
                raise BadRequest("its calls have times in them")
            return await self._lesson(request, run.role, Source.UPSTREAM, calls, run.rid, records)
        except EdgedError as error:
            log.info("not learnt: %s", error.message, extra={"event": "not_learnt", "rid": run.rid})
        except Exception:
            log.exception("not learnt through a bug", extra={"event": "learning_bug", "rid": run.rid})
        return None

    async def added(self, agent: str, role: str, text: str, calls: Sequence[ToolCall]) -> Lesson:
        """An example that somebody has written. Raises BadRequest, ToolFailed: why it is none."""
        request = Request(agent=agent, messages=(Message("user", text.strip()),))
        if not request.messages[0].content:
            raise BadRequest("text: is empty")
        return await self._lesson(request, role, Source.ADDED, await self._right(agent, calls))

    async def corrected(
        self, request: Request, rid: str, role: str, calls: Sequence[ToolCall], records: Sequence[ToolRecord]
    ) -> Lesson:
        """What would have been right for a request.

        Args:
            records: what was done for it.

        Raises:
            BadRequest, ToolFailed: why it teaches nothing.
        """
        if len(request.messages) != 1:
            raise BadRequest("it goes on from what was said before, and an example is one request alone")
        self.check_learns(request.agent)
        self._check_learns(request)
        calls = await self._right(request.agent, calls)
        return await self._lesson(request, role, Source.CORRECTED, calls, rid, records)

    def check_learns(self, agent: str) -> Agent:
        """An agent that learns, by its name. Raises UnknownAgent, and BadRequest where it does not."""
        if (found := self._config.agents.get(agent)) is None:
            raise UnknownAgent(f"no agent {agent!r}; configured are {', '.join(self._config.agents)}")
        if not found.learn:
            raise BadRequest(f'agent {agent!r} does not learn: write learn = true, or "local", in [agents.{agent}]')
        return found

    def _check_learns(self, request: Request) -> None:
        agent = self._config.agents[request.agent]
        if self._is_private(request) and agent.learn != "local":
            raise BadRequest(f'it was not to leave the board, and [agents.{request.agent}] learn is not "local"')

    def _is_private(self, request: Request) -> bool:
        return stricter(self._config.agents[request.agent].privacy, request.privacy) is Privacy.DEVICE

    async def _lesson(
        self,
        request: Request,
        role: str,
        source: Source,
        calls: Calls,
        rid: str | None = None,
        records: Sequence[ToolRecord] = (),
    ) -> Lesson:
        """Raises BadRequest, ToolFailed: why it is none."""
        text = request.messages[-1].content.strip()
        if len(text) > LONGEST or len(msgspec.json.encode(calls)) > LONGEST:
            raise BadRequest(f"it is too long: request and calls have at most {LONGEST} characters each")
        await self._check_open(self._config.agents[request.agent], text, calls, records)
        private = self._is_private(request)
        return Lesson(agent=request.agent, role=role, source=source, text=text, calls=calls, rid=rid, private=private)

    async def _right(self, agent: str, calls: Sequence[ToolCall]) -> Calls:
        """Calls as the owner wrote them, if an agent could make them. Raises BadRequest, ToolFailed."""
        offered = self.check_learns(agent).tools
        if not 1 <= len(calls) <= MOST_CALLS:
            raise BadRequest(f"calls: 1 to {MOST_CALLS} at once")
        made = []
        for call in calls:
            tool = self._toolbox.get(call.name) if call.name in offered else None
            if tool is None:
                raise BadRequest(f"{call.name}: is no tool of agent {agent!r}; it has {', '.join(offered) or 'none'}")
            declared, arguments = schema(tool.parameters), given(tool.parameters, call.arguments)
            wrong = await check.problem({**declared, "additionalProperties": False}, arguments)
            wrong = wrong or times.problem(declared, arguments)
            if wrong is not None:
                raise BadRequest(f"{call.name}: {wrong}")
            made.append(await self._toolbox.world.exactly(tool, ToolCall(call.name, arguments)))
        return tuple(made)

    async def _check_open(self, agent: Agent, text: str, calls: Calls, records: Sequence[ToolRecord]) -> None:
        """Raises BadRequest where text or calls hold what no upstream may see, and ToolFailed where that cannot be
        found out. Results may say of a word in the text that it is private."""
        tools = {name: tool for name in agent.tools if (tool := self._toolbox.get(name)) is not None}
        if hidden := [call.name for call in calls if call.name not in tools or tools[call.name].private is True]:
            raise BadRequest(f"{', '.join(hidden)}: no upstream may know of it")
        values = await Values.of(self._toolbox, tools)
        masking = Masking(values.masked(self._toolbox.tools), detects=agent.mask, secrets=values.secrets())
        open_ = (Message("user", text), Message("assistant", tool_calls=calls))
        results = [message for record in records for message in as_messages(record)]
        chat = Chat(key="", messages=(*results, *open_), tools=specs(tools), max_tokens=None)
        masked = await asyncio.to_thread(masking.mask, chat)
        if masked.messages[-len(open_) :] != open_:
            raise BadRequest("it holds what no upstream may see")

    def _are_there(self, agent: Agent, calls: Calls) -> bool:
        """Whether an agent can still make these calls: its tools may be others by now."""
        for call in calls:
            tool = self._toolbox.get(call.name)
            if call.name not in agent.tools or tool is None:
                return False
            with contextlib.suppress(ToolFailed):
                complete(tool.parameters, call.arguments)
                continue
            return False
        return True

    def _has_times(self, call: ToolCall) -> bool:
        tool = self._toolbox.get(call.name)
        return tool is None or times.are_in(schema(tool.parameters), call.arguments)
