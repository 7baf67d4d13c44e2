"""A model in a server on this board as a mind. It is the board's own: it sees private turns, its tools' `say` and
`examples` count, it may hand over to an upstream. But it follows no grammar of ours, so what it writes is checked as an
upstream's is.

Acting and answering are two questions, as for the board's own models: with a shape asked for beside tools some servers
force the shape on calls, others refuse. A model that has nothing to add answers without tools in sight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

from edged.agent import answers, copied, times
from edged.agent.answers import Wrong
from edged.agent.dialects.chat_template import write_json
from edged.agent.loop import Answered, Decided, Decider, Declined, Run
from edged.agent.minds.base import Resources, shown_of_the_board
from edged.agent.prompts import as_messages
from edged.agent.router import Decision, Go
from edged.agent.styles import ESCALATE, REPLY, specs
from edged.agent.world import Values, beside, said
from edged.config import Tool
from edged.errors import ContextExceeded, EdgedError, ModelUnavailable, ToolFailed
from edged.types import Chat, ChatAnswer, Finding, Message, RouteTaken, ToolCall, ToolSpec
from edged.upstreams.request import estimated_tokens, prompt_characters


class ServerMind:
    """Implements `Mind` with a server on this board. To a client that is the board."""

    where: ClassVar[str] = "local"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def begin(self, run: Run, decision: Decision) -> ServerDecider | None:
        """See Mind."""
        here = decision.go is Go.LOCAL and decision.served
        return ServerDecider(self._resources, run, decision) if here else None


class ServerDecider(Decider):
    """Implements `Decider`. Where the request may leave the board, the model is offered `escalate`."""

    patience = 1  # as the board's own models: a small one repeats itself after that

    def __init__(self, resources: Resources, run: Run, decision: Decision) -> None:
        self._served, self._model = resources.served, run.agent.model
        self._context = resources.config.models[self._model].context
        self._decision = decision
        self.route = RouteTaken(ServerMind.where, self._model, decision.reason)
        self._tools = tools = resources.tools_of(run.agent)
        may_escalate = decision.may_leave and not decision.degraded
        offered = [*_with_examples(tools), *([ESCALATE] if may_escalate and tools else [])]
        self._specs = {spec.name: spec for spec in offered}
        asked, tells = run.request.messages, times.tells(run.agent.clock, tools.values())
        self._asked = times.with_now(asked, run.moment) if tells else asked

    async def move(self, run: Run) -> Decided | Answered:
        """See Decider."""
        if (said := run.said(run.last_calls)) is not None:
            if run.stream:
                run.stream.begin()
                run.stream.piece(said)
            return Answered(said)
        acted = await self._act(run) if run.may_act else None
        if acted is not None:
            return acted
        if run.failed:
            return Answered("")  # the run fails with the tool's error: there is nothing to tell
        return await self._say(run)

    async def preview(self, run: Run) -> Decided | Answered:
        """See Decider. `reply` and `escalate` are shown as calls; servers give no confidence."""
        if not run.may_act:
            return Answered("")
        try:
            acted = await self._act(run)
        except Declined as declined:
            if declined.finding is not Finding.ESCALATED:
                raise
            return Decided((ToolCall(ESCALATE.name, {}),))
        return acted if isinstance(acted, Decided) else Decided((ToolCall(REPLY.name, {}),))

    def why_not(self, error: EdgedError) -> Declined | None:
        """See Decider."""
        return shown_of_the_board(error, self._decision)

    async def _act(self, run: Run) -> Decided | Answered | None:
        """The next calls, or the answer where the model has put it in words; None: it is still to be asked for."""
        shaped = run.request.response_schema is not None
        values = await Values.of(run.toolbox, self._tools)

        async def ask(corrections: Sequence[Message]) -> Decided | Answered | Wrong | None:
            answer = await self._ask(run, corrections, told=values.told(said(run.history, run.request.messages)))
            if not answer.calls:
                text, long = answer.text.strip(), answer.completion_tokens > run.max_tokens
                return Answered(text, cut=answer.finish == "length") if text and not shaped and not long else None
            calls = await answers.checked(self._specs, answer.calls, run.left, values, again=bool(corrections))
            if isinstance(calls, Wrong):
                return calls
            if any(call.name == ESCALATE.name for call in calls):
                raise Declined(ToolFailed("the model asked for a larger one"), finding=Finding.ESCALATED)
            written = [self._as_written(call, run) for call in calls]
            fresh = tuple(call for call in written if not run.was_made(call))
            return Decided(fresh) if fresh else None

        return await answers.until_right(ask, self._failure)

    async def _say(self, run: Run) -> Answered:
        schema = run.request.response_schema

        async def ask(corrections: Sequence[Message]) -> Answered | Wrong:
            answer = await self._ask(run, corrections)
            if schema is not None and answer.finish == "length":
                raise answers.cut_off(run.max_tokens)
            problem = await answers.wrong_with(answer.text, schema)
            if problem is not None:
                return answers.corrected(answer.text, problem)
            text = answer.text if schema is not None else answer.text.strip()
            return Answered(text, cut=answer.finish == "length")

        return await answers.until_right(ask, self._failure)

    def _failure(self, problem: str) -> ToolFailed:
        return ToolFailed(f"model {self._model!r}: {problem}")

    def _as_written(self, call: ToolCall, run: Run) -> ToolCall:
        parameters = self._tools[call.name].parameters
        return ToolCall(
            call.name,
            copied.arguments(call.arguments, parameters, [*said(run.history, run.request.messages), run.agent.system]),
        )

    async def _ask(self, run: Run, corrections: Sequence[Message], *, told: str | None = None) -> ChatAnswer:
        """One generation. While the prompt does not fit, the oldest turn of the conversation is left out.

        Args:
            told: what stands beside the question of what to do; None: an answer is asked for.
        """
        acting = told is not None
        shaped = run.request.response_schema is not None
        stream = run.stream if not (acting and shaped) else None  # then its words are no answer
        most = run.decision_tokens if acting else run.max_tokens
        while True:
            chat = self._chat(run, corrections, told=told)
            room = self._context - estimated_tokens(prompt_characters(chat))
            if room < most and run.history:
                run.history.pop(0)
                continue
            if room > 0:  # else the estimate may be wrong, and the server counts
                chat = msgspec.structs.replace(chat, max_tokens=min(most, room))
            if stream:
                stream.begin()
            try:
                with run.accounting.upstream() as generating:
                    on_text = generating.hearing(stream.piece) if stream else None
                    chat = answers.keyed(chat, run.rid)
                    generating.done = answer = await self._served.chat(self._model, chat, on_text)
            except ContextExceeded:
                if not run.history:
                    raise
                run.history.pop(0)
                continue
            if answer.finish == "content_filter":
                raise ModelUnavailable(f"model {self._model!r}: its server filtered the answer")
            return answer

    def _chat(self, run: Run, corrections: Sequence[Message], *, told: str | None) -> Chat:
        request, acting = run.request, told is not None
        system = (Message("system", run.agent.system),) if run.agent.system else ()
        earlier = [message for turn in run.history for message in turn.messages]
        made = [message for record in run.records for message in as_messages(record)]
        return Chat(
            key="",
            messages=(*system, *earlier, *beside(self._asked, told or ""), *made, *corrections),
            tools=tuple(map(times.described, self._specs.values())) if acting else (),
            response_schema=None if acting else request.response_schema,
            max_tokens=run.decision_tokens if acting else run.max_tokens,
            sampling=run.sampling,
            stop=request.stop,
        )


def _with_examples(tools: Mapping[str, Tool]) -> list[ToolSpec]:
    """The tools, each with its examples in its description: as turns of a dialogue they would need an answer, and the
    model would learn that one."""
    offered = []
    for spec, tool in zip(specs(tools), tools.values(), strict=True):
        shown = [f'For "{example.input}": {write_json(example.arguments)}' for example in tool.examples]
        offered.append(msgspec.structs.replace(spec, description="\n".join([spec.description, *shown])))
    return offered
