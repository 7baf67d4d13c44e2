"""A completion of a plain model that a server on this board runs: handed on as the request says, and brought into the
same answer as one of ours. What its server cannot keep, a schema, is checked here."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edged.agent import answers
from edged.agent.answers import Wrong
from edged.agent.dialects.chat_template import write_json
from edged.completions import request
from edged.completions.calls import CallPiece, WrittenCall
from edged.completions.request import ModelAnswer, ModelAsk, OnCall, ToolChoice
from edged.errors import BadRequest, ModelUnavailable
from edged.interfaces import OnPiece
from edged.types import Chat, ChatAnswer, Finish, Message, RawCall
from edged.upstreams import LocalServers
from edged.wire import new_rid


async def complete(
    served: LocalServers, ask: ModelAsk, on_piece: OnPiece | None = None, on_call: OnCall | None = None
) -> ModelAnswer:
    """See Chats.complete. Text in a shape, or with log-probabilities, comes in one piece: the shape when it was
    checked. Calls come when all are there, because servers differ in how they send pieces of them.

    Raises:
        BadRequest: the server tells no log-probabilities.
        ModelAway, ModelUnavailable, ContextExceeded: as the server says; or it does not keep to what was asked.
    """
    answer = await _first(served, ask, on_piece)
    if answer is None:
        ask = msgspec.structs.replace(ask, choice=ToolChoice.NONE, tools=())
        answer = await _ask(served, ask, on_piece)
    made = _calls(ask, answer)
    if on_call:
        for index, call in enumerate(made):
            on_call((CallPiece(index, call.name, ""), CallPiece(index, None, call.arguments)))
    return ModelAnswer(
        text=answer.text,
        calls=made,
        finish=Finish.LENGTH if answer.finish == "length" else Finish.STOP,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        completion_tokens=answer.completion_tokens,
        logprobs=(answer.logprobs or ()) if ask.logprobs is not None else (),
    )


async def _first(served: LocalServers, ask: ModelAsk, on_piece: OnPiece | None) -> ChatAnswer | None:
    """The answer; None: it is to be asked for without the tools in sight. So it is where a shape is wanted and nothing
    was called, because servers force it on calls or refuse it beside tools; and where the same call comes again, its
    result before it: as a model of ours, this one has nothing to add."""
    if ask.response_schema is None or not ask.tools or ask.choice is not ToolChoice.AUTO:
        answer = await _ask(served, ask, on_piece)
    else:
        answer = await _ask(served, msgspec.structs.replace(ask, response_schema=None), None)
        if not answer.calls:
            return None
    return None if _repeats(ask, answer) else answer


async def _ask(served: LocalServers, ask: ModelAsk, on_piece: OnPiece | None) -> ChatAnswer:
    """The answer; its text is told in pieces, where it can be."""
    whole = ask.response_schema is not None or ask.logprobs is not None
    streamed = on_piece if not whole else None

    async def once(corrections: Sequence[Message]) -> ChatAnswer | Wrong:
        chat = _chat(ask, corrections)
        answer = await served.chat(ask.model, chat, (lambda text: streamed(text, ())) if streamed else None)
        problem = await _problem(ask, answer)
        return answer if problem is None else answers.corrected(answer.text, problem)

    answer = await answers.until_right(
        once, lambda problem: ModelUnavailable(f"model {ask.model!r} does not keep to the schema: {problem}")
    )
    if ask.logprobs is not None and answer.text and answer.logprobs is None:
        raise BadRequest(f"logprobs: the server that runs model {ask.model!r} tells none: leave it out")
    if whole and on_piece and answer.text:
        on_piece(answer.text, answer.logprobs or ())
    return answer


def _chat(ask: ModelAsk, corrections: Sequence[Message]) -> Chat:
    tools = () if ask.choice is ToolChoice.NONE else ask.tools
    return Chat(
        key=new_rid(),
        messages=(*ask.messages, *corrections),
        tools=tools,
        must_call=bool(tools) and ask.choice is ToolChoice.REQUIRED,
        parallel=ask.parallel if tools else None,
        response_schema=ask.response_schema if ask.choice is not ToolChoice.REQUIRED else None,
        max_tokens=ask.max_tokens,
        sampling=ask.sampling,
        stop=ask.stop,
        logprobs=ask.logprobs,
    )


async def _problem(ask: ModelAsk, answer: ChatAnswer) -> str | None:
    """What is wrong with an answer in a shape. One that max_tokens cut off is told as far as it came."""
    if answer.finish == "content_filter":
        raise ModelUnavailable(f"model {ask.model!r}: its server filtered the answer")
    if ask.response_schema is None or answer.calls or answer.finish == "length":
        return None
    return await answers.wrong_with(answer.text, ask.response_schema)


def _repeats(ask: ModelAsk, answer: ChatAnswer) -> bool:
    """Whether all it has made are calls whose results are there already."""
    if ask.choice is not ToolChoice.AUTO or not answer.calls or answer.text.strip():
        return False
    made = request.answered(ask)
    return all(request.is_among(_call(raw, whole=True), made, whole=True) for raw in answer.calls)


def _calls(ask: ModelAsk, answer: ChatAnswer) -> tuple[WrittenCall, ...]:
    """The calls: of tools that were offered, with arguments that are JSON unless max_tokens cut them off."""
    cut = answer.finish == "length"
    raw = answer.calls if ask.parallel else answer.calls[:1]
    made = tuple(_call(one, whole=not cut or i < len(raw) - 1) for i, one in enumerate(raw))
    names = {tool.name for tool in ask.tools}
    if ask.choice is ToolChoice.REQUIRED and not made:
        raise ModelUnavailable(f"model {ask.model!r} made no call, and one was required")
    for call in made:
        if call.name not in names:
            raise ModelUnavailable(f"model {ask.model!r} calls {call.name!r}, which is none of the tools")
        if not call.whole and not cut:
            raise ModelUnavailable(f"model {ask.model!r} wrote arguments of {call.name!r} that are no JSON object")
    return made


def _call(raw: RawCall, *, whole: bool) -> WrittenCall:
    """In our spaces. whole: it should be."""
    try:
        value = msgspec.json.decode(raw.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return WrittenCall(raw.name, raw.arguments, whole=False)
    if not isinstance(value, dict):
        return WrittenCall(raw.name, raw.arguments, whole=False)
    return WrittenCall(raw.name, write_json(value), whole=True)
