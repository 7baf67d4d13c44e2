"""Completions of models that were taught the compact dialect, as agents decide and answer: whether a client's tools are
called is one greedy generation under a grammar, and words are another, which sees no tools. So a temperature counts for
words alone, and what a tool's schema says holds for every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from edged.agent import answers, language, own_words
from edged.agent.answers import Wrong
from edged.agent.dialects import chat_template, compact
from edged.agent.dialects.chat_template import Dialect, write_json
from edged.agent.grammars import grammar
from edged.agent.grammars.kept import RANGE
from edged.agent.prompts import FROM_DATA
from edged.agent.styles import MOST_CALLS
from edged.completions import heads, request, results, shapes
from edged.completions.calls import WrittenCall
from edged.completions.lines import LineReader
from edged.completions.request import ModelAnswer, ModelAsk, OnCall, ToolChoice, model_answer
from edged.completions.shapes import Shapes
from edged.errors import ToolFailed
from edged.interfaces import Engine, OnPiece
from edged.tools.values import outside
from edged.types import JSON, Completion, Finish, Job, Message, ToolCall, ToolRecord, ToolSpec
from edged.wire import new_rid

PSEUDO = (compact.REPLY, compact.UNABLE)  # nothing is handed over: the client asked this very model


def speaks(dialect: Dialect, ask: ModelAsk) -> bool:
    """Whether a request is answered as this module says. A client's tool that is called as a pseudo-call is could not
    be told from it: such a request is answered in the model's own template."""
    return dialect.taught == compact.NAME and not any(tool.name in PSEUDO for tool in request.offered(ask))


async def decided(
    engine: Engine,
    ask: ModelAsk,
    fitted: Shapes,
    dialect: Dialect,
    context: int,
    on_piece: OnPiece | None,
    on_call: OnCall | None,
) -> ModelAnswer | None:
    """The calls that the request wants, or edged's own sentence that nothing can be done. None: it wants words.

    Raises:
        ToolFailed: arguments do not fit the part of their schema that no grammar keeps, also when asked again.
        Else as Completions.complete.
    """
    last: list[Wrong] = []

    async def once(corrections: Sequence[Message]) -> ModelAnswer | Wrong | None:
        decision = _Decision(ask, fitted, dialect, context, corrections, on_call)
        answer = decision.answer(await engine.generate(decision.job, on_piece=decision.piece))
        problem = None if answer is None else await fitted.wrong_with(answer)
        if answer is not None and problem is not None:
            last.append(shapes.refused(answer, problem))
        elif not last or (answer is not None and answer.calls):
            return answer
        return last[-1]  # nothing was done, and an answer would sound as if it were

    def failure(problem: str) -> ToolFailed:
        return ToolFailed(f"model {ask.model!r}: {problem}")

    answer = await answers.until_right(once, failure, most=answers.OWN_CORRECTIONS)
    if answer is not None and answer.text and on_piece:
        on_piece(answer.text, ())
    if answer is not None and on_call and not _streams(ask, fitted):
        request.tell_calls(answer.calls, on_call)
    return answer


def failures(ask: ModelAsk) -> str:
    """What an answer in words begins with: edged's own sentence for each call since the question that failed. A model
    tells such acts as done, whatever stands beside the result."""
    return own_words.failed(since_question(ask), _language(ask)) if _speaks_itself(ask) else ""


def has_more(ask: ModelAsk) -> bool:
    """Whether there is something to word beside `failures`."""
    ended = any(stop in failures(ask) for stop in ask.stop)
    return not ended and any(record.ok for record in since_question(ask))


def in_words(ask: ModelAsk) -> ModelAsk:
    """The same without tools, as models were taught to answer: what tools have said since the question stands beside it
    as data, and earlier calls are left out. What `failures` says is not said to the model."""
    systems, talk = _apart(ask.messages)
    told = [record for record in since_question(ask) if record.ok or not _speaks_itself(ask)]
    if not told:
        return request.without_tools(structs.replace(ask, messages=(*systems, *_spoken(talk))))
    at = max((i for i, message in enumerate(talk) if message.role == "user"), default=-1)
    asked = talk[at].content if at >= 0 else ""
    tools = {tool.name: tool for tool in ask.tools}
    data = "\n".join(_data(record, tools.get(record.name)) for record in told)
    later = [message for message in talk[at + 1 :] if message.role == "system"]
    question = Message("user", f"{asked}\n\n{data}".lstrip())
    system = Message("system", f"{_text(systems)} {FROM_DATA}".lstrip())
    return request.without_tools(
        structs.replace(ask, messages=(system, *_spoken(talk[: max(at, 0)]), *later, question))
    )


def since_question(ask: ModelAsk) -> list[ToolRecord]:
    """The calls since the question that have a result: its text, or why the call failed."""
    calls: list[ToolCall] = []
    told: list[ToolRecord] = []
    for message in ask.messages:
        if message.role == "user":
            calls, told = [], []
        elif message.role == "tool" and calls:
            call, text, failed = calls.pop(0), message.content, results.says_failed(message.content)
            result = {"error": results.reason(text), "text": text} if failed else {"text": text}
            told.append(ToolRecord(call.name, call.arguments, result, not failed))
        elif message.tool_calls:
            calls = [*message.tool_calls]
    return told


