"""Ask, parse, act. A mind says what to do next; the run does it, under one journal and one set of limits for all minds.

What was decided and done is in the journal before and after each act. So a run that is resumed after a crash, or handed
from one mind to the next, continues where it was: finished steps are read, an unfinished one is finished, nothing is
done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from edged.agent import times
from edged.agent.accounting import Accounting
from edged.agent.own_words import OwnWords
from edged.agent.prompts import Turn, as_messages
from edged.agent.stream import Stream
from edged.agent.sureness import Sureness
from edged.agent.times import ClockUnset, Moment
from edged.agent.world import NotThere
from edged.config import Agent
from edged.errors import EdgedError, NoLink, ToolFailed
from edged.host.fault_points import point
from edged.store.journal import Intent, Journal, Result, Step, packed
from edged.tools.toolbox import Toolbox
from edged.tools.values import schema
from edged.types import (
    JSON,
    AnswerKind,
    Finding,
    Finish,
    Message,
    PastTurn,
    Request,
    RouteTaken,
    Sampling,
    ToolCall,
    ToolRecord,
)

# A run that is being ended tries so long to write down what its last tool did. A disk that refuses must not keep the
# daemon from stopping: the step then counts as unfinished, and is looked up in the tool's database after the start.
LAST_WORD_S = 1.0
# A call with a long text among its arguments fits; one that does not end within it is a model that repeats itself.
DECISION_TOKENS = 512


class Decided(Struct, frozen=True):
    """The calls to make next, in order; after one that fails the rest is not made. logprob: of the tokens sampled for
    them; None: none was, or it is not known. upstream: one has decided it."""

    calls: tuple[ToolCall, ...]
    logprob: float | None = None
    upstream: bool = False


class Answered(Struct, frozen=True):
    """The final answer. cut: max_tokens ended it, not the model. kind: what it is, where the calls do not tell."""

    text: str
    cut: bool = False
    kind: AnswerKind | None = None


class Passed(Struct, frozen=True):
    """Nothing more from this mind: the next one of the chain is asked. What was done stays done."""


class Declined(Exception):
    """A mind does not answer, and says why. The router then decides again, knowing that.

    Args:
        error: what the request fails with where no other mind takes it; None: what it failed with before.
        finding: what the attempt showed of the board; it is kept with the request.
        refused_by: an upstream that does not want this request.
        unaffordable_at: an upstream for whose budget it is too much.
    """

    def __init__(
        self,
        error: EdgedError | None = None,
        *,
        finding: Finding | None = None,
        refused_by: str | None = None,
        unaffordable_at: str | None = None,
    ) -> None:
        super().__init__(f"{finding or refused_by or unaffordable_at}: {error}")
        self.error = error
        self.finding = finding
        self.refused_by = refused_by
        self.unaffordable_at = unaffordable_at


class Decider(Protocol):
    """What one mind does about one request. A class that derives from this one has to define `route` and `move` only.

    route: where it answers and why, as the reply says it; confidence and variant are filled in later.
    patience: failed calls after which the run fails; that many errors go back to the model.
    """

    route: RouteTaken
    patience: int = 0

    async def move(self, run: Run) -> Decided | Answered | Passed:
        """What to do next. It is asked again after each call, and from the beginning after a crash or after another
        mind: `run.records` says what was done.

        Raises:
            Declined: this mind should not, or could not, go on; another may.
            EdgedError: as the engine or the upstream says.
        """
        ...

    async def preview(self, run: Run) -> Decided | Answered | Passed:
        """What it would do first, found out without doing or wording anything. Raises as `move`."""
        return await self.move(run)

    def why_not(self, error: EdgedError) -> Declined | None:
        """What an error of its run means to the router; None: the request fails with it."""
        return None


class Outcome(Struct, frozen=True, kw_only=True):
    """A finished run. messages: the turn as a conversation keeps it."""

    output: str
    finish: Finish
    kind: AnswerKind
    messages: Turn


class Run:
    """One request being worked on by one agent.

    Args:
        history: earlier turns of the conversation, oldest first; a mind leaves out the oldest where they do not fit.
        steps: what the journal knows of an earlier attempt.
        stream: gets the pieces of the final answer as they come.
        permit: raises Forbidden where the caller may not have a tool called; asked before every act.
        client, role: who asked, and by which role it may.
        moment: when.
        accounting: tokens and times of the request; None: they begin now.
    """

    def __init__(
        self,
        rid: str,
        agent: Agent,
        request: Request,
        *,
        toolbox: Toolbox,
        journal: Journal,
        history: Sequence[PastTurn],
        steps: Sequence[Step],
        stream: Stream | None,
        accounting: Accounting | None = None,
        permit: Callable[[str], None] = lambda tool: None,
        client: str = "",
        role: str = "",
        moment: Moment = times.UNSET,
    ) -> None:
        self.client, self.role, self.moment = client, role, moment
        self.sure = Sureness(agent, toolbox)
        self.rid, self.agent, self.request, self.toolbox = rid, agent, request, toolbox
        self.history = list(history)
        self._stream = stream
        self.accounting = accounting or Accounting()
        self.variant = ""  # of the board's model that generated last; empty where it has only one
        self.last_calls = 0  # of the last decision; a mind that has just taken over has made none
        self.by_upstream = False  # all calls so far
        self._pending: tuple[ToolCall, ...] = ()  # calls of the last decision that are still to be made
        self._dropped: tuple[ToolCall, ...] = ()  # and those that are not, because one before them failed
        self._own = OwnWords(agent, request, toolbox)
        self._permit = permit
        self._journal = journal
        self._records: list[ToolRecord] = []
        self._steps = list(steps)
        self._next = 0  # the number of the next step; where the power took the intent of a read some are missing

    @property
    def records(self) -> tuple[ToolRecord, ...]:
        """The calls that were made so far; also of a run that failed."""
        return tuple(self._records)

    @property
    def left(self) -> int:
        """How many more calls may be made: the limit, in one place."""
        return max(0, self.agent.max_steps - len(self._records)) if self.agent.tools else 0

    @property
    def may_act(self) -> bool:
        """Whether another call may be made."""
        return self.left > 0

    @property
    def failed(self) -> bool:
        """Whether the last call failed."""
        return bool(self._records) and not self._records[-1].ok

    @property
    def stream(self) -> Stream | None:
        """Who hears the answer while it is worded; None: nobody. After a call that failed nobody does: the run ends
        with the error, or with another call."""
        return None if self.failed else self._stream

    @property
    def max_tokens(self) -> int:
        """Of the answer that the client sees."""
        return self.request.max_tokens or self.agent.max_tokens

    @property
    def decision_tokens(self) -> int:
        """Of a decision. No client sees one, so what a client asks of its answer does not cut it off."""
        return max(self.max_tokens, DECISION_TOKENS)

    @property
    def sampling(self) -> Sampling:
        """What the request says goes before what its agent is configured to."""
        request, agent = self.request, self.agent
        return Sampling(
            agent.temperature if request.temperature is None else request.temperature,
            agent.top_p if request.top_p is None else request.top_p,
            agent.seed if request.seed is None else request.seed,
        )

    def was_made(self, call: ToolCall) -> bool:
        """Whether it was. The same call again means that the model has nothing to add."""
        with contextlib.suppress(ClockUnset):
            call = self.absolute(call)
        return any(record.name == call.name and record.arguments == call.arguments for record in self._records)

    def absolute(self, call: ToolCall) -> ToolCall:
        """A call with the times that its relative ones are, counted from when the request was accepted. ClockUnset: one
        cannot be counted."""
        if (tool := self.toolbox.get(call.name)) is None:
            return call
        return ToolCall(call.name, times.resolved(schema(tool.parameters), call.arguments, self.moment))

    def said(self, calls: int = 1) -> str | None:
        """The answer without another generation, where the last `calls` calls have a `say` each and the request asks
        for no shape; None: a model has to word it."""
        return self._own.done(self._records[-calls:]) if 0 < calls <= len(self._records) else None

    def unable(self, outside: tuple[str, JSON] | None = None) -> Answered:
        """The answer where no tool can tell or do what was asked; nothing more is done.

        Args:
            outside: a parameter with the value that it does not allow; None: there is no such tool.

        Raises:
            ToolFailed: the request asks for a shape, which holds no sentence of edged's.
        """
        return self._not_done(self._own.unable() if outside is None else self._own.outside(self._records, *outside))

    def clock_unset(self) -> Answered:
        """The answer where a time would have to be counted from one that nobody knows. Raises as `unable`."""
        return self._not_done(self._own.clock_unset(self._records))

    def asked(self, calls: tuple[ToolCall, ...]) -> Answered:
        """The answer where a model is not sure enough of calls that nobody else can decide: whether to make them."""
        try:
            text = self._own.asking(tuple(map(self._dated, calls)), self._records)
        except ClockUnset:  # a yes could not have them made
            return self.clock_unset()
        return msgspec.structs.replace(self._say(text), kind=AnswerKind.ASKED)

    def is_confirmed(self, calls: tuple[ToolCall, ...]) -> bool:
        """Whether edged has just asked about these very calls, and the answer is a plain yes."""
        try:
            return self._own.is_confirmed(tuple(map(self._dated, calls)), self.history)
        except ClockUnset:
            return False

    def _dated(self, call: ToolCall) -> ToolCall:
        return ToolCall(call.name, times.dated(call.arguments, self.absolute(call).arguments))

    def _say(self, text: str) -> Answered:
        if self.stream:
            self.stream.begin()
            self.stream.piece(text)
        return Answered(text)

    async def _move(self, decider: Decider) -> Decided | Answered | Passed:
        if self._stream:
            self._stream.preface = self._own.failed(self._records)
        if self._pending:
            return Decided(self._pending, upstream=self.by_upstream)
        nothing = self._own.nothing(self._records)
        if nothing is None:
            try:
                return await decider.move(self)
            except NotThere as absent:
                return self._not_done(self._own.not_there(self._records, absent.parameter, absent.value))
        return msgspec.structs.replace(self._say(nothing), kind=AnswerKind.NOTHING_FOUND)

    def _not_done(self, text: str) -> Answered:
        """The answer where a call is not made, and so none of its decision; something may have been done before."""
        kind = None if self._kind() is AnswerKind.ACTED else AnswerKind.UNABLE
        return msgspec.structs.replace(self._say(text), kind=kind)

    async def work(self, decider: Decider) -> Outcome | None:
        """Work until there is an answer; None: the mind passes on. May be called again with another mind, also after
        one that declined or failed: what was done stays done, and the next mind sees it.

        Raises:
            Declined: see Decider.
            Forbidden: a tool that the caller may not have called.
            ToolFailed: tools failed more often than the mind has patience for, or in the end.
            EdgedError: as the mind says.
        """
        await self._replay()
        failures = 0
        while isinstance(move := self._timed(await self._move(decider)), Decided):
            point("agent.decided")
            await self._make(move)
            failures += self.failed
            if failures > decider.patience:
                self._raise_failure()
        if isinstance(move, Passed):
            return None
        self._raise_failure()
        point("agent.answered")
        made = (message for record in self._records for message in as_messages(record))
        finish = Finish.LENGTH if move.cut else Finish.STOP
        kind = AnswerKind.CUT if move.cut else move.kind or self._kind()
        output = self._own.failed(self._records) + move.text
        if self.stream:
            self.stream.end(output)
        answer = Message("assistant", output)
        return Outcome(output=output, finish=finish, kind=kind, messages=(*self.request.messages, *made, answer))

    def _timed(self, move: Decided | Answered | Passed) -> Decided | Answered | Passed:
        """The same with absolute times: what is done, written down and told has no others."""
        if not isinstance(move, Decided):
            return move
        try:
            return msgspec.structs.replace(move, calls=tuple(map(self.absolute, move.calls)))
        except ClockUnset:
            return self.clock_unset()

    def _kind(self) -> AnswerKind:
        wrote = any(record.ok and self.toolbox.is_write(record.name) for record in self._records)
        return AnswerKind.ACTED if wrote else AnswerKind.ANSWERED

    async def _replay(self) -> None:
        """Take over what an earlier attempt did, and finish the step it may have died in."""
        steps, self._steps = self._steps, []
        if not steps:
            self.last_calls = 0
        for step in steps:
            self.sure.add(step.intent.logprob)
            if step.result is None:
                self._permit(step.intent.call.name)
            with self.accounting.tool():
                result = step.result or await self._perform(step.number, step.intent, resumed=True)
            self._record(step.intent, result)
            self._next = step.number + 1

    async def _make(self, move: Decided) -> None:
        """Make the calls of a decision, up to one that fails; none, unless all of them may be made."""
        for call in move.calls:
            self._permit(call.name)
        for place, call in enumerate(move.calls):
            await self._act(Intent(call, None if place else move.logprob, move.calls[place + 1 :], move.upstream))
            if self.failed:
                return

    async def _act(self, intent: Intent) -> None:
        number, call = self._next, intent.call
        self.sure.add(intent.logprob)
        with self.accounting.tool():
            if not self.toolbox.keeps_intents(call.name):
                await self._journal.intend(number, intent, durable=self.toolbox.is_write(call.name))
            point("journal.intent")
            result = await self._perform(number, intent)
        self._record(intent, result)
        self._next = number + 1

    async def _perform(self, number: int, intent: Intent, *, resumed: bool = False) -> Result:
        """Do it, and write down what came of it. A request that is ended meanwhile waits for a write that has begun:
        it happens all the same, and the reply has to tell of it."""
        tool = intent.call.name
        act = asyncio.create_task(self._attempt(number, intent, resumed), name=f"edged.tool.{tool}")
        try:
            result = await asyncio.shield(act)
        except asyncio.CancelledError:
            if self.toolbox.is_write(tool):
                with contextlib.suppress(NoLink):  # the link stopped first: an unknown outcome, as after a crash
                    await self._last_word(number, intent, act)
            else:
                act.cancel()
            raise
        await self._write_down(Step(number, intent, result))
        point("journal.result")
        return result

    async def _write_down(self, step: Step) -> None:
        if self.toolbox.keeps_intents(step.intent.call.name):
            self._journal.hold(step)
        else:
            await self._journal.finish(step)

    async def _last_word(self, number: int, intent: Intent, act: asyncio.Task[Result]) -> None:
        result = await act
        self._record(intent, result)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                await self._write_down(Step(number, intent, result))

    async def _attempt(self, number: int, intent: Intent, resumed: bool) -> Result:
        try:
            action = self.toolbox.resume if resumed else self.toolbox.call
            return Result(await action(intent.call, self.rid, number, packed(intent)), True)
        except ToolFailed as error:
            return Result({"error": error.message}, False)

    def _record(self, intent: Intent, result: Result) -> None:
        call = intent.call
        self.last_calls = self.last_calls + 1 if self._pending[:1] == (call,) else 1
        self._pending, self._dropped = (intent.then, ()) if result.ok else ((), intent.then)
        self.by_upstream = intent.upstream and (self.by_upstream or not self._records)
        self._records.append(ToolRecord(call.name, call.arguments, result.value, result.ok))

    def _raise_failure(self) -> None:
        """If an error did not lead to a call that worked, the request failed: a model would rather tell that all went
        well. So it did where a write failed and the answer has a shape, which holds no words of ours."""
        lost = self._own.lost(self._records)
        if self.failed or lost:
            last = self._records[-1] if self.failed else lost[-1]
            raise ToolFailed(f"{last.name}: {last.result['error']}{self._rest()}")

    def _rest(self) -> str:
        """Of a request for several things: what was done all the same, and what was not begun."""
        if not self._dropped and self.last_calls < 2:
            return ""
        done = [record.name for record in self._records if record.ok]
        parts = [("done", done), ("not done", [call.name for call in self._dropped])]
        return "".join(f"; {what}: {', '.join(names)}" for what, names in parts if names)
