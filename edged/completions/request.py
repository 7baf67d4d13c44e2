"""A completion of a plain model: what is asked, what is answered, and what stands in the dialogue already. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from msgspec import Struct, structs

from edged.agent.dialects.chat_template import write_json
from edged.completions.calls import CallPiece, WrittenCall
from edged.completions.heads import Placed
from edged.errors import BadRequest, ModelUnavailable
from edged.types import (
    JSON,
    ChatAnswer,
    Completion,
    Finish,
    Message,
    Priority,
    Sampling,
    TokenLogprob,
    ToolCall,
    ToolSpec,
)

OnCall = Callable[[tuple[CallPiece, ...]], None]
OnThought = Callable[[str], None]

MAX_TOP = 20  # likeliest tokens beside each token, as OpenAI bounds them


class ToolChoice(StrEnum):
    """Whether the model calls: as it likes, never, always (or the one tool that `ModelAsk.tools` then holds)."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class ModelAsk(Struct, frozen=True, kw_only=True):
    """A completion of a plain model.

    parallel: several calls in one turn are wanted. single: they are not wanted. Neither: as the model is best at.
    max_tokens: None: as many as the model's context leaves.
    stop: strings that end text and are not part of it; in calls they mean nothing.
    logprobs: None, or how many likeliest tokens come with each token of the text (0 to 20).
    priority: of what edged runs itself.
    placed: how the first system message is shown where parts of it change from request to request (`heads`).
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    choice: ToolChoice = ToolChoice.AUTO
    parallel: bool = True
    single: bool = False
    response_schema: dict[str, JSON] | None = None
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    priority: Priority = Priority.INTERACTIVE
    placed: Placed | None = None


class ModelAnswer(Struct, frozen=True, kw_only=True):
    """What the model wrote: text, calls, or text and then calls. The last call may be cut off in its arguments where
    `finish` says LENGTH. variant: of the model, that wrote it; empty where it has only one. reasoning: what was thought
    before it, and is no part of it. Times of the generation, in milliseconds: for the model to be there, for the prompt
    and for the answer."""

    text: str
    calls: tuple[WrittenCall, ...] = ()
    finish: Finish
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    variant: str = ""
    reasoning: str = ""
    load_ms: float = 0.0
    prompt_ms: float = 0.0
    answer_ms: float = 0.0


def check(ask: ModelAsk) -> None:
    """BadRequest where what is asked does not go together."""
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


def offered(ask: ModelAsk) -> tuple[ToolSpec, ...]:
    """The tools that the model sees."""
    return () if ask.choice is ToolChoice.NONE else ask.tools


def must_call(ask: ModelAsk) -> bool:
    """Whether a call is required."""
    return bool(ask.tools) and ask.choice is ToolChoice.REQUIRED


def without_tools(ask: ModelAsk) -> ModelAsk:
    """The same with no tools in sight."""
    return structs.replace(ask, choice=ToolChoice.NONE)


def answered(ask: ModelAsk) -> tuple[ToolCall, ...]:
    """The calls whose results are there already, since the last question."""
    made: list[ToolCall] = []
    for message in reversed(ask.messages):
        if message.role == "user":
            break
        made += message.tool_calls
    return tuple(made)


def is_among(call: WrittenCall, made: tuple[ToolCall, ...], *, whole: bool) -> bool:
    """Whether it is one of those, or, where it need not be whole, may become one."""
    texts = [write_json(one.arguments) for one in made if one.name == call.name]
    return call.arguments in texts if whole else any(text.startswith(call.arguments) for text in texts)


def tell_calls(calls: Sequence[WrittenCall], on_call: OnCall) -> None:
    """Tell of calls that are all there."""
    for index, call in enumerate(calls):
        on_call((CallPiece(index, call.name, ""), CallPiece(index, None, call.arguments)))


def check_calls(ask: ModelAsk, calls: Sequence[WrittenCall], finish: Finish) -> None:
    """ModelUnavailable where the calls are not what was asked for: they are of tools that were offered, one at least
    where one is required, and their arguments are JSON objects. What max_tokens cut off is passed on as it is."""
    names = {tool.name for tool in offered(ask)}
    for call in calls:
        if call.name not in names:
            raise ModelUnavailable(f"model {ask.model!r} calls {call.name!r}, which is none of the tools")
    if finish is Finish.LENGTH:
        return
    if must_call(ask) and not calls:
        raise ModelUnavailable(f"model {ask.model!r} made no call, and one was required")
    for call in calls:
        if not call.whole:
            problem = f"did not end its call of {call.name!r}: the arguments are no JSON object"
            raise ModelUnavailable(f"model {ask.model!r} {problem}")


def model_answer(
    counted: Completion | ChatAnswer,
    text: str,
    calls: tuple[WrittenCall, ...],
    finish: Finish,
    logprobs: tuple[TokenLogprob, ...] = (),
    variant: str = "",
    reasoning: str = "",
) -> ModelAnswer:
    """An answer with the tokens and times of its generation."""
    if isinstance(counted, Completion):
        load_ms, prompt_ms, answer_ms = counted.load_ms, counted.prefill_ms, counted.decode_ms
    else:  # a server says when it began and when it was done
        load_ms, prompt_ms = 0.0, counted.first_token_ms
        answer_ms = counted.total_ms - counted.first_token_ms
    return ModelAnswer(
        text=text,
        calls=calls,
        finish=finish,
        prompt_tokens=counted.prompt_tokens,
        cached_tokens=counted.cached_tokens,
        completion_tokens=counted.completion_tokens,
        logprobs=logprobs,
        variant=variant,
        reasoning=reasoning.strip(),
        load_ms=load_ms,
        prompt_ms=prompt_ms,
        answer_ms=answer_ms,
    )
