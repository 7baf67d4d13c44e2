"""What the model is given. Two prompts an agent, each with a fixed prefix that is computed once:

* deciding: system text and tools (in the model's own template with examples, or in the compact dialect: `styles`), then
  the dialogue; the model writes calls.
* answering: system text and dialogue without tools; what tools said stands beside the question as data. Small models
  that see tool syntax answer in tool syntax.

Rule for conversations that outgrow the context: the oldest turn is left out first, whole; system text, tools and the
question always stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from edged.agent import copied, times
from edged.agent.dialects import Dialects, chat_template, compact
from edged.agent.dialects.chat_template import Dialect, write_json
from edged.agent.grammars import precheck
from edged.agent.grammars.kept import Kept
from edged.agent.styles import CompactStyle, NativeStyle, Style, specs
from edged.agent.world import beside
from edged.config import Agent, Tool
from edged.tools.values import outside, schema
from edged.types import JSON, Message, Segment, ToolCall, ToolRecord

FROM_DATA = "Answer the user from the data, in one short sentence."

STAND_IN = (Message("user", "Hello"),)  # for a question, where only what stands before it counts
STAND_IN_RESULT = ToolRecord("", {}, None, True)  # for what a tool said, likewise

Turn = tuple[Message, ...]


class Prompt(Struct, frozen=True):
    """A prompt as the engine takes it."""

    prefix: tuple[Segment, ...]
    turn: tuple[Segment, ...]


class Prompts:
    """The prompts of one agent with one model.

    grammar: of a decision; grammar_here: the same without `escalate`, for a request that stays on the board. The prompt
    is the same for both: its fixed part is computed once.
    listed: names and values that a call chooses from lists. names: those of tools.
    tells_time: questions begin with the time (`times.with_now`).
    after: schemas of the tools whose arguments a grammar keeps in part only, by name: calls are checked by them.

    Args:
        taken: the tools' parameters as grammars take them, by name.
        escalates: requests of this agent may be handed to an upstream.
    """

    def __init__(
        self,
        agent: Agent,
        tools: Mapping[str, Tool],
        spoken: Dialect,
        taken: Mapping[str, Kept] | None = None,
        *,
        escalates: bool = False,
    ) -> None:
        self.dialect = spoken
        self._system = (Message("system", agent.system),) if agent.system else ()
        self._tools = {name: tools[name] for name in agent.tools}
        self.tells_time = times.tells(agent.clock, self._tools.values())
        taken = taken or {}
        self.style: Style = (
            CompactStyle(agent.system, self._tools, taken, escalates=escalates)
            if spoken.taught == compact.NAME
            else NativeStyle(self._system, self._tools, spoken, taken, escalates=escalates)
        )
        self._deciding_prefix = spoken.render(self.style.fixed, self.style.offered, generate=False)
        self._answering_prefix = spoken.render(self._system, generate=False) if self._system else ()
        from_data = f"{agent.system} {FROM_DATA}" if agent.system else FROM_DATA
        self._from_data = (Message("system", from_data),)
        self._from_data_prefix = spoken.render(self._from_data, generate=False)
        self.grammar = self.style.grammar(escalates=escalates)
        self.grammar_here = self.style.grammar(escalates=False)
        self.names, self.listed = self.style.names, self.style.listed
        declared = {spec.name: spec.parameters for spec in specs(self._tools)}
        self.after = {name: declared[name] for name in declared if name in taken and taken[name].after}

    def deciding(
        self,
        history: Sequence[Turn],
        asked: Turn,
        records: Sequence[ToolRecord],
        corrections: Sequence[Message] = (),
        shown: Sequence[Turn] = (),
        *,
        told: str = "",
    ) -> Prompt:
        """The prompt for the next decision, after the calls that were made and those that did not count.

        Args:
            shown: examples, as turns before the conversation.
            told: what stands beside the question; see `agent/world`.
        """
        asked = beside(asked, told)
        earlier = [message for turn in (*shown, *history) for message in turn]
        made = [message for record in records for message in as_messages(record)]
        dialogue = (*self.style.fixed, *self.style.talk([*earlier, *asked, *made, *corrections]))
        full = self.dialect.render(dialogue, self.style.offered, generate=True)
        return Prompt(*chat_template.split(full, self._deciding_prefix))

    def answering(self, history: Sequence[Turn], asked: Turn, records: Sequence[ToolRecord]) -> Prompt:
        """The prompt for the final answer."""
        earlier = [message for turn in history for message in turn if _is_talk(message)]
        *before, question = asked
        system, prefix = self._system, self._answering_prefix
        if records:
            question = Message("user", f"{question.content}\n\n{self._data(records)}")
            system, prefix = self._from_data, self._from_data_prefix
        full = self.dialect.render((*system, *earlier, *before, question), generate=True)
        return Prompt(*chat_template.split(full, prefix))

    def outside(self, call: ToolCall) -> tuple[str, JSON] | None:
        """A number of a call that its parameter does not allow, with the parameter's name; None: there is none."""
        return outside(self._tools[call.name].parameters, call.arguments)

    def no_time(self, call: ToolCall) -> str | None:
        """What is wrong with a time of a call: a day that no calendar has; None: nothing."""
        tool = self._tools.get(call.name)  # None: one of the choices beside the tools
        return None if tool is None else times.problem(schema(tool.parameters), call.arguments)

    def as_written(self, call: ToolCall, texts: Sequence[str]) -> ToolCall:
        """A call whose free texts are spelled as they were said; see `agent/copied`."""
        if call.name not in self._tools:
            return call
        return ToolCall(call.name, copied.arguments(call.arguments, self._tools[call.name].parameters, texts))

    def fixed(self) -> tuple[tuple[Prompt, str | None], ...]:
        """The prompts whose prefixes this agent's requests share, each with the grammar it is used with; what follows
        the prefix stands for any question. For an engine to get ready."""
        prompts: list[tuple[Prompt, str | None]] = []
        if self._tools:
            prompts.append((self.deciding([], STAND_IN, []), self.grammar))
            prompts.append((self.answering([], STAND_IN, [STAND_IN_RESULT]), None))
        if self._system:
            prompts.append((self.answering([], STAND_IN, []), None))
        return tuple(prompts)

    def _data(self, records: Sequence[ToolRecord]) -> str:
        return "\n".join(f"Data ({self.about(r.name)} {write_json(r.arguments)}): {self._shown(r)}" for r in records)

    def _shown(self, record: ToolRecord) -> str:
        """A result as data, as the tool's kind has it. The configuration may have lost the tool since the call."""
        if not record.ok:
            return f"failed: {write_json(record.result)}"
        if (tool := self._tools.get(record.name)) is not None:
            return tool.shown(record.result, write_json)
        return "done" if record.result is None else write_json(record.result)

    def about(self, name: str) -> str:
        """What a tool is for; its name where the configuration has lost it since the call was made."""
        return self._tools[name].description if name in self._tools else name


