"""ask -> parse -> act. One place checks the limits; every planned way out is a return or an error of `errors`.

What was decided and done is in the journal before and after each act, so a run that is resumed after a crash continues
where it was: finished steps are read, an unfinished one is finished, nothing is done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from edged.agent import grammar
from edged.agent.dialect import parse_call
from edged.agent.prompt import REPLY, Prompt, Prompts, Turn, as_messages
from edged.clock import Stopwatch
from edged.config import Agent
from edged.errors import ContextExceeded, ToolFailed
from edged.faults import point
from edged.interfaces import Engine
from edged.store.journal import Intent, Journal, Result, Step
from edged.tools.toolbox import Toolbox
from edged.tools.values import complete, sentence
from edged.types import (
    Completion,
    Finish,
    Job,
    Message,
    Request,
    Sampling,
    Timing,
    ToolCall,
    ToolRecord,
    Usage,
)

# A run that is being ended tries so long to write down what its last tool did. A disk that refuses must not keep the
# daemon from stopping: the step then counts as unfinished, and is looked up in the tool's database after the start.
LAST_WORD_S = 1.0

OnText = Callable[[str], None]
Speaks = Callable[[str], Awaitable["Prompts"]]


class Outcome(Struct, frozen=True, kw_only=True):
    """A finished run. messages: the turn as a conversation keeps it; times count from the start of the run."""

    output: str
    records: tuple[ToolRecord, ...]
    confidence: float | None
    usage: Usage
    timing: Timing
    messages: Turn


class Run:
    """One request being worked on by one agent.

    Args:
        steps: what the journal knows of an earlier attempt.
        on_text: gets the pieces of the final answer as they come.
    """

    def __init__(
        self,
        rid: str,
        agent: Agent,
        request: Request,
        *,
        prompts: Prompts,
        engine: Engine,
        toolbox: Toolbox,
        journal: Journal,
        history: Sequence[Turn],
        steps: Sequence[Step],
        on_text: OnText | None,
    ) -> None:
        self._rid, self._agent, self._request = rid, agent, request
        self._prompts, self._engine, self._toolbox, self._journal = prompts, engine, toolbox, journal
        self._history = list(history)
        self._on_text = on_text
        self._records: list[ToolRecord] = []
        self._logprobs: list[float] = []
        self._steps = list(steps)
        self._completions: list[Completion] = []
        self._watch = Stopwatch()
        self._first_token_ms: float | None = None
        self._tools_ms = 0.0

    @property
    def records(self) -> tuple[ToolRecord, ...]:
        """The calls that were made so far; also of a run that failed."""
        return tuple(self._records)

    async def run(self) -> Outcome:
        """Work until there is an answer.

        Raises:
            ToolFailed: a tool failed again after the model knew of its error.
            ContextExceeded, ModelUnavailable, NoMemory, BadRequest: as the engine says.
        """
        await self._replay()
        while self._may_act():
            call, logprob = await self._decide()
            if call.name == REPLY.name or self._was_made(call):
                break
            point("agent.decided")
            await self._act(call, logprob)
        self._raise_failure()
        return self._outcome(self._said() or await self._answer())

    def _may_act(self) -> bool:
        """The limits, in one place: no tools, a sentence that answers already, or max_steps calls made."""
        return bool(self._agent.tools) and self._said() is None and len(self._records) < self._agent.max_steps

    async def _replay(self) -> None:
        """Take over what an earlier attempt did, and finish the step it may have died in."""
        for step in self._steps:
            if step.intent.logprob is not None:
                self._logprobs.append(step.intent.logprob)
            result = step.result or await self._perform(step.intent.call, step.number, resumed=True)
            self._record(step.intent.call, result)

    async def _decide(self) -> tuple[ToolCall, float | None]:
        """Ask for the next call; the grammar makes it a valid one."""
        done = await self._ask(
            lambda: self._prompts.deciding(self._history, self._request.messages, self._records),
            self._prompts.grammar,
            confidence_marker="",
        )
        if done.finish is Finish.LENGTH:
            raise ToolFailed(f"the model's call did not end within {self._max_tokens} tokens (max_tokens)")
        return parse_call(done.text, self._prompts.dialect.calls), done.logprob

    async def _act(self, call: ToolCall, logprob: float | None) -> None:
        number = len(self._records)
        if logprob is not None:
            self._logprobs.append(logprob)
        await self._journal.intend(number, Intent(call, logprob), durable=self._toolbox.is_write(call.name))
        point("journal.intent")
        self._record(call, await self._perform(call, number))

    async def _perform(self, call: ToolCall, number: int, *, resumed: bool = False) -> Result:
        """Do it, and write down what came of it. A request that is ended meanwhile waits for a write that has begun:
        it happens all the same, and the reply has to tell of it."""
        watch = Stopwatch()
        act = asyncio.create_task(self._attempt(call, number, resumed), name=f"edged.tool.{call.name}")
        try:
            result = await asyncio.shield(act)
        except asyncio.CancelledError:
            if self._toolbox.is_write(call.name):
                result = await act
                self._records.append(ToolRecord(call.name, call.arguments, result.value, result.ok))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_WORD_S):
                        await self._journal.finish(number, result)
            else:
                act.cancel()
            raise
        self._tools_ms += watch.ms()
        await self._journal.finish(number, result)
        point("journal.result")
        return result

    async def _attempt(self, call: ToolCall, number: int, resumed: bool) -> Result:
        try:
            action = self._toolbox.resume if resumed else self._toolbox.call
            return Result(await action(call, self._rid, number), True)
        except ToolFailed as error:
            return Result({"error": error.message}, False)

    def _record(self, call: ToolCall, result: Result) -> None:
        self._records.append(ToolRecord(call.name, call.arguments, result.value, result.ok))
        if sum(not record.ok for record in self._records) > 1:
            self._raise_failure()

    def _raise_failure(self) -> None:
        """An error goes back to the model once. If that did not lead to a call that worked, the request failed: a small
        model would rather tell that all went well."""
        if self._records and not self._records[-1].ok:
            last = self._records[-1]
            raise ToolFailed(f"{last.name}: {last.result['error']}")

    def _was_made(self, call: ToolCall) -> bool:
        """The same call again means that the model has nothing to add."""
        return any(record.name == call.name and record.arguments == call.arguments for record in self._records)

    def _said(self) -> str | None:
        """The answer without a second generation, where the last tool has a `say` and nobody asked for a shape."""
        if not self._records or not self._records[-1].ok or self._request.response_schema is not None:
            return None
        tool = self._toolbox.get(self._records[-1].name)  # None: the configuration changed after a crash
        return sentence(tool.say, complete(tool.parameters, self._records[-1].arguments)) if tool and tool.say else None

    async def _answer(self) -> str:
        schema = self._request.response_schema
        done = await self._ask(
            lambda: self._prompts.answering(self._history, self._request.messages, self._records),
            grammar.answer(schema) if schema is not None else None,
            stop=self._request.stop,
            on_text=self._on_text,
        )
        if schema is not None and done.finish is Finish.LENGTH:
            raise ToolFailed(f"the answer did not end within {self._max_tokens} tokens (max_tokens)")
        return done.text if schema is not None else done.text.strip()

    async def _ask(
        self,
        prompt: Callable[[], Prompt],
        rules: str | None,
        *,
        stop: tuple[str, ...] = (),
        confidence_marker: str | None = None,
        on_text: OnText | None = None,
    ) -> Completion:
        """One generation. While the prompt does not fit, the oldest turn of the conversation is left out."""
        while True:
            parts = prompt()
            job = Job(
                rid=self._rid,
                model=self._agent.model,
                prefix=parts.prefix,
                turn=parts.turn,
                max_tokens=self._max_tokens,
                sampling=self._sampling(),
                stop=stop,
                grammar=rules,
                confidence_marker=confidence_marker,
                priority=self._request.priority,
            )
            before = self._watch.ms()
            try:
                done = await self._engine.generate(job, on_text)
            except ContextExceeded:
                if not self._history:
                    raise
                self._history.pop(0)
                continue
            if self._first_token_ms is None:
                self._first_token_ms = before + done.first_token_ms
            self._completions.append(done)
            return done

    @property
    def _max_tokens(self) -> int:
        return self._request.max_tokens or self._agent.max_tokens

    def _sampling(self) -> Sampling:
        request, agent = self._request, self._agent
        return Sampling(
            agent.temperature if request.temperature is None else request.temperature,
            agent.top_p if request.top_p is None else request.top_p,
            agent.seed if request.seed is None else request.seed,
        )

    def _outcome(self, output: str) -> Outcome:
        point("agent.answered")
        if self._on_text and not self._completions_streamed():
            self._on_text(output)
        made = (message for record in self._records for message in as_messages(record))
        return Outcome(
            output=output,
            records=self.records,
            confidence=math.exp(sum(self._logprobs)) if self._logprobs else None,
            usage=self.usage(),
            timing=self.timing(),
            messages=(*self._request.messages, *made, Message("assistant", output)),
        )

    def _completions_streamed(self) -> bool:
        return self._said() is None

    def usage(self) -> Usage:
        """Tokens so far."""
        done = self._completions
        return Usage(
            prompt_tokens=sum(c.prompt_tokens for c in done),
            cached_tokens=sum(c.cached_tokens for c in done),
            completion_tokens=sum(c.completion_tokens for c in done),
            decode_steps=sum(c.decode_steps for c in done),
        )

    def timing(self) -> Timing:
        """Times so far; the pipeline adds what passed before the run."""
        done = self._completions
        return Timing(
            queue_ms=sum(c.queue_ms for c in done),
            load_ms=sum(c.load_ms for c in done),
            prefill_ms=sum(c.prefill_ms for c in done),
            first_token_ms=self._first_token_ms or 0.0,
            decode_ms=sum(c.decode_ms for c in done),
            tools_ms=self._tools_ms,
            total_ms=self._watch.ms(),
        )
