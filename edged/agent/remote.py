"""An upstream's model as a mind: the same tools, the same journal. It follows no grammar of ours, so every call and
every shaped answer is checked before it counts; what is wrong goes back to it."""

from __future__ import annotations

from edged.agent import answers
from edged.agent.loop import Answered, Decided, Run
from edged.agent.prompt import as_messages, specs
from edged.cloud import Cloud
from edged.config import Tool
from edged.errors import ModelUnavailable, ToolFailed
from edged.types import Chat, ChatAnswer, Message


class RemoteMind:
    """Implements `loop.Mind` with one upstream."""

    patience = 2  # failed calls that go back: a larger model reads an error and does something else

    def __init__(self, cloud: Cloud, upstream: str, tools: dict[str, Tool]) -> None:
        self._cloud, self._upstream = cloud, upstream
        self._specs = {spec.name: spec for spec in specs(tools)}

    async def move(self, run: Run) -> Decided | Answered:
        """See Mind."""
        corrections: list[Message] = []
        for _ in range(answers.MAX_CORRECTIONS + 1):
            answer = await self._ask(run, corrections)
            if answer.calls:
                calls, wrong = await answers.checked(self._specs, answer.calls, run.left)
                if not wrong:
                    return Decided(calls)
                corrections += wrong
                continue
            problem = await self._wrong_with(run, answer)
            if problem is None:
                return Answered(answer.text if run.request.response_schema is not None else answer.text.strip())
            corrections += answers.correction(answer.text, problem)
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
        with run.tally.upstream() as generating:
            on_text = generating.hearing(run.stream.piece) if run.stream else None
            generating.done = answer = await self._cloud.chat(self._upstream, answers.keyed(chat, run.rid), on_text)
            return answer

    async def _wrong_with(self, run: Run, answer: ChatAnswer) -> str | None:
        """What to tell the model about an answer that is none; None where it is one."""
        schema = run.request.response_schema
        if answer.finish == "content_filter":
            raise ModelUnavailable(f"upstream {self._upstream!r} filtered its answer")
        if schema is not None and answer.finish == "length":
            raise answers.cut_off(run.max_tokens)
        return await answers.wrong_with(answer.text, schema)
