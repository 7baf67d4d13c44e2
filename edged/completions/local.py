"""A plain model as the request says: its messages, its tools, its shape of the answer. Nothing is stored, and none of
our own tools is called: what the model wants called goes back to whoever asked."""

from __future__ import annotations

import msgspec
from msgspec import Struct, structs

from edged.agent import answers
from edged.agent.dialects import Dialects
from edged.agent.dialects.chat_template import Dialect
from edged.agent.grammars import grammar, precheck
from edged.agent.grammars.kept import Kept
from edged.agent.grammars.precheck import Inexpressible
from edged.completions import request, server
from edged.completions.calls import CallPiece, CallReader, WrittenCall
from edged.completions.output import Output, Told
from edged.completions.request import MAX_TOP, ModelAnswer, ModelAsk, OnCall, ToolChoice
from edged.completions.slots import Places
from edged.config import Model
from edged.errors import BadRequest, ModelUnavailable, NoMemory, ToolFailed
from edged.interfaces import Engine, OnPiece
from edged.tools import check
from edged.types import Completion, Finish, Job, Message, Segment, TokenLogprob, ToolCall, ToolSpec
from edged.upstreams import LocalServers
from edged.wire import new_rid

__all__ = [
    "MAX_TOP",
    "CallPiece",
    "Chats",
    "Inexpressible",
    "ModelAnswer",
    "ModelAsk",
    "OnCall",
    "OnPiece",
    "ToolChoice",
    "WrittenCall",
]

TRIES = 2  # of what a grammar keeps in part only: a small model that is wrong twice would be wrong again


class Chats:
    """Completions of plain models, a bounded number at once.

    Args:
        max_waiting: so many wait for a place; one more is refused.
        served: the models among them that servers on this board run.
    """

    def __init__(
        self,
        engine: Engine,
        models: dict[str, Model],
        dialects: Dialects,
        *,
        max_waiting: int,
        served: LocalServers | None = None,
    ) -> None:
        self._engine, self._models, self._dialects = engine, models, dialects
        self._served = served or LocalServers({})
        self._places = Places("completions", max_waiting=max_waiting)

    def refuse(self, error: NoMemory | None) -> None:
        """Begin no completion here, with this error; None: begin them again."""
        self._places.refusing = error

    async def complete(
        self, ask: ModelAsk, on_piece: OnPiece | None = None, on_call: OnCall | None = None
    ) -> ModelAnswer:
        """One completion. Cancelling the task ends the generation within one step of the model.

        Args:
            on_piece: gets text, and the log-probabilities of its tokens where asked for, as they come.
            on_call: gets calls as they come, behind all text.

        Raises:
            BadRequest: what is asked does not go together, or a schema cannot be kept (Inexpressible).
            Busy: too many wait already.
            ContextExceeded: the messages do not fit.
            ModelUnavailable, NoMemory: the model cannot be loaded, or its template refuses these messages; or the board
                is short of memory.
        """
        request.check(ask)
        if ask.model not in self._models:
            raise BadRequest(f"no model {ask.model!r}; configured are {', '.join(self._models) or 'none'}")
        async with self._places.one(takes_memory=ask.model not in self._served):
            if ask.model in self._served:
                return await server.complete(self._served, ask, on_piece, on_call)
            dialect, context = await self._dialects.of_model(ask.model), self._models[ask.model].context
            shapes = await _fitted(ask)
            if not shapes.after:
                return await self._complete(ask, shapes, dialect, context, on_piece, on_call)
            return await self._checked(ask, shapes, dialect, context, on_piece, on_call)

    async def _complete(
        self,
        ask: ModelAsk,
        shapes: _Shapes,
        dialect: Dialect,
        context: int,
        on_piece: OnPiece | None = None,
        on_call: OnCall | None = None,
    ) -> ModelAnswer:
        work = _Work(ask, shapes, dialect, context, on_piece, on_call)
        answer = await self._answer(work)
        if not work.repeats:
            return answer
        # The same call again, its result before it, means that the model has nothing to add: small ones go on like
        # that for ever. Without the tools in sight they word an answer.
        silent = structs.replace(ask, choice=ToolChoice.NONE)
        return await self._answer(_Work(silent, shapes, dialect, context, on_piece))

    async def _checked(
        self,
        ask: ModelAsk,
        shapes: _Shapes,
        dialect: Dialect,
        context: int,
        on_piece: OnPiece | None,
        on_call: OnCall | None,
    ) -> ModelAnswer:
        """As `_complete`, for schemas that a grammar keeps in part only: what is written is checked before anybody sees
        it, and asked for once more where it is wrong."""
        messages, problem = ask.messages, ""
        for _ in range(TRIES):
            answer = await self._complete(structs.replace(ask, messages=messages), shapes, dialect, context)
            wrong = await shapes.wrong_with(answer)
            if wrong is None:
                if on_piece and answer.text:
                    on_piece(answer.text, answer.logprobs)
                if on_call:
                    for index, call in enumerate(answer.calls):
                        on_call((CallPiece(index, call.name, ""), CallPiece(index, None, call.arguments)))
                return answer
            problem = wrong
            messages = (*ask.messages, *_shown(answer, wrong))
        raise ToolFailed(f"model {ask.model!r}: {problem}")

    async def _answer(self, work: _Work) -> ModelAnswer:
        return work.answer(await self._engine.generate(work.job, on_piece=work.piece))