def as_messages(record: ToolRecord) -> Turn:
    """A call and its result, as a dialogue tells them."""
    return (
        Message("assistant", tool_calls=(ToolCall(record.name, record.arguments),)),
        Message("tool", write_json(record.result)),
    )


def _is_talk(message: Message) -> bool:
    return message.role in ("user", "system") or (message.role == "assistant" and not message.tool_calls)


class PromptBook:
    """The prompts of every agent, made when they are first needed.

    Args:
        tools: all there are, a live view. `forget` when they have changed.
        escalates: whether requests of an agent may be handed to an upstream, by the agent's name.
        check: called for an agent before its prompts are given out; raises ModelUnavailable where there are none.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        tools: Mapping[str, Tool],
        dialects: Dialects,
        escalates: Callable[[str], bool] = lambda agent: False,
        *,
        check: Callable[[str], None] = lambda agent: None,
    ) -> None:
        self._check = check
        self._agents, self._tools, self._dialects, self._escalates = agents, tools, dialects, escalates
        self._made: dict[tuple[str, Dialect], Prompts] = {}

    def forget(self) -> None:
        """Make all prompts anew: what they were made of has changed."""
        self._made.clear()

    async def __call__(self, agent: str) -> Prompts:
        """The prompts of an agent. Raises as Dialects."""
        self._check(agent)
        settings = self._agents[agent]
        dialect = await self._dialects.of_model(settings.model)
        if (agent, dialect) not in self._made:
            taken = await precheck.offered_tools(specs({name: self._tools[name] for name in settings.tools}))
            escalates = self._escalates(agent)
            self._made[agent, dialect] = Prompts(settings, self._tools, dialect, taken, escalates=escalates)
        return self._made[agent, dialect]
