"""How a decision is asked for and written: by the model's own template with examples, or in the compact dialect that an
adapter has taught it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from edged.agent import times
from edged.agent.dialects import chat_template, compact
from edged.agent.dialects.chat_template import Dialect, write_json
from edged.agent.grammars import grammar, listed
from edged.agent.grammars.kept import Kept
from edged.config import Example, Tool
from edged.tools.values import sample, schema
from edged.types import Message, ToolCall, ToolSpec

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
# Calls of one decision: people ask for two things, seldom for three; more is a model that repeats itself.
MOST_CALLS = 4


class Style(Protocol):
    """One agent's way of deciding with one model.

    fixed: the messages that every prompt begins with. offered: the tools that the template is given.
    listed: names and values that a call chooses from lists, as it quotes them. names: those of tools.
    at_once: one decision is for all that a request wants; the model is asked again only after a call that failed.
    shows: the fixed part has the examples of the tools.
    """

    fixed: tuple[Message, ...]
    offered: tuple[ToolSpec, ...]
    listed: frozenset[bytes]
    names: frozenset[bytes]
    at_once: bool
    shows: bool

    def talk(self, messages: Sequence[Message]) -> list[Message]:
        """A dialogue with calls and results, as the template takes it."""
        ...

    def grammar(self, *, escalates: bool) -> str:
        """Of a decision. escalates: whether `escalate` may be chosen; the prompt is the same."""
        ...

    def parse(self, text: str) -> tuple[ToolCall, ...]:
        """The calls of a generation that followed the grammar. ValueError: it was cut off."""
        ...


class NativeStyle:
    """Implements `Style` in the format the model was made with. `reply` is offered beside the tools, so that "no tool"
    is a choice like any other: a small model that may write text or a call mostly writes the call as text."""

    def __init__(
        self,
        system: tuple[Message, ...],
        tools: Mapping[str, Tool],
        spoken: Dialect,
        taken: Mapping[str, Kept],
        *,
        escalates: bool,
    ) -> None:
        here = (*specs(tools), REPLY)
        shown = tuple(map(times.described, here))
        self.offered: tuple[ToolSpec, ...] = (*shown, ESCALATE) if escalates else shown
        self.fixed: tuple[Message, ...] = (*system, *_examples(tools, escalates=escalates))
        self.at_once, self.shows = False, True
        self.names = listed.names(self.offered)
        self.listed = self.names | listed.values(here)
        self._calls, self._here, self._taken = spoken.calls, here, taken

    def talk(self, messages: Sequence[Message]) -> list[Message]:
        """See Style."""
        return list(messages)

    def grammar(self, *, escalates: bool) -> str:
        """See Style."""
        tools = (*self._here, ESCALATE) if escalates else self._here
        return grammar.one_call(_bounded(tools, self._taken), self._calls)

    def parse(self, text: str) -> tuple[ToolCall, ...]:
        """See Style."""
        return (chat_template.parse_call(text, self._calls),)


class CompactStyle:
    """Implements `Style` in the compact dialect."""

    def __init__(self, system: str, tools: Mapping[str, Tool], taken: Mapping[str, Kept], *, escalates: bool) -> None:
        self._specs = {spec.name: spec for spec in specs(tools)}
        self._taken = taken
        self.fixed: tuple[Message, ...] = (
            Message(
                "system", compact.system(system, tuple(map(times.signed, self._specs.values())), escalates=escalates)
            ),
        )
        self.offered: tuple[ToolSpec, ...] = ()
        self.at_once, self.shows = True, False
        self.names = frozenset[bytes]()  # a name is not quoted
        self.listed = listed.values(self._specs.values())

    def talk(self, messages: Sequence[Message]) -> list[Message]:
        """See Style."""
        return compact.as_talk(messages, self._specs)

    def grammar(self, *, escalates: bool) -> str:
        """See Style."""
        taken = _bounded(tuple(self._specs.values()), self._taken)
        return compact.grammar(taken, most=MOST_CALLS, escalates=escalates)

    def parse(self, text: str) -> tuple[ToolCall, ...]:
        """See Style."""
        return compact.parse(text)


def _bounded(tools: tuple[ToolSpec, ...], taken: Mapping[str, Kept]) -> tuple[ToolSpec, ...]:
    """Tools with their parameters as grammars take them, times in all their forms."""
    return tuple(map(times.bounded, grammar.fitted(tools, taken)))


def specs(tools: Mapping[str, Tool]) -> tuple[ToolSpec, ...]:
    """Tools as a model sees them."""
    return tuple(ToolSpec(name, tool.description, schema(tool.parameters)) for name, tool in tools.items())


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
