"""The board's own model as a mind: it decides under a grammar and answers with a prompt of its own (see `prompt`)."""

from __future__ import annotations

import math
from collections.abc import Callable

from edged.agent.dialects.chat_template import parse_call
from edged.agent.grammars import grammar
from edged.agent.loop import Answered, Decided, Escalation, Run
from edged.agent.prompts import ESCALATE, REPLY, Prompt, Prompts, Turn
from edged.errors import ContextExceeded, ToolFailed
from edged.interfaces import Engine
from edged.types import Completion, Finding, Finish, Job, Priority, ToolCall

OnText = Callable[[str], None]


class LocalMind:
    """Implements `loop.Mind`.

    Args:
        may_escalate: the request may leave the board; the model is then offered `escalate`, and an empty answer is
            handed over.
        min_confidence: a call below it is not made.
    """

    patience = 1  # an error goes back to the model once: a small one repeats itself after that

    def __init__(self, engine: Engine, prompts: Prompts, *, may_escalate: bool, min_confidence: float) -> None:
        self._engine, self._prompts = engine, prompts
        self._may_escalate, self._min_confidence = may_escalate, min_confidence

    async def move(self, run: Run) -> Decided | Answered:
        """See Mind."""
        if run.may_act and run.said() is None:
            call, logprob = await self.decide(run)
            if call.name == ESCALATE.name and self._may_escalate:
                raise Escalation(Finding.ESCALATED, ToolFailed("the model asked for a larger one"))
            if call.name not in (REPLY.name, ESCALATE.name) and not run.was_made(call):
                self._check_confidence(call, logprob)
                return Decided((call,), logprob)
        if run.failed:
            return Answered("")  # the run fails with the tool's error: there is nothing to tell
        return Answered(await self._say(run))

    async def decide(self, run: Run) -> tuple[ToolCall, float | None]:
        """The next call, or `reply`, or `escalate`, and its log-probability; the grammar makes it a valid one."""
        done = await self._ask(
            run,
            lambda: self._prompts.deciding(_turns_so_far(run), run.request.messages, run.records),
            self._prompts.grammar if self._may_escalate else self._prompts.grammar_here,
            confidence_marker="",
        )
        if done.finish is Finish.LENGTH:
            raise ToolFailed(f"the model's call did not end within {run.max_tokens} tokens (max_tokens)")
        return parse_call(done.text, self._prompts.dialect.calls), done.logprob

    def _check_confidence(self, call: ToolCall, logprob: float | None) -> None:
        """Before anything happens. Where nothing was sampled there was nothing to be unsure of."""
        confidence = 1.0 if logprob is None else math.exp(logprob)
        if confidence < self._min_confidence:
            told = f"{call.name} was not called: confidence {confidence:.2f} is below min_confidence"
            raise Escalation(Finding.UNSURE, ToolFailed(f"{told} {self._min_confidence:.2f}"))

    async def _say(self, run: Run) -> str:
        if run.stream:
            run.stream.begin()
        said = run.said()
        if said is not None:
            if run.stream:
                run.stream.piece(said)
            return said
        text = await self._answer(run)
        if not text.strip() and self._may_escalate:
            raise Escalation(Finding.FAILED, ToolFailed("the model's answer was empty"))
        return text

    async def _answer(self, run: Run) -> str:
        schema = run.request.response_schema
        done = await self._ask(
            run,
            lambda: self._prompts.answering(_turns_so_far(run), run.request.messages, run.records),
            grammar.answer(schema) if schema is not None else None,
            stop=run.request.stop,
            on_text=run.stream.piece if run.stream else None,
        )
        if schema is not None and done.finish is Finish.LENGTH:
            raise ToolFailed(f"the answer did not end within {run.max_tokens} tokens (max_tokens)")
        return done.text if schema is not None else done.text.strip()

    async def _ask(
        self,
        run: Run,
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
                rid=run.rid,
                model=run.agent.model,
                prefix=parts.prefix,
                turn=parts.turn,
                max_tokens=run.max_tokens,
                sampling=run.sampling,
                stop=stop,
                grammar=rules,
                confidence_marker=confidence_marker,
                priority=run.request.priority or Priority.INTERACTIVE,
            )
            try:
                with run.tally.local() as generating:
                    generating.done = done = await self._engine.generate(job, generating.hearing(on_text))
                    run.variant = done.variant
                    return done
            except ContextExceeded:
                if not run.history:
                    raise
                run.history.pop(0)


def _turns_so_far(run: Run) -> list[Turn]:
    return [turn.messages for turn in run.history]
