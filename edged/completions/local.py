"""A completion of a plain model that the board runs itself: the request's messages, its tools and its shape of the
answer become a prompt and a grammar, and what is written becomes words and calls. None of our own tools is called:
what the model wants called goes back to the client."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from edged.agent import answers
from edged.agent.answers import Wrong
from edged.agent.dialects import Dialects
from edged.agent.dialects.chat_template import Dialect
from edged.agent.grammars import grammar
from edged.completions import heads, request, results, shapes, taught
from edged.completions.calls import CallPiece, CallReader, WrittenCall
from edged.completions.heads import Heads
from edged.completions.output import Output, Spoken, WaitingLogprobs
from edged.completions.request import ModelAnswer, ModelAsk, OnCall, OnThought, ToolChoice, model_answer
from edged.completions.shapes import Shapes
from edged.config import Model
from edged.errors import ToolFailed
from edged.interfaces import Engine, OnPiece
from edged.types import Completion, Finish, Job, Message, Reuse, Segment, TokenLogprob, ToolSpec
from edged.wire import new_rid


class Local:
    """The models that the board's engines run. Arguments: see Completions."""

    def __init__(self, engine: Engine, models: dict[str, Model], dialects: Dialects) -> None:
        self._engine, self._models, self._dialects = engine, models, dialects
        self._heads = {name: Heads() for name, model in models.items() if model.reuse is Reuse.EXACT}

    async def complete(
        self, ask: ModelAsk, on_piece: OnPiece | None, on_call: OnCall | None, on_thought: OnThought | None = None
    ) -> ModelAnswer | None:
        """One generation. See Completions.complete.

        Returns:
            None where all that was made are calls whose results are there already: the model has nothing to add. Small
            ones go on like that for ever; without the tools in sight they word an answer.
        """
        if ask.model in self._heads:
            ask = structs.replace(ask, placed=self._heads[ask.model].placed(heads.movable(ask.messages)))
        fitted = await shapes.fitted(ask)
        dialect = await self._dialects.of_model(ask.model)
        if taught.speaks(dialect, ask):
            if request.offered(ask):
                context = self._models[ask.model].context
                decided = await taught.decided(self._engine, ask, fitted, dialect, context, on_piece, on_call)
                if decided is not None:
                    return decided
            return await self._in_words(ask, fitted, on_piece, on_thought)
        return await self._written(ask, fitted, on_piece, on_call, on_thought)

    async def _in_words(
        self, ask: ModelAsk, fitted: Shapes, on_piece: OnPiece | None, on_thought: OnThought | None
    ) -> ModelAnswer | None:
        """An answer of a taught model. It begins with what edged has to say itself."""
        before = taught.failures(ask)
        if before and not taught.has_more(ask):
            told = taught.until_stop(before.strip(), ask.stop)
            if on_piece:
                on_piece(told, ())
            return ModelAnswer(text=told, finish=Finish.STOP, prompt_tokens=0, cached_tokens=0, completion_tokens=0)
        if before and on_piece:
            on_piece(before, ())
        words = taught.in_words(ask)
        wanted = structs.replace(fitted, tools={}, ask=words)
        answer = await self._written(words, wanted, on_piece, None, on_thought)
        return answer and structs.replace(answer, text=before + answer.text)

    async def _written(
        self,
        ask: ModelAsk,
        fitted: Shapes,
        on_piece: OnPiece | None,
        on_call: OnCall | None,
        on_thought: OnThought | None,
    ) -> ModelAnswer | None:
        """What the model writes."""
        if not fitted.after:
            return await self._once(ask, fitted, on_piece, on_call, on_thought)

        # A grammar keeps a schema in part only: what is written is checked before anybody sees it.
        async def once(corrections: Sequence[Message]) -> ModelAnswer | Wrong | None:
            again = structs.replace(ask, messages=(*ask.messages, *corrections))
            answer = await self._once(again, fitted, None, None, None)
            problem = None if answer is None else await fitted.wrong_with(answer)
            return answer if answer is None or problem is None else shapes.refused(answer, problem)

        def failure(problem: str) -> ToolFailed:
            return ToolFailed(f"model {ask.model!r}: {problem}")

        answer = await answers.until_right(once, failure, most=answers.OWN_CORRECTIONS)
        if answer is not None:
            if on_thought and answer.reasoning:
                on_thought(answer.reasoning)
            _tell_whole(answer, on_piece, on_call)
        return answer

    async def _once(
        self,
        ask: ModelAsk,
        fitted: Shapes,
        on_piece: OnPiece | None,
        on_call: OnCall | None,
        on_thought: OnThought | None,
    ) -> ModelAnswer | None:
        dialect, context = await self._dialects.of_model(ask.model), self._models[ask.model].context
        work = _Work(ask, fitted, dialect, context, on_piece, on_call, on_thought)
        answer = work.answer(await self._engine.generate(work.job, on_piece=work.piece))
        return None if work.repeats else answer


def _tell_whole(answer: ModelAnswer, on_piece: OnPiece | None, on_call: OnCall | None) -> None:
    if on_piece and answer.text:
        on_piece(answer.text, answer.logprobs)
    if on_call:
        request.tell_calls(answer.calls, on_call)


