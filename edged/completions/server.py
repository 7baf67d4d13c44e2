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
from edged.completions.request import ModelAnswer, ModelAsk, OnCall, ToolChoice, model_answer
from edged.errors import BadRequest, ModelUnavailable
from edged.interfaces import OnPiece
from edged.types import Chat, ChatAnswer, Finish, Message, RawCall
from edged.upstreams import LocalServers
from edged.wire import new_rid


async def complete(
    served: LocalServers, ask: ModelAsk, on_piece: OnPiece | None, on_call: OnCall | None
) -> ModelAnswer | None:
    """See Completions.complete. Text in a shape, or with log-probabilities, comes in one piece: the shape when it was
    checked. Calls come when all are there, because servers differ in how they send pieces of them.

    Returns:
        None where it is to be asked for without the tools in sight: where a shape is wanted and nothing was called,
        because servers force a shape on calls or refuse it beside tools; and as Local.complete.

    Raises:
        BadRequest: the server gives no log-probabilities.
        ModelAway, ModelUnavailable, ContextExceeded: as the server says; or it does not keep to what was asked.
    """
    tools_first = ask.response_schema is not None and bool(ask.tools) and ask.choice is ToolChoice.AUTO
    if tools_first:
        answer = await _ask(served, msgspec.structs.replace(ask, response_schema=None), None)
    else:
        answer = await _ask(served, ask, on_piece)
    if (tools_first and not answer.calls) or _repeats(ask, answer):
        return None
    finish = Finish.LENGTH if answer.finish == "length" else Finish.STOP
    made = _calls(ask, answer)
    request.check_calls(ask, made, finish)
    if on_call:
        for index, call in enumerate(made):
            on_call((CallPiece(index, call.name, ""), CallPiece(index, None, call.arguments)))
    logprobs = (answer.logprobs or ()) if ask.logprobs is not None else ()
    return model_answer(answer, answer.text, made, finish, logprobs)


async def _ask(served: LocalServers, ask: ModelAsk, on_piece: OnPiece | None) -> ChatAnswer:
    """The answer; `on_piece` gets its text in pieces where that is possible."""
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
        raise BadRequest(f"logprobs: the server that runs model {ask.model!r} gives none: leave it out")
    if whole and on_piece and answer.text:
        on_piece(answer.text, answer.logprobs or ())
    return answer


def _chat(ask: ModelAsk, corrections: Sequence[Message]) -> Chat:
    tools = request.offered(ask)
    return Chat(
        key=new_rid(),
        messages=(*ask.messages, *corrections),
        tools=tools,
        must_call=request.must_call(ask),
        parallel=ask.parallel if tools else None,
        response_schema=ask.response_schema if ask.choice is not ToolChoice.REQUIRED else None,
        max_tokens=ask.max_tokens,
        sampling=ask.sampling,
        stop=ask.stop,
        logprobs=ask.logprobs,
    )


async def _problem(ask: ModelAsk, answer: ChatAnswer) -> str | None:
    """What is wrong with an answer in a shape. One that max_tokens cut off is passed on as far as it came."""
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
    cut = answer.finish == "length"
    raw = answer.calls if ask.parallel else answer.calls[:1]
    return tuple(_call(one, whole=not cut or i < len(raw) - 1) for i, one in enumerate(raw))


def _call(raw: RawCall, *, whole: bool) -> WrittenCall:
    """In our spaces. whole: it should be."""
    try:
        value = msgspec.json.decode(raw.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return WrittenCall(raw.name, raw.arguments, whole=False)
    if not isinstance(value, dict):
        return WrittenCall(raw.name, raw.arguments, whole=False)
    return WrittenCall(raw.name, write_json(value), whole=True)