class _Work:
    """One generation: what the engine is given, and what becomes of what it writes."""

    def __init__(
        self,
        ask: ModelAsk,
        shapes: _Shapes,
        dialect: Dialect,
        context: int,
        on_piece: OnPiece | None,
        on_call: OnCall | None = None,
    ) -> None:
        self.ask = ask
        self.dialect = dialect
        self._on_piece = on_piece
        self._on_call = on_call
        self._tools = () if ask.choice is ToolChoice.NONE else ask.tools
        self._must_call = bool(self._tools) and ask.choice is ToolChoice.REQUIRED
        self._output: Output | None = None
        self._reader = CallReader()
        self._told = Told()
        self._answered = request.answered(ask) if ask.choice is ToolChoice.AUTO else ()
        self._held: list[CallPiece] = []
        if self._tools and not self._must_call:
            names = [tool.name for tool in self._tools]
            self._output = Output(names, dialect.calls, ask.stop, mixed=ask.response_schema is None)
        prefix, turn = self._prompt()
        self.job = Job(
            rid=new_rid(),
            model=ask.model,
            prefix=prefix,
            turn=turn,
            max_tokens=ask.max_tokens or context,  # the engine bounds it by what the prompt leaves
            sampling=ask.sampling,
            stop=() if self._tools else ask.stop,  # it would also cut calls: text beside them ends by its grammar
            grammar=_rules(ask, self._tools, shapes, dialect),
            logprobs=ask.logprobs,
            priority=ask.priority,
        )

    def _prompt(self) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
        """(prefix, turn). What comes before the dialogue's first words is the same every time with the same system text
        and tools."""
        segments = self.dialect.render(self.ask.messages, self._tools, generate=True)
        systems = 0
        for message in self.ask.messages:
            if message.role != "system":
                break
            systems += bool(message.content)
        if self._tools and not self.dialect.native_tools:
            systems = max(systems, 1)  # the tools are told in one
        literals = [i for i, segment in enumerate(segments) if segment.literal]
        cut = literals[systems] if systems < len(literals) else 0
        return segments[:cut], segments[cut:]

    def piece(self, text: str, tokens: tuple[TokenLogprob, ...]) -> None:
        """More of what the model writes."""
        if self._output:
            self._told.add(tokens)
            self._tell(self._output.feed(text))
            self._tell_calls(self._output.call_pieces())
        elif self._must_call:
            self._tell_calls(self._reader.feed(text))
        elif self._on_piece:
            self._on_piece(text, tokens)

    @property
    def repeats(self) -> bool:
        """Whether all it has made are calls whose results are there already."""
        return bool(self._held)

    def answer(self, done: Completion) -> ModelAnswer:
        """The whole of it."""
        if self._output:
            self._tell(self._output.finish())
            text, logprobs = self._output.text, tuple(self._told.told)
        elif self._must_call:
            text, logprobs = "", ()
        else:
            return _model_answer(done, done.text, (), done.logprobs)
        calls = self._calls()
        if done.finish is not Finish.LENGTH:  # a scripted model follows no grammar
            if not calls and self._must_call:
                raise ModelUnavailable(f"model {self.ask.model!r} made no call, and one was required")
            if not all(call.whole for call in calls):
                raise ModelUnavailable(f"model {self.ask.model!r} did not end its call")
        if self._held and not all(call.whole and request.is_among(call, self._answered, whole=True) for call in calls):
            self._release()
        return _model_answer(done, text, calls, logprobs)

    def _calls(self) -> tuple[WrittenCall, ...]:
        return self._output.calls() if self._output else self._reader.calls()

    def _tell(self, words: str) -> None:
        tokens = self._told.take(words)
        if words and self._on_piece:
            self._on_piece(words, tokens)

    def _tell_calls(self, pieces: tuple[CallPiece, ...]) -> None:
        """Tell of calls. One that may become one that was answered waits: if all do, they are not made (see
        `Chats.complete`). Behind words they are."""
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