class _Work:
    """One generation: what the engine is given, and what becomes of what it writes."""

    def __init__(
        self,
        ask: ModelAsk,
        fitted: Shapes,
        dialect: Dialect,
        context: int,
        on_piece: OnPiece | None,
        on_call: OnCall | None = None,
        on_thought: OnThought | None = None,
    ) -> None:
        self.ask = ask
        self.dialect = dialect
        self._on_piece = on_piece
        self._on_call = on_call
        self._on_thought = on_thought
        self._thoughts: list[str] = []
        self._tools = request.offered(ask)
        self._must_call = request.must_call(ask)
        self._output: Output | None = None
        self._reader = CallReader()
        self._logprobs = WaitingLogprobs()
        self._answered = request.answered(ask) if ask.choice is ToolChoice.AUTO else ()
        self._held: list[CallPiece] = []
        if self._tools and not self._must_call:
            names = [tool.name for tool in self._tools]
            self._output = Output(names, dialect.calls, ask.stop, mixed=ask.response_schema is None)
        self._words: list[str] = []
        self._tokens: list[TokenLogprob] = []
        prefix, turn = self._prompt()
        # a template may open the tag of thinking; a shape allows none
        self._spoken = Spoken(turn[-1].text if turn and ask.response_schema is None else "")
        self.job = Job(
            rid=new_rid(),
            model=ask.model,
            prefix=prefix,
            turn=turn,
            max_tokens=ask.max_tokens or context,  # the engine bounds it by what the prompt leaves
            sampling=ask.sampling,
            stop=() if self._tools else ask.stop,  # it would also cut calls: text beside them ends by its grammar
            grammar=_rules(ask, self._tools, fitted, dialect),
            logprobs=ask.logprobs,
            priority=ask.priority,
        )

    def _prompt(self) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
        """(prefix, turn). What comes before the dialogue's first words is the same every time with the same system text
        and tools."""
        shown = heads.shown(self.ask.messages, self.ask.placed)
        segments = self.dialect.render(results.marked(shown), self._tools, generate=True)
        systems = 0
        for message in self.ask.messages:
            if message.role != "system":
                break
            systems += bool(message.content)
        if self._tools and not self.dialect.native_tools:
            systems = max(systems, 1)  # the tools are listed in one
        literals = [i for i, segment in enumerate(segments) if segment.literal]
        cut = literals[systems] if systems < len(literals) else 0
        return segments[:cut], segments[cut:]

    def piece(self, text: str, tokens: tuple[TokenLogprob, ...]) -> None:
        """More of what the model writes."""
        if self._must_call:
            self._tell_calls(self._reader.feed(text))
        else:
            words = self._spoken.feed(text, tokens)
            self._think()
            self._hear(*words)

    def _think(self) -> None:
        if thoughts := self._spoken.thoughts():
            self._thoughts.append(thoughts)
            if self._on_thought:
                self._on_thought(thoughts)

    def _hear(self, text: str, tokens: tuple[TokenLogprob, ...]) -> None:
        """More of it, its thinking left out."""
        if not text and not tokens:
            return
        if self._output:
            self._logprobs.add(tokens)
            self._tell(self._output.feed(text))
            self._tell_calls(self._output.call_pieces())
        elif text:
            self._words.append(text)
            self._tokens += tokens
            if self._on_piece:
                self._on_piece(text, tokens)

    @property
    def repeats(self) -> bool:
        """Whether all it has made are calls whose results are there already."""
        return bool(self._held)

    def answer(self, done: Completion) -> ModelAnswer:
        """The whole of it."""
        if not self._must_call:
            rest = self._spoken.finish()
            self._think()
            self._hear(*rest)
        thoughts = "".join(self._thoughts)
        if self._output:
            self._tell(self._output.finish())
            text, logprobs = self._output.text, tuple(self._logprobs.taken)
        elif self._must_call:
            text, logprobs = "", ()
        else:
            words, tokens = "".join(self._words), tuple(self._tokens)
            return model_answer(done, words, (), done.finish, tokens, done.variant, thoughts)
        calls = self._calls()
        request.check_calls(self.ask, calls, done.finish)  # a scripted model follows no grammar
        if self._held and not all(call.whole and request.is_among(call, self._answered, whole=True) for call in calls):
            self._release()
        return model_answer(done, text, calls, done.finish, logprobs, done.variant, thoughts)

    def _calls(self) -> tuple[WrittenCall, ...]:
        return self._output.calls() if self._output else self._reader.calls()

    def _tell(self, words: str) -> None:
        tokens = self._logprobs.take(words)
        if words and self._on_piece:
            self._on_piece(words, tokens)

    def _tell_calls(self, pieces: tuple[CallPiece, ...]) -> None:
        """Tell of calls. One that may become one that was answered waits: if all do, they are not made (see
        `Local.complete`). After words they are."""
        self._held += pieces
        if self._held and not self._may_repeat():
            self._release()

    def _may_repeat(self) -> bool:
        if not self._answered or (self._output and self._output.text):
            return False
        return all(request.is_among(call, self._answered, whole=False) for call in self._calls())

    def _release(self) -> None:
        self._answered = ()
        held, self._held = tuple(self._held), []
        if self._on_call:
            self._on_call(held)


def _rules(ask: ModelAsk, tools: tuple[ToolSpec, ...], fitted: Shapes, dialect: Dialect) -> str | None:
    """The grammar for what may be written; None where anything may."""
    most = grammar.MAX_CALLS if ask.parallel else 1
    if not tools:
        if fitted.answer is not None:
            return grammar.answer(fitted.answer.schema)
        # Behind a result small models copy the JSON they see; what is wanted of one that cannot call is an answer.
        return grammar.words() if ask.messages[-1].role == "tool" else None
    tools = grammar.fitted(tools, fitted.tools)
    if ask.choice is ToolChoice.REQUIRED:
        return grammar.some_calls(tools, dialect.calls, most=most)
    if fitted.answer is not None:
        return grammar.answer_or_calls(tools, dialect.calls, fitted.answer.schema, most=most)
    return grammar.text_or_calls(tools, dialect.calls, most=most, stops=ask.stop)
