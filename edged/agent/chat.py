"""A plain model as the request says: its messages, its tools, its shape of the answer. Nothing is stored, and none of
our own tools is called: what the model wants called goes back to whoever asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from enum import StrEnum

from msgspec import Struct, structs

from edged.agent import grammar, trial
from edged.agent.calls import Call, CallPiece, CallReader
from edged.agent.dialect import Dialect, write_json
from edged.agent.output import Output, Told
from edged.agent.prompt import TemplateOf
from edged.agent.trial import Inexpressible
from edged.config import Model
from edged.errors import BadRequest, Busy, ModelUnavailable
from edged.interfaces import Engine, OnPiece
from edged.types import (
    JSON,
    Completion,
    Finish,
    Job,
    Message,
    Sampling,
    Segment,
    TokenLogprob,
    ToolCall,
    ToolSpec,
)
from edged.wire import new_rid

__all__ = ["Call", "CallPiece", "Chats", "Inexpressible", "ModelAnswer", "ModelAsk", "OnCall", "OnPiece", "ToolChoice"]

OnCall = Callable[[tuple[CallPiece, ...]], None]

AT_ONCE = 16  # as many as a model has places for
RETRY_S = 5.0  # when to ask again where too many wait: about two answers of a small board
MAX_TOP = 20  # likeliest tokens told for each token, as OpenAI bounds it


class ToolChoice(StrEnum):
    """Whether the model calls: as it likes, never, always (or the one tool that `ModelAsk.tools` then holds)."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class ModelAsk(Struct, frozen=True, kw_only=True):
    """A completion of a plain model.

    parallel: several calls in one turn are wanted.
    max_tokens: None: as many as the model's context leaves.
    stop: strings that end text and are not part of it; in calls they mean nothing.
    logprobs: None, or how many likeliest tokens to tell for each token of the text (0 to 20).
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    choice: ToolChoice = ToolChoice.AUTO
    parallel: bool = True
    response_schema: dict[str, JSON] | None = None
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


class ModelAnswer(Struct, frozen=True, kw_only=True):
    """What the model wrote: text, calls, or text and then calls. The last call may be cut off in its arguments where
    `finish` says LENGTH."""

    text: str
    calls: tuple[Call, ...] = ()
    finish: Finish
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class Chats:
    """Completions of plain models, a bounded number at once.

    Args:
        template_of: (template, special tokens) of a model, by name; called in a thread. Raises ModelUnavailable.
        max_waiting: so many wait for a place; one more is refused.
    """

    def __init__(self, engine: Engine, models: dict[str, Model], template_of: TemplateOf, *, max_waiting: int) -> None:
        self._engine, self._models, self._template_of = engine, models, template_of
        self._dialects: dict[str, Dialect] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._waiting, self._max_waiting = 0, max_waiting

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
            ModelUnavailable, NoMemory: the model cannot be loaded, or its template refuses these messages.
        """
        _check(ask)
        if ask.model not in self._models:
            raise BadRequest(f"no model {ask.model!r}; configured are {', '.join(self._models) or 'none'}")
        async with self._place():
            dialect, context = await self._dialect(ask.model), self._models[ask.model].context
            await _check_schemas(ask)
            work = _Work(ask, dialect, context, on_piece, on_call)
            answer = await self._answer(work)
            if not work.repeats:
                return answer
            # The same call again, its result before it, means that the model has nothing to add: small ones go on like
            # that for ever. Without the tools in sight they word an answer.
            return await self._answer(_Work(structs.replace(ask, choice=ToolChoice.NONE), dialect, context, on_piece))

    async def _answer(self, work: _Work) -> ModelAnswer:
        return work.answer(await self._engine.generate(work.job, on_piece=work.piece))

    def forget(self, model: str) -> None:
        """Its file is another one: the template is read anew."""
        self._dialects.pop(model, None)

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of the places, in the order of asking."""
        if self._places.locked() and self._waiting >= self._max_waiting:
            raise Busy(f"{self._waiting} completions wait already", retry_after_s=RETRY_S)
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    async def _dialect(self, model: str) -> Dialect:
        if model not in self._dialects:
            self._dialects[model] = Dialect(*await asyncio.to_thread(self._template_of, model))
        return self._dialects[model]


class _Work:
    """One generation: what the engine is given, and what becomes of what it writes."""

    def __init__(
        self,
        ask: ModelAsk,
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
        self._answered = _answered(ask) if ask.choice is ToolChoice.AUTO else ()
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
            grammar=_rules(ask, self._tools, dialect),
            logprobs=ask.logprobs,
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
        if self._held and not all(call.whole and _is_among(call, self._answered, whole=True) for call in calls):
            self._release()
        return _model_answer(done, text, calls, logprobs)

    def _calls(self) -> tuple[Call, ...]:
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
        return all(_is_among(call, self._answered, whole=False) for call in self._calls())

    def _release(self) -> None:
        self._answered = ()
        held, self._held = tuple(self._held), []
        if self._on_call:
            self._on_call(held)


def _model_answer(
    done: Completion, text: str, calls: tuple[Call, ...], logprobs: tuple[TokenLogprob, ...]
) -> ModelAnswer:
    return ModelAnswer(
        text=text,
        calls=calls,
        finish=done.finish,
        prompt_tokens=done.prompt_tokens,
        cached_tokens=done.cached_tokens,
        completion_tokens=done.completion_tokens,
        logprobs=logprobs,
    )


def _answered(ask: ModelAsk) -> tuple[ToolCall, ...]:
    """The calls whose results stand behind the last question."""
    made: list[ToolCall] = []
    for message in reversed(ask.messages):
        if message.role == "user":
            break
        made += message.tool_calls
    return tuple(made)


def _is_among(call: Call, made: tuple[ToolCall, ...], *, whole: bool) -> bool:
    """Whether it is one of those, or, where it need not be whole, may become one."""
    texts = [write_json(one.arguments) for one in made if one.name == call.name]
    return call.arguments in texts if whole else any(text.startswith(call.arguments) for text in texts)


def _check(ask: ModelAsk) -> None:
    if not ask.messages:
        raise BadRequest("messages: at least one is needed")
    if ask.messages[-1].role == "assistant":
        raise BadRequest(
            "messages: the last one must be the user's or a tool's: an answer that is begun is not continued"
        )
    if ask.choice is ToolChoice.REQUIRED and not ask.tools:
        raise BadRequest("tools: a call is required and there is no tool")
    if ask.logprobs is not None and not 0 <= ask.logprobs <= MAX_TOP:
        raise BadRequest(f"logprobs: {ask.logprobs} is outside 0 to {MAX_TOP}")
    if ask.stop and ask.tools and ask.choice is ToolChoice.AUTO and ask.response_schema is not None:
        raise BadRequest("stop: not beside both tools and a response schema: leave one of them out")


def _rules(ask: ModelAsk, tools: tuple[ToolSpec, ...], dialect: Dialect) -> str | None:
    """The grammar for what may be written; None where anything may."""
    most = grammar.MAX_CALLS if ask.parallel else 1
    if not tools:
        if ask.response_schema is not None:
            return grammar.answer(ask.response_schema)
        # Behind a result small models copy the JSON they see; what is wanted of one that cannot call is an answer.
        return grammar.words() if ask.messages[-1].role == "tool" else None
    if ask.choice is ToolChoice.REQUIRED:
        return grammar.some_calls(tools, dialect.calls, most=most)
    if ask.response_schema is not None:
        return grammar.answer_or_calls(tools, dialect.calls, ask.response_schema, most=most)
    return grammar.text_or_calls(tools, dialect.calls, most=most, stops=ask.stop)


async def _check_schemas(ask: ModelAsk) -> None:
    """Raises Inexpressible for a schema that no grammar can be made of."""
    tools = () if ask.choice is ToolChoice.NONE else ask.tools
    names: list[str | None] = [tool.name for tool in tools]
    parts = [trial.Part(tool.parameters, grammar.arguments(tool)) for tool in tools]
    if ask.response_schema is not None:
        names.append(None)
        parts.append(trial.Part(ask.response_schema, grammar.answer(ask.response_schema)))
    found = await trial.problem(parts)
    if found is None:
        return
    at, why = found
    if at is None:
        raise BadRequest(f"tools: too much for one grammar: {why}")
    raise Inexpressible(names[at], why)
