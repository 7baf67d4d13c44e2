"""The board's own model as a mind: it decides under a grammar and answers with a prompt of its own (see `prompts`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from edged.agent import answers, facts, times
from edged.agent.answers import Wrong
from edged.agent.dialects.compact import UNABLE
from edged.agent.grammars import grammar, precheck
from edged.agent.grammars.kept import Kept
from edged.agent.loop import Answered, Decided, Decider, Declined, Run
from edged.agent.minds.base import Resources, shown_of_the_board
from edged.agent.prompts import Prompt, Prompts, Turn, as_messages
from edged.agent.router import Decision, Go, Reason
from edged.agent.styles import ESCALATE, REPLY
from edged.agent.world import NO_VALUES, NotThere, Values, said
from edged.errors import ContextExceeded, EdgedError, ToolFailed
from edged.tools import check
from edged.types import Completion, Finding, Finish, Job, Message, Priority, RouteTaken, ToolCall, ToolRecord
from edged.wire import thinking
from edged.wire.thinking import Thinking

OnText = Callable[[str], None]
Chosen = tuple[tuple[ToolCall, ...], float | None]  # calls, and the log-probability of what was sampled for them

CHOICES = (REPLY.name, ESCALATE.name, UNABLE)  # that are no tools


class LocalMind:
    """Implements `Mind` with the engine."""

    where: ClassVar[str] = "local"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def begin(self, run: Run, decision: Decision) -> LocalDecider | None:
        """See Mind."""
        here = decision.go is Go.LOCAL and not decision.served
        return LocalDecider(self._resources, run.agent.model, decision) if here else None


class LocalDecider(Decider):
    """Implements `Decider`. Where the request may leave the board, the model is offered `escalate`, and an empty answer
    is handed over. So is a call that the model is not sure enough of; where nobody else takes it, edged asks back."""

    patience = 1  # an error goes back to the model once: a small one repeats itself after that

    def __init__(self, resources: Resources, model: str, decision: Decision) -> None:
        self.route = RouteTaken(LocalMind.where, model, decision.reason)
        self._engine, self._speak, self._tools_of = resources.engine, resources.speak, resources.tools_of
        self._calibration, self._examples = resources.calibration, resources.examples
        self._decision = decision
        # Of an unsure call: nobody else takes the request (see router.decide).
        self._asks = not decision.may_leave or decision.degraded or decision.reason is Reason.UNSURE
        self._may_escalate = not self._asks
        self._prompts: Prompts | None = None
        self._values = NO_VALUES  # of the last decision
        self._shape: Kept | None = None  # of the answer, where the request wants one

    async def move(self, run: Run) -> Decided | Answered:
        """See Decider."""
        prompts = await self._ready(run)
        decided = prompts.style.at_once and run.last_calls > 0 and not run.failed
        if run.may_act and not decided and run.said(max(1, run.last_calls)) is None:
            calls, logprob = await self._decide_surely(run, prompts)
            if calls[0].name == ESCALATE.name and self._may_escalate:
                raise Declined(ToolFailed("the model asked for a larger one"), finding=Finding.ESCALATED)
            if calls[0].name in CHOICES and not run.records:
                run.sure.add(logprob, called=False)
            if calls[0].name == UNABLE and not run.records:
                return run.unable()
            new = _new(run, calls)
            if new:
                return self._checked(run, prompts, new, logprob)
        if run.failed:
            return Answered("")  # the run fails with the tool's error: there is nothing to tell
        return await self._say(run, prompts)

    async def preview(self, run: Run) -> Decided | Answered:
        """See Decider. `reply` and `escalate` are shown as calls."""
        if not run.may_act:
            return Answered("")
        return Decided(*await self._decide_surely(run, await self._ready(run)))

    def why_not(self, error: EdgedError) -> Declined | None:
        """See Decider."""
        return shown_of_the_board(error, self._decision)

    async def _ready(self, run: Run) -> Prompts:
        """The agent's prompts; and a schema that was never tried, because the request was to go elsewhere, is tried
        before the engine's thread has to compile it."""
        if self._prompts is None:
            if (schema := run.request.response_schema) is not None:
                self._shape = await precheck.fitted_answer(schema)
            with run.accounting.loading():
                self._prompts = await self._speak(run.request.agent)
                run.sure.calibration = await self._calibration(run.request.agent)
        return self._prompts

    async def _decide_surely(self, run: Run, prompts: Prompts) -> Chosen:
        """What the model decides; where that is too unsure it decides once more, with examples in sight, and the surer
        decision counts. Once in a run: whatever it decides then is what it can do."""
        chosen = await self._decide(run, prompts)
        looks, new = run.sure.second_look and not prompts.style.shows, _new(run, chosen[0])
        if not looks or run.sure.lacks(new, chosen[1]) is None or run.is_confirmed(new):
            return chosen
        run.sure.second_look = False
        history = list(run.history)
        if not (shown := await self._examples.nearest(run)):
            return chosen
        try:
            again = await self._decide(run, prompts, [each.messages for each in shown])
        except (ContextExceeded, ToolFailed, NotThere):  # no room for examples, or they led it astray
            run.history = history
            return chosen
        return max(chosen, again, key=lambda each: run.sure.of(each[1], called=each[0][0].name not in CHOICES))

    async def _decide(self, run: Run, prompts: Prompts, shown: Sequence[Turn] = ()) -> Chosen:
        """The next calls, or one of CHOICES, and their log-probability. The grammar makes them valid ones; of a schema
        that it keeps in part only, the rest is checked here, and calls that are wrong are asked for once more.

        Args:
            shown: examples, as turns before the conversation.
        """

        last: list[Wrong] = []

        async def once(corrections: Sequence[Message]) -> Chosen | Wrong:
            calls, logprob = await self._choose(run, prompts, corrections, shown)
            if last and calls[0].name in CHOICES:  # nothing was done, and an answer would sound as if it were
                return last[-1]
            for call in calls:
                wrong = prompts.no_time(call)
                if wrong is None and (schema := prompts.after.get(call.name)) is not None:
                    wrong = await check.problem(answers.closed(schema), call.arguments)
                if wrong is not None:
                    problem = f"{call.name} was not called: {wrong}"
                    record = ToolRecord(call.name, call.arguments, {"error": problem}, False)
                    last.append(Wrong(tuple(as_messages(record)), problem))
                    return last[-1]
            return calls, logprob

        calls, logprob = await answers.until_right(once, ToolFailed, most=answers.OWN_CORRECTIONS)
        calls = await self._values.meant(calls)
        return tuple(
            prompts.as_written(call, [*said(run.history, run.request.messages), run.agent.system]) for call in calls
        ), logprob

    async def _choose(
        self, run: Run, prompts: Prompts, corrections: Sequence[Message], shown: Sequence[Turn]
    ) -> Chosen:
        """What the model chooses; corrections: calls that did not count, with the reason."""
        weighs = run.agent.min_confidence not in ("auto", 0)
        self._values = await Values.of(run.toolbox, self._tools_of(run.agent))
        told = self._values.told(said(run.history, run.request.messages))
        done = await self._ask(
            run,
            lambda: prompts.deciding(
                _turns_so_far(run), _asked(run, prompts), run.records, corrections, shown, told=told
            ),
            prompts.grammar if self._may_escalate else prompts.grammar_here,
            confidence_marker="",
            # To see that a value of a list was cut ("heat_cool" to "heat") costs a step at the end of nearly every
            # call: worth it where the owner asks for so much confidence. The default line was drawn without it.
            listed=prompts.names if weighs else prompts.listed,
            most=run.decision_tokens,
        )
        if done.finish is Finish.LENGTH:
            raise ToolFailed(f"the model's call did not end within {run.decision_tokens} tokens")
        return prompts.style.parse(done.text), done.logprob

    def _checked(
        self, run: Run, prompts: Prompts, calls: tuple[ToolCall, ...], logprob: float | None
    ) -> Decided | Answered:
        """Before anything happens: whether all of the calls may be made."""
        if len(calls) > run.left:
            raise ToolFailed(f"{len(calls)} calls at once, and {run.left} more may be made (max_steps)")
        for call in calls:
            outside = prompts.outside(call)
            if outside is not None:
                run.sure.add(logprob, called=False)
                return run.unable(outside)
        lacks = run.sure.lacks(calls, logprob)
        wanted_here = self._decision.degraded and run.agent.min_confidence != "auto"
        if lacks is None or wanted_here or run.is_confirmed(calls):
            return Decided(calls, logprob)
        problem = ToolFailed(f"{', '.join(call.name for call in calls)} was not called: {lacks}")
        if not self._asks:
            raise Declined(problem, finding=Finding.UNSURE)
        if self._shape is not None:  # which holds no question
            raise problem
        run.sure.add(logprob)
        return run.asked(calls)

    async def _say(self, run: Run, prompts: Prompts) -> Answered:
        if run.stream:
            run.stream.begin()
        said = run.said(max(1, run.last_calls))
        if said is not None:
            if run.stream:
                run.stream.piece(said)
            return Answered(said)
        answered = await self._answer(run, prompts)
        if not answered.text.strip() and self._may_escalate:
            raise Declined(ToolFailed("the model's answer was empty"), finding=Finding.FAILED)
        return answered

    async def _answer(self, run: Run, prompts: Prompts) -> Answered:
        if self._shape is not None:
            return await self._answer_in(self._shape, run, prompts)
        spoken, stream, ends = Thinking(), run.stream, ""

        def asked() -> Prompt:
            nonlocal spoken, ends
            made = prompts.answering(_turns_so_far(run), _asked(run, prompts), run.records)
            ends = (made.turn or made.prefix)[-1].text  # a template may open the tag of thinking
            spoken = Thinking(ends)
            return made

        def on_text(piece: str) -> None:
            if stream and (words := spoken.feed(piece)):
                stream.piece(words)

        done = await self._ask(run, asked, None, stop=run.request.stop, on_text=on_text if stream else None)
        if stream and (rest := spoken.finish()):
            stream.piece(rest)
        text = thinking.without(done.text, ends).strip()
        if run.records and facts.unsupported(text, run.records, _said(run, prompts)):
            text = facts.plainly(run.records)  # a number that nobody gave: the rows say what there is
        return Answered(text, cut=done.finish is Finish.LENGTH)

    async def _answer_in(self, shape: Kept, run: Run, prompts: Prompts) -> Answered:
        """An answer in the request's shape. What its grammar does not keep is checked before anybody sees it."""
        stream = run.stream

        async def once(corrections: Sequence[Message]) -> Answered | Wrong:
            done = await self._ask(
                run,
                lambda: prompts.answering(_turns_so_far(run), (*_asked(run, prompts), *corrections), run.records),
                grammar.answer(shape.schema),
                stop=run.request.stop,
                on_text=stream.piece if stream and not shape.after else None,
            )
            if done.finish is Finish.LENGTH:
                raise answers.cut_off(run.max_tokens)
            wrong = await answers.wrong_with(done.text, run.request.response_schema) if shape.after else None
            if wrong is not None:
                return answers.corrected(done.text, wrong)
            if stream and shape.after:
                stream.piece(done.text)
            return Answered(done.text)

        return await answers.until_right(once, ToolFailed, most=answers.OWN_CORRECTIONS)

    async def _ask(
        self,
        run: Run,
        prompt: Callable[[], Prompt],
        rules: str | None,
        *,
        stop: tuple[str, ...] = (),
        confidence_marker: str | None = None,
        listed: frozenset[bytes] = frozenset(),
        on_text: OnText | None = None,
        most: int | None = None,
    ) -> Completion:
        """One generation of at most `most` tokens, or of as many as the answer may have. While the prompt does not fit,
        the oldest turn of the conversation is left out."""
        while True:
            parts = prompt()
            job = Job(
                rid=run.rid,
                model=run.agent.model,
                prefix=parts.prefix,
                turn=parts.turn,
                max_tokens=most or run.max_tokens,
                sampling=run.sampling,
                stop=stop,
                grammar=rules,
                confidence_marker=confidence_marker,
                listed=listed,
                priority=run.request.priority or Priority.INTERACTIVE,
            )
            try:
                with run.accounting.local() as generating:
                    generating.done = done = await self._engine.generate(job, generating.hearing(on_text))
                    run.variant = done.variant
                    return done
            except ContextExceeded:
                if not run.history:
                    raise
                run.history.pop(0)


def _new(run: Run, calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
    """What is to be called, and was not yet."""
    return tuple(call for call in calls if call.name not in CHOICES and not run.was_made(call))


def _said(run: Run, prompts: Prompts) -> list[str]:
    """What an answer may take its numbers from, beside the results."""
    turns = [*_turns_so_far(run), _asked(run, prompts)]
    earlier = [message.content for turn in turns for message in turn]
    return [run.agent.system, *earlier, *(prompts.about(record.name) for record in run.records)]


def _asked(run: Run, prompts: Prompts) -> Turn:
    """The question as the model gets it."""
    return times.with_now(run.request.messages, run.moment) if prompts.tells_time else run.request.messages


def _turns_so_far(run: Run) -> list[Turn]:
    return [turn.messages for turn in run.history]