class _Decision:
    """One generation: what the engine is given, and what becomes of what it writes."""

    def __init__(
        self,
        ask: ModelAsk,
        fitted: Shapes,
        dialect: Dialect,
        context: int,
        corrections: Sequence[Message],
        on_call: OnCall | None,
    ) -> None:
        self._ask = ask
        self._on_call = on_call if _streams(ask, fitted) else None
        self._reader = LineReader(PSEUDO)
        self._told = since_question(ask)
        tools = tuple(_described(tool) for tool in request.offered(ask))
        by_name = {tool.name: tool for tool in tools}
        systems, talk = _apart(heads.shown(ask.messages, ask.placed))
        fixed = (Message("system", compact.system(_text(systems), tools, escalates=False)),)
        dialogue = compact.as_talk([*results.marked(talk), *corrections], by_name)
        full = dialect.render((*fixed, *dialogue), generate=True)
        prefix, turn = chat_template.split(full, dialect.render(fixed, generate=False))
        self.job = Job(
            rid=new_rid(),
            model=ask.model,
            prefix=prefix,
            turn=turn,
            max_tokens=ask.max_tokens or context,  # the engine bounds it by what the prompt leaves
            grammar=compact.grammar(
                grammar.fitted(tools, fitted.tools),
                most=_most(ask),
                escalates=False,
                must_call=request.must_call(ask),
                in_range=not _speaks_itself(ask),
            ),
            priority=ask.priority,
        )

    def piece(self, text: str, _: object = ()) -> None:
        """More of what the model writes."""
        pieces = self._reader.feed(text)
        if pieces and self._on_call:
            self._on_call(pieces)

    def answer(self, done: Completion) -> ModelAnswer | None:
        """What it comes to; None: words."""
        calls = self._reader.calls()
        request.check_calls(self._ask, calls, done.finish)  # a scripted model follows no grammar
        if self._ask.choice is ToolChoice.AUTO:
            if (problem := self._problem(calls)) is not None:
                return self._said(done, problem)
            made = [(record.name, record.arguments) for record in self._told]
            calls = tuple(call for call in calls if not (call.whole and (call.name, call.value()) in made))
            if not calls:
                said = "" if has_more(self._ask) else failures(self._ask).strip()
                return self._said(done, said) if said else None
        return model_answer(done, "", calls, done.finish, (), done.variant)

    def _said(self, done: Completion, text: str) -> ModelAnswer:
        return model_answer(done, until_stop(text, self._ask.stop), (), Finish.STOP, (), done.variant)

    def _problem(self, calls: Sequence[WrittenCall]) -> str | None:
        """What edged says instead of calls: that no tool can do what was asked, or that a number is not allowed. After
        a result there is something to word instead."""
        if not _speaks_itself(self._ask):
            return None
        spoken = _language(self._ask)
        if self._reader.chosen == compact.UNABLE and not self._told:
            return own_words.unable(_question(self._ask), spoken)
        bounds = {tool.name: _bounds(tool) for tool in self._ask.tools}
        for call in calls:
            wrong = outside(bounds[call.name], call.value()) if call.whole else None
            if wrong is not None:
                return language.OUTSIDE[spoken].format(name=wrong[0], value=write_json(wrong[1]))
        return None


def _most(ask: ModelAsk) -> int:
    """How many calls one turn may have: as many as an agent's decision, where the client says nothing of it."""
    if ask.single:
        return 1
    return grammar.MAX_CALLS if ask.parallel else MOST_CALLS


def _speaks_itself(ask: ModelAsk) -> bool:
    """Whether edged may answer itself: not where a call is required, and a shape holds no sentences of edged's."""
    return not request.must_call(ask) and ask.response_schema is None


def _language(ask: ModelAsk) -> str:
    """Of what edged says itself."""
    return language.chosen("auto", None, [_question(ask), _text(_apart(ask.messages)[0])])


def _question(ask: ModelAsk) -> str:
    return next((message.content for message in reversed(ask.messages) if message.role == "user"), "")


def _streams(ask: ModelAsk, fitted: Shapes) -> bool:
    """Whether calls can be told while they are written: nothing may come of them that takes one back."""
    if any(fitted.tools[tool.name].after for tool in request.offered(ask)):
        return False
    if ask.choice is ToolChoice.REQUIRED:
        return True
    bounded = _speaks_itself(ask) and any(_bounds(tool) for tool in request.offered(ask))
    return not bounded and not since_question(ask)


def _bounds(tool: ToolSpec) -> dict[str, dict[str, Any]]:
    """Of its numbers: the grammar of a decision leaves them open (see `compact`)."""
    found = {}
    for name, parameter in tool.parameters.get("properties", {}).items():
        if isinstance(parameter, dict) and "enum" not in parameter and "const" not in parameter:
            words = {word: parameter[word] for word in RANGE if _is_number(parameter.get(word))}
            if words and parameter.get("type") in ("integer", "number"):
                found[name] = words
    return found


def _is_number(value: JSON) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _described(tool: ToolSpec) -> ToolSpec:
    """A tool with a description: its name's words where the client gave none."""
    if tool.description.strip():
        return tool
    return structs.replace(tool, description=tool.name.replace("_", " ").replace("-", " ").replace(".", " "))


def _apart(messages: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(the system's messages before the dialogue, the dialogue)."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return tuple(messages[:first]), tuple(messages[first:])


def _text(systems: Sequence[Message]) -> str:
    return "\n\n".join(message.content for message in systems if message.content)


def _spoken(talk: Sequence[Message]) -> list[Message]:
    """What was said, without calls and results."""
    said = [structs.replace(message, tool_calls=()) for message in talk if message.role != "tool"]
    return [message for message in said if message.role != "assistant" or message.content]


def _data(record: ToolRecord, tool: ToolSpec | None) -> str:
    about = _described(tool).description if tool else record.name
    shown = record.result["text"] or "done"
    return f"Data ({about} {write_json(record.arguments)}): {'' if record.ok else 'failed: '}{shown}"


def until_stop(text: str, stops: Sequence[str]) -> str:
    """Stop strings end every text."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text
