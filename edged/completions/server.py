"""A completion of a plain model that a server on this board runs: handed on as the request says, and brought into the
same answer as one of ours. What its server cannot keep, a schema, is checked here."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edged.agent import answers
from edged.agent.answers import Unfit, Wrong
from edged.agent.dialects.chat_template import write_json
from edged.completions import request, results
from edged.completions.calls import WrittenCall
from edged.completions.request import ModelAnswer, ModelAsk, OnCall, OnThought, ToolChoice, model_answer
from edged.errors import BadRequest, EdgedError, ModelUnavailable, ToolFailed
from edged.interfaces import OnPiece
from edged.types import Chat, ChatAnswer, Finish, Message, RawCall
from edged.upstreams import LocalServers
from edged.wire import new_rid


async def complete(
    served: LocalServers,
    ask: ModelAsk,
    on_piece: OnPiece | None,
    on_call: OnCall | None,
    on_thought: OnThought | None = None,
) -> ModelAnswer | None:
    """See Completions.complete. Text in a shape, or with log-probabilities, comes in one piece: the shape when it was
    checked. Calls come when all are there and checked, because servers differ in how they send pieces of them.

    Returns:
        None where it is to be asked for without the tools in sight: where a shape is wanted and nothing was called,
        because servers force a shape on calls or refuse it beside tools; and as Local.complete.

    Raises:
        BadRequest: the server gives no log-probabilities.
        ModelAway, ModelUnavailable, ContextExceeded: as the server says; or it does not keep to what was asked.
        ToolFailed: the arguments of its calls do not fit their schema, also when it was asked again.
    """
    tools_first = ask.response_schema is not None and bool(ask.tools) and ask.choice is ToolChoice.AUTO
    if tools_first:
        answer = await _ask(served, msgspec.structs.replace(ask, response_schema=None), None, None)
    else:
        answer = await _ask(served, ask, on_piece, on_thought)
    if (tools_first and not answer.calls) or _repeats(ask, answer):
        return None
    finish = Finish.LENGTH if answer.finish == "length" else Finish.STOP
    made = _calls(ask, answer)
    request.check_calls(ask, made, finish)
    if on_call:
        request.tell_calls(made, on_call)
    logprobs = (answer.logprobs or ()) if ask.logprobs is not None else ()
    return model_answer(answer, answer.text, made, finish, logprobs, reasoning=answer.reasoning)


async def _ask(
    served: LocalServers, ask: ModelAsk, on_piece: OnPiece | None, on_thought: OnThought | None
) -> ChatAnswer:
    """The answer; `on_piece` gets its text in pieces where that is possible."""
    whole = ask.response_schema is not None or ask.logprobs is not None
    told: list[str] = []  # of the text; none of it is taken back
    thoughts: list[str] = []  # told, too
    asked_again = about_calls = False

    def tell(text: str) -> None:
        told.append(text)
        if on_piece:
            on_piece(text, ())

    def think(text: str) -> None:
        thoughts.append(text)
        if on_thought:
            on_thought(text)

    async def once(corrections: Sequence[Message]) -> ChatAnswer | Wrong:
        nonlocal asked_again, about_calls
        asked_again = bool(corrections)
        streamed = tell if on_piece and not whole and not corrections else None
        answer = await served.chat(ask.model, _chat(ask, corrections), streamed, think if streamed else None)
        if answer.finish == "content_filter":
            raise ModelUnavailable(f"model {ask.model!r}: its server filtered the answer")
        checked = await _checked_calls(ask, answer)
        about_calls = isinstance(checked, Wrong)
        if isinstance(checked, Wrong):
            return checked
        problem = await _problem(ask, checked)
        return checked if problem is None else answers.corrected(answer.text, problem)

    def failure(problem: str) -> EdgedError:
        if about_calls:
            return ToolFailed(f"model {ask.model!r}: {problem}")
        return ModelUnavailable(f"model {ask.model!r} does not keep to the schema: {problem}")

    most = answers.OWN_CORRECTIONS if ask.response_schema is None else answers.MAX_CORRECTIONS
    answer = await answers.until_right(once, failure, most=most)
    if ask.logprobs is not None and answer.text and answer.logprobs is None:
        raise BadRequest(f"logprobs: the server that runs model {ask.model!r} gives none: leave it out")
    if told and not asked_again:
        return answer
    if not told and not thoughts and on_piece and answer.reasoning:
        think(answer.reasoning)
    before = "".join(told)
    text = _joined(before, answer) if before else answer.text
    if on_piece and text[len(before) :]:
        on_piece(text[len(before) :], answer.logprobs or ())
    return msgspec.structs.replace(answer, text=text)


def _joined(told: str, answer: ChatAnswer) -> str:
    """Words that were told before a call that did not count stay: before another call they are enough, else other words
    follow them."""
    return told if answer.calls or not answer.text else f"{told}\n\n{answer.text}"


async def _checked_calls(ask: ModelAsk, answer: ChatAnswer) -> ChatAnswer | Wrong:
    """The answer, each of its calls checked by its tool's parameters. Calls of tools that were not offered, or whose
    arguments are no JSON object, are `request.check_calls`'s; what max_tokens cut off is passed on as it is."""
    specs = {tool.name: tool for tool in request.offered(ask)}
    raw = answer.calls if ask.parallel else answer.calls[:1]
    sound = all(call.name in specs and _call(call, whole=True).whole for call in raw)
    if not raw or answer.finish == "length" or not sound:
        return answer
    calls = await answers.checked(specs, raw, len(raw))
    if isinstance(calls, Wrong):
        return calls
    fit = tuple(RawCall(call.name, write_json(call.arguments)) for call in calls)
    return msgspec.structs.replace(answer, calls=fit)


def _chat(ask: ModelAsk, corrections: Sequence[Message]) -> Chat:
    tools = request.offered(ask)
    return Chat(
        key=new_rid(),
        messages=(*results.marked(ask.messages), *corrections),
        tools=tools,
        must_call=request.must_call(ask),
        parallel=ask.parallel if tools else None,
        response_schema=ask.response_schema if ask.choice is not ToolChoice.REQUIRED else None,
        max_tokens=ask.max_tokens,
        sampling=ask.sampling,
        stop=ask.stop,
        logprobs=ask.logprobs,
    )


async def _problem(ask: ModelAsk, answer: ChatAnswer) -> Unfit | None:
    """What is wrong with an answer in a shape. One that max_tokens cut off is passed on as far as it came."""
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
