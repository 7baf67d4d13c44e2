"""What the model is given. Two prompts an agent, each with a fixed prefix that is computed once:

* deciding: system text, tools in the model's own template, the tools' examples, then the dialogue; the model writes one
  call. `reply` is offered beside the tools, so that "no tool" is a choice like any other: a small model that may write
  text or a call mostly writes the call as text.
* answering: system text and dialogue without tools; what tools said stands beside the question as data. Small models
  that see tool syntax answer in tool syntax.

Rule for conversations that outgrow the context: the oldest turn is left out first, whole; system text, tools and the
question always stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from edged.agent.dialects import Dialects, chat_template
from edged.agent.dialects.chat_template import Dialect, write_json
from edged.agent.grammars import grammar, listed, precheck
from edged.agent.grammars.kept import Kept
from edged.config import Agent, Example, Tool
from edged.tools.values import sample, schema
from edged.types import Message, Segment, ToolCall, ToolRecord, ToolSpec

REPLY = ToolSpec(
    "reply",
    "Answer in words: greetings, explanations, stories, anything no other tool does.",
    {"type": "object", "properties": {}, "required": []},
)
# What is talk and not for a tool: a greeting, an explanation, a question of general knowledge. With the greeting alone
# the 0.5B called a tool for "Why do ...?" and "Explain ...".
REPLY_EXAMPLES = ("Hello, who are you?", "Explain how a bicycle works.", "Why do cats purr?")
ESCALATE = ToolSpec(
    "escalate",
    "Hand over to a larger model: long texts, plans, analyses, programs, anything hard.",
    {"type": "object", "properties": {}, "required": []},
)
# A text, a plan, an analysis, a calculation. With these four the 0.5B hands over 16 of 18 hard requests and decides
# 34 of the greenhouse's 37 right (`scripts/bench routing`), one or two fewer than without `escalate`.
ESCALATE_EXAMPLES = (
    "Write a detailed plan for the next three months.",
    "Write a long letter to the customers.",
    "Analyze the data and tell me what to improve.",
    "Calculate it step by step.",
)
EXAMPLE_RESULT = '{"ok": true}'  # after an example's call: shows that after a result comes `reply`, not the call again
FROM_DATA = "Answer the user from the data, in one short sentence."

STAND_IN = (Message("user", "Hello"),)  # for a question, where only what stands before it counts

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
        here = (*specs(self._tools), REPLY)
        self._specs = (*here, ESCALATE) if escalates else here
        self._deciding_fixed = (*self._system, *_examples(self._tools, escalates=escalates))
        self._deciding_prefix = spoken.render(self._deciding_fixed, self._specs, generate=False)
        self._answering_prefix = spoken.render(self._system, generate=False) if self._system else ()
        taken = taken or {}
        self.grammar = grammar.one_call(grammar.fitted(self._specs, taken), spoken.calls)
        self.grammar_here = grammar.one_call(grammar.fitted(here, taken), spoken.calls)
        self.names = listed.names(self._specs)
        self.listed = self.names | listed.values(here)
        self.after = {spec.name: spec.parameters for spec in here if spec.name in taken and taken[spec.name].after}

    def deciding(
        self, history: Sequence[Turn], asked: Turn, records: Sequence[ToolRecord], corrections: Sequence[Message] = ()
    ) -> Prompt:
        """The prompt for the next decision, after the calls that were made and those that did not count."""
        earlier = [message for turn in history for message in turn]
        made = [message for record in records for message in as_messages(record)]
        dialogue = (*self._deciding_fixed, *earlier, *asked, *made, *corrections)
        full = self.dialect.render(dialogue, self._specs, generate=True)
        return Prompt(*chat_template.split(full, self._deciding_prefix))

    def answering(self, history: Sequence[Turn], asked: Turn, records: Sequence[ToolRecord]) -> Prompt:
        """The prompt for the final answer."""
        earlier = [message for turn in history for message in turn if _is_talk(message)]
        *before, question = asked
        if records:
            question = Message("user", f"{question.content}\n\n{self._data(records)}")
        system = self._system
        if records:
            system = (Message("system", f"{system[0].content} {FROM_DATA}" if system else FROM_DATA),)
        full = self.dialect.render((*system, *earlier, *before, question), generate=True)
        return Prompt(*chat_template.split(full, self._answering_prefix))

    def fixed(self) -> tuple[tuple[Prompt, str | None], ...]:
        """The prompts whose prefixes this agent's requests share, each with the grammar it is used with; what follows
        the prefix stands for any question. For an engine to get ready."""
        deciding = ((self.deciding([], STAND_IN, []), self.grammar),) if self._tools else ()
        answering = ((self.answering([], STAND_IN, []), None),) if self._system else ()
        return (*deciding, *answering)

    def _data(self, records: Sequence[ToolRecord]) -> str:
        return "\n".join(f"Data ({self._about(r.name)} {write_json(r.arguments)}): {self._shown(r)}" for r in records)

    def _shown(self, record: ToolRecord) -> str:
        """A result as data, as the tool's kind has it. The configuration may have lost the tool since the call."""
        if not record.ok:
            return f"failed: {write_json(record.result)}"
        if (tool := self._tools.get(record.name)) is not None:
            return tool.shown(record.result, write_json)
        return "done" if record.result is None else write_json(record.result)

    def _about(self, name: str) -> str:
        """What a tool is for; its name where the configuration has lost it since the call was made."""
        return self._tools[name].description if name in self._tools else name


def specs(tools: Mapping[str, Tool]) -> tuple[ToolSpec, ...]:
    """Tools as a model sees them."""
    return tuple(ToolSpec(name, tool.description, schema(tool.parameters)) for name, tool in tools.items())


def as_messages(record: ToolRecord) -> Turn:
    """A call and its result, as a dialogue tells them."""
    return (
        Message("assistant", tool_calls=(ToolCall(record.name, record.arguments),)),
        Message("tool", write_json(record.result)),
    )


def _examples(tools: Mapping[str, Tool], *, escalates: bool) -> list[Message]:
    """The examples as finished turns, and those of `reply` and `escalate`."""
    chosen = Message("assistant", tool_calls=(ToolCall(REPLY.name, {}),))
    messages: list[Message] = []
    for name, tool in tools.items():
        for example in tool.examples or _made_up(tool):
            call = Message("assistant", tool_calls=(ToolCall(name, example.arguments),))
            messages += [Message("user", example.input), call, Message("tool", EXAMPLE_RESULT), chosen]
    for text in REPLY_EXAMPLES:
        messages += [Message("user", text), chosen]
    if escalates:
        handed = Message("assistant", tool_calls=(ToolCall(ESCALATE.name, {}),))
        for text in ESCALATE_EXAMPLES:
            messages += [Message("user", text), handed]
    return messages


def _made_up(tool: Tool) -> tuple[Example, ...]:
    """An example for a tool that has none: its description as the request, with the first values its schema allows.
    Beside the examples of `reply`, a tool without one is hardly ever chosen (14 of 37 requests right instead of 32)."""
    try:
        arguments = sample(tool.parameters)
    except (LookupError, TypeError):  # a schema whose values cannot be guessed
        return ()
    said = ", ".join(value if isinstance(value, str) else write_json(value) for value in arguments.values())
    text = tool.description.rstrip(". ")
    return (Example(input=f"{text}: {said}" if said else text, arguments=arguments),)


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
