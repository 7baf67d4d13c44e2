"""The schemas of a completion: its tools' parameters and its answer's, as grammars take them, and what is checked when
the model has written."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from edged.agent import answers
from edged.agent.answers import Unfit, Wrong
from edged.agent.grammars import precheck
from edged.agent.grammars.kept import Kept
from edged.completions import request
from edged.completions.request import ModelAnswer, ModelAsk
from edged.tools import check
from edged.types import Finish, Message, ToolCall


class Shapes(Struct, frozen=True):
    """The schemas of a request as grammars take them: its tools' parameters by name, and its answer's."""

    tools: dict[str, Kept]
    answer: Kept | None
    ask: ModelAsk

    @property
    def after(self) -> bool:
        """Whether what is written has to be checked: a grammar keeps one of the schemas in part only."""
        return any(taken.after for taken in (*self.tools.values(), *([self.answer] if self.answer else ())))

    async def wrong_with(self, answer: ModelAnswer) -> Unfit | None:
        """What a validator says of an answer; None: it is right, or max_tokens cut it off."""
        if answer.finish is Finish.LENGTH:
            return None
        sent = {tool.name: tool.parameters for tool in self.ask.tools}
        for call in answer.calls:
            if call.name in self.tools and self.tools[call.name].after:
                wrong = await check.problem(answers.closed(sent[call.name]), msgspec.json.decode(call.arguments))
                if wrong is not None:
                    why = f"the call of {call.name} was not made: {wrong}"
                    return Unfit(why, why)
        if self.answer is not None and self.answer.after and not answer.calls:
            return await answers.wrong_with(answer.text, self.ask.response_schema)
        return None


async def fitted(ask: ModelAsk) -> Shapes:
    """The request's schemas.

    Raises:
        Inexpressible: no grammar can be made of one of them.
        BadRequest: all of them together are too much for one grammar.
    """
    tools = request.offered(ask)
    closed = [answers.closed(tool.parameters) for tool in tools]
    names: list[str | None] = [tool.name for tool in tools]
    shape = [] if ask.response_schema is None else [ask.response_schema]
    taken = await precheck.fitted([*closed, *shape], [*names, None])
    by_name = {tool.name: each for tool, each in zip(tools, taken, strict=False)}
    return Shapes(by_name, taken[-1] if shape else None, ask)


def refused(answer: ModelAnswer, problem: Unfit) -> Wrong:
    """An answer that does not count, and why, as the dialogue goes on. The reason is no result of a call: the same call
    again would be as wrong as before."""
    calls = tuple(ToolCall(call.name, msgspec.json.decode(call.arguments)) for call in answer.calls)
    return Wrong((Message("assistant", answer.text, tool_calls=calls), Message("user", problem.ask)), problem.why)