def _model_answer(
    done: Completion, text: str, calls: tuple[WrittenCall, ...], logprobs: tuple[TokenLogprob, ...]
) -> ModelAnswer:
    return ModelAnswer(
        text=text,
        calls=calls,
        finish=done.finish,
        prompt_tokens=done.prompt_tokens,
        cached_tokens=done.cached_tokens,
        completion_tokens=done.completion_tokens,
        logprobs=logprobs,
        variant=done.variant,
    )


def _rules(ask: ModelAsk, tools: tuple[ToolSpec, ...], shapes: _Shapes, dialect: Dialect) -> str | None:
    """The grammar for what may be written; None where anything may."""
    most = grammar.MAX_CALLS if ask.parallel else 1
    if not tools:
        if shapes.answer is not None:
            return grammar.answer(shapes.answer.schema)
        # Behind a result small models copy the JSON they see; what is wanted of one that cannot call is an answer.
        return grammar.words() if ask.messages[-1].role == "tool" else None
    tools = grammar.fitted(tools, shapes.tools)
    if ask.choice is ToolChoice.REQUIRED:
        return grammar.some_calls(tools, dialect.calls, most=most)
    if shapes.answer is not None:
        return grammar.answer_or_calls(tools, dialect.calls, shapes.answer.schema, most=most)
    return grammar.text_or_calls(tools, dialect.calls, most=most, stops=ask.stop)


class _Shapes(Struct, frozen=True):
    """The schemas of a request as grammars take them: its tools' parameters by name, and its answer's."""

    tools: dict[str, Kept]
    answer: Kept | None
    ask: ModelAsk

    @property
    def after(self) -> bool:
        """Whether what is written has to be checked."""
        return any(taken.after for taken in (*self.tools.values(), *([self.answer] if self.answer else ())))

    async def wrong_with(self, answer: ModelAnswer) -> str | None:
        """What a validator says of an answer; None: it is fine, or max_tokens cut it off."""
        if answer.finish is Finish.LENGTH:
            return None
        sent = {tool.name: tool.parameters for tool in self.ask.tools}
        for call in answer.calls:
            if call.name in self.tools and self.tools[call.name].after:
                wrong = await check.problem(answers.closed(sent[call.name]), msgspec.json.decode(call.arguments))
                if wrong is not None:
                    return f"the call of {call.name} was not made: {wrong}"
        if self.answer is not None and self.answer.after and not answer.calls:
            return await answers.wrong_with(answer.text, self.ask.response_schema)
        return None


def _shown(answer: ModelAnswer, wrong: str) -> tuple[Message, ...]:
    """An answer that does not count, and why, as the dialogue goes on. The reason is no result of a call: the same call
    again would be as wrong as before."""
    calls = tuple(ToolCall(call.name, msgspec.json.decode(call.arguments)) for call in answer.calls)
    return Message("assistant", answer.text, tool_calls=calls), Message("user", wrong)


async def _fitted(ask: ModelAsk) -> _Shapes:
    """The request's schemas; raises Inexpressible for one that no grammar can be made of."""
    tools = () if ask.choice is ToolChoice.NONE else ask.tools
    closed = [answers.closed(tool.parameters) for tool in tools]
    names: list[str | None] = [tool.name for tool in tools]
    shape = [] if ask.response_schema is None else [ask.response_schema]
    taken = await precheck.fitted([*closed, *shape], [*names, None])
    by_name = {tool.name: each for tool, each in zip(tools, taken, strict=False)}
    return _Shapes(by_name, taken[-1] if shape else None, ask)
