"""An upstream's model as a mind: the same tools, the same journal. It follows no grammar of ours, so every call and
every shaped answer is checked before it counts; what is wrong goes back to it."""

from __future__ import annotations

import hashlib

import msgspec

from edged.agent.loop import Answered, Decided, Run
from edged.agent.prompt import as_messages, specs
from edged.cloud import Cloud
from edged.config import Tool
from edged.errors import ModelUnavailable, ToolFailed
from edged.tools import check
from edged.types import JSON, Chat, ChatAnswer, Message, RawCall, ToolCall, ToolRecord

MAX_CORRECTIONS = 2  # wrong answers in a row that go back; a model that does not learn from two would not from ten
MAX_CALLS = 16  # of one answer; more is a model that has lost its way


class RemoteMind:
    """Implements `loop.Mind` with one upstream."""

    patience = 2  # failed calls that go back: a larger model reads an error and does something else

    def __init__(self, cloud: Cloud, upstream: str, tools: dict[str, Tool]) -> None:
        self._cloud, self._upstream = cloud, upstream
        self._specs = {spec.name: spec for spec in specs(tools)}

    async def move(self, run: Run) -> Decided | Answered:
        """See Mind."""
        corrections: list[Message] = []
        for _ in range(MAX_CORRECTIONS + 1):
            answer = await self._ask(run, corrections)
            if answer.calls:
                calls, wrong = await self._checked(run, answer.calls)
                if not wrong:
                    return Decided(calls)
                corrections += wrong
                continue
            problem = await self._wrong_with(run, answer)
            if problem is None:
                return Answered(answer.text if run.request.response_schema is not None else answer.text.strip())
            corrections += [Message("assistant", answer.text), Message("user", problem)]
        raise ToolFailed(f"upstream {self._upstream!r}: {corrections[-1].content}")

    async def _ask(self, run: Run, corrections: list[Message]) -> ChatAnswer:
        request = run.request
        made = [message for record in run.records for message in as_messages(record)]
        told = [message for turn in run.history if not turn.private for message in turn.messages]
        if run.stream:
            run.stream.begin()
        system = (Message("system", run.agent.system),) if run.agent.system else ()
        chat = Chat(
            key="",
            messages=(*system, *told, *request.messages, *made, *corrections),
            tools=tuple(self._specs.values()),
            may_call=run.may_act,
            response_schema=request.response_schema,
            max_tokens=run.max_tokens,
            sampling=run.sampling,
            stop=request.stop,
        )
        chat = msgspec.structs.replace(chat, key=f"{run.rid}:{_digest(chat)}")
        with run.tally.upstream() as generating:
            on_text = generating.hearing(run.stream.piece) if run.stream else None
            generating.done = answer = await self._cloud.chat(self._upstream, chat, on_text)
            return answer

    async def _checked(self, run: Run, raw: tuple[RawCall, ...]) -> tuple[tuple[ToolCall, ...], list[Message]]:
        """The calls, and what to tell the model where one of them cannot be made. Then none is: it will ask again."""
        calls = [self._parsed(call) for call in raw[:MAX_CALLS]]
        left = run.agent.max_steps - len(run.records)
        problems = [await self._problem(name, arguments) for name, arguments in calls]
        if not any(problems) and len(raw) <= min(left, MAX_CALLS):
            return tuple(ToolCall(name, arguments) for name, arguments in calls if isinstance(arguments, dict)), []
        too_many = f"{len(raw)} calls at once, and {left} more may be made for this request"
        told: list[Message] = []
        for (name, arguments), problem in zip(calls, problems, strict=True):
            why = problem or (too_many if len(raw) > min(left, MAX_CALLS) else "not made: another call is wrong")
            shown = ToolRecord(name, arguments if isinstance(arguments, dict) else {}, {"error": why}, False)
            told += as_messages(shown)
        return (), told

    def _parsed(self, raw: RawCall) -> tuple[str, JSON]:
        try:
            return raw.name, msgspec.json.decode(raw.arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            return raw.name, raw.arguments

    async def _problem(self, name: str, arguments: JSON) -> str | None:
        if name not in self._specs:
            return f"there is no tool {name!r}; there are {', '.join(self._specs) or 'none'}"
        if not isinstance(arguments, dict):
            return "the arguments are not a JSON object"
        return await check.problem({**self._specs[name].parameters, "additionalProperties": False}, arguments)

    async def _wrong_with(self, run: Run, answer: ChatAnswer) -> str | None:
        """What to tell the model about an answer that is none; None where it is one."""
        schema = run.request.response_schema
        if answer.finish == "content_filter":
            raise ModelUnavailable(f"upstream {self._upstream!r} filtered its answer")
        if schema is None:
            return None if answer.text.strip() else "Your answer was empty. Answer the user."
        if answer.finish == "length":
            raise ToolFailed(f"the answer did not end within {run.max_tokens} tokens (max_tokens)")
        try:
            value = msgspec.json.decode(answer.text)
        except (msgspec.DecodeError, RecursionError):
            return "Your answer is not JSON. Answer with the JSON alone."
        wrong = await check.problem(schema, value)
        return None if wrong is None else f"Your answer does not match the schema: {wrong}. Answer with the JSON alone."


def _digest(chat: Chat) -> str:
    """The same question has the same key, also after a restart: an upstream that keeps keys answers it once."""
    return hashlib.sha256(msgspec.json.encode(chat, order="deterministic")).hexdigest()[:16]
