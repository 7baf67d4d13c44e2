"""How a model is spoken to: its own chat template, to the byte, and the way it writes a tool call. Pure.

The template of the model's file is rendered with Jinja, as the publisher's own software does. Contents (of users,
tools, models) go through it as private-use placeholders and come out as literal segments, so that control tokens
spelled in them stay text. A template that knows tools and writes calls as `<tool_call>` gets them its way (Hermes
format: Qwen, Hermes, SmolLM3); for all others tools are described in the system text and a call is one JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from edged.errors import ModelUnavailable
from edged.types import JSON, Message, Segment, ToolCall, ToolSpec

OPEN, CLOSE = "\ue000", "\ue001"  # private use: no template contains them, and none changes them
PLACEHOLDER = re.compile(f"{OPEN}([0-9]{{1,9}}){CLOSE}")
# Of a tool, as configurations and clients may write them. In a dialogue a client may call any other text a name.
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

CHATML = (  # for a file without a template: the format most small models were tuned on
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

GENERIC_TOOLS = (
    "You act through tools. To use one, write exactly one JSON object: "
    '{"name": <tool>, "arguments": {<its arguments>}}\nThe tools:\n'
)


WHOSE = {
    "system": "the system text",
    "user": "what the user says",
    "assistant": "what the assistant says",
    "tool": "what a tool says",
}
Hide = Callable[[str, str], str]  # a text, and what it is where it must not get lost: a placeholder


class CallFormat(Struct, frozen=True):
    """What stands before and after the JSON of a call, in the model's own text."""

    before: str = ""
    after: str = ""

    @property
    def mark(self) -> str:
        """What only a call begins with; empty where nothing tells it from other JSON."""
        return self.before.strip()


HERMES = CallFormat("<tool_call>\n", "\n</tool_call>")
GENERIC = CallFormat()


class _Verbatim(str):
    """JSON that is written already; `tojson` passes it on."""

    __slots__ = ()


class Way(Struct, frozen=True):
    """How a template takes messages.

    system, later_system: it has a place for system messages, also for those that do not begin the dialogue; else their
        text begins the next user's.
    parts: contents are lists of parts (`[{"type": "text", "text": ...}]`), and not text.
    tools: it takes tools, calls and results; else they are told as text.
    """

    system: bool = True
    later_system: bool = True
    parts: bool = False
    tools: bool = True


PLAIN_WAYS = (Way(), Way(parts=True), Way(system=False), Way(system=False, parts=True))
# What a template is tried with: each text has to come out again.
TRIED_SYSTEM, TRIED_USER, TRIED_ASSISTANT = (Message(role, "Hello.") for role in ("system", "user", "assistant"))
TRIED_TOOL = ToolSpec("tried_tool", "A tool.", {"type": "object", "properties": {}, "required": []})
TRIED_CALL = Message("assistant", tool_calls=(ToolCall(TRIED_TOOL.name, {}),))
TRIED_TALKS = ((TRIED_SYSTEM, TRIED_USER), (TRIED_SYSTEM, TRIED_USER, TRIED_ASSISTANT, TRIED_USER))
TRIED_ACT = (TRIED_SYSTEM, TRIED_USER, TRIED_CALL, Message("tool", "{}"))


class Dialect:
    """One model's way of writing dialogues. The template is tried with a dialogue of an agent when it is read: how it
    takes a system text, contents, tools and results is found out, and one that loses any of them writes no prompt.

    Args:
        template: the Jinja source in the model's file; None where it has none.
        tokens: bos_token and eos_token as text.
        taught: the dialect of calls that an adapter has taught the model; empty: it has its own only.
    """

    def __init__(self, template: str | None, tokens: dict[str, str], taught: str = "") -> None:
        self.taught = taught
        source = template or CHATML
        self._tokens = {"bos_token": "", "eos_token": "", **tokens}
        self._template = _compile(source)
        self._refusal: ModelUnavailable | None = None
        self._way = self._tried(knows_tools="tools" in source and "<tool_call>" in source)
        self.native_tools = self._way.tools
        self.calls = HERMES if self.native_tools else GENERIC

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, generate: bool
    ) -> tuple[Segment, ...]:
        """The prompt as segments. generate: end with the beginning of the assistant's message.

        Raises:
            ModelUnavailable: the template refuses these messages, or leaves out what one of them says.
        """
        if self._refusal is not None:
            raise self._refusal
        begins = not generate and bool(messages) and all(message.role != "user" for message in messages)
        if begins and not self._way.system:
            return self._before_a_question(messages, tools)
        try:
            return self._written(self._way, messages, tools, generate=generate)
        except ModelUnavailable:
            if begins:  # some refuse a dialogue without a user
                return self._before_a_question(messages, tools)
            if not any(message.role == "system" for message in messages[1:]):
                raise
            way = msgspec.structs.replace(self._way, later_system=False)
            return self._written(way, messages, tools, generate=generate)

    def _before_a_question(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[Segment, ...]:
        """What stands before the words of a question that is asked next."""
        whole = self._written(self._way, [*messages, TRIED_USER], tools, generate=False)
        return whole[: max(i for i, segment in enumerate(whole) if segment.literal)]

    def _tried(self, *, knows_tools: bool) -> Way:
        """The first way in which nothing is lost."""
        for way in PLAIN_WAYS:
            plain = msgspec.structs.replace(way, tools=False)
            try:
                for talk in TRIED_TALKS:
                    self._written(plain, talk, (), generate=True)
            except ModelUnavailable as error:
                self._refusal = self._refusal or error
                continue
            self._refusal = None
            return way if knows_tools and self._takes_tools(way) else plain
        return Way(tools=False)

    def _takes_tools(self, way: Way) -> bool:
        try:
            segments = self._written(way, TRIED_ACT, (TRIED_TOOL,), generate=True)
            self._written(way, (*TRIED_ACT, TRIED_ASSISTANT, TRIED_USER), (TRIED_TOOL,), generate=True)
        except ModelUnavailable:
            return False
        return sum(segment.text.count(TRIED_TOOL.name) for segment in segments if not segment.literal) >= 2

    def _written(
        self, way: Way, messages: Sequence[Message], tools: Sequence[ToolSpec], *, generate: bool
    ) -> tuple[Segment, ...]:
        """Raises ModelUnavailable as `render`."""
        contents: list[str] = []
        needed: dict[int, str] = {}

        def hide(text: str, whose: str) -> str:
            if whose:
                needed[len(contents)] = whose
            contents.append(text)
            return f"{OPEN}{len(contents) - 1}{CLOSE}"

        shown = messages if way.tools or not tools else _with_tools(messages, tools)
        if not way.tools:
            shown = [_without_calls(message) for message in shown]
        plain = [_plain(m, hide, before, parts=way.parts) for m, before in _placed(shown, way)]
        text = self._render(plain, tools if way.tools else (), generate)
        written = {int(match[1]) for match in PLACEHOLDER.finditer(text)}
        for index, whose in needed.items():
            if index not in written:
                raise ModelUnavailable(f"the model's chat template leaves out {whose}")
        return _segments(text, contents)

    def _render(self, messages: list[dict[str, Any]], tools: Sequence[ToolSpec], generate: bool) -> str:
        specs = [
            _unmarked(
                {
                    "type": "function",
                    "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
                }
            )
            for t in tools
        ]
        try:
            return str(
                self._template.render(
                    messages=messages, tools=specs or None, add_generation_prompt=generate, **_unmarked(self._tokens)
                )
            )
        except Exception as error:  # it is a program of the file's author, and may fail in any way
            raise ModelUnavailable(f"the model's chat template refuses this dialogue: {error}") from None


def split(full: tuple[Segment, ...], fixed: tuple[Segment, ...]) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """(prefix, turn): the part of a prompt that is the same for every request, and the rest. Where a template writes
    the beginning differently once more follows, nothing is shared."""
    if not fixed or len(full) < len(fixed) or full[: len(fixed) - 1] != fixed[:-1]:
        return (), full
    last, other = fixed[-1], full[len(fixed) - 1]
    if last.literal != other.literal or not other.text.startswith(last.text):
        return (), full
    rest = other.text[len(last.text) :]
    head = (Segment(rest, other.literal),) if rest else ()
    return fixed, (*head, *full[len(fixed) :])


def parse_call(text: str, calls: CallFormat) -> ToolCall:
    """The call in a generation that followed the grammar; ValueError where the text was cut off or is no call."""
    try:
        call = json.loads(text.removeprefix(calls.before).removesuffix(calls.after))
    except RecursionError:
        raise ValueError("its arguments are nested without end") from None
    match call:
        case {"name": str(name), "arguments": dict(arguments)}:
            return ToolCall(name, arguments)
        case _:
            raise ValueError("it is no call")


def write_json(value: JSON) -> str:
    """JSON with the spaces that models saw in training: `{"a": 1, "b": 2}`."""
    return json.dumps(value, ensure_ascii=False)


def _compile(source: str) -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # the same settings as the publishers' software, whose spaces and newlines the model was trained on
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: ""  # a date in the prefix would be another prefix every day
    try:
        return environment.from_string(source)
    except Exception as error:  # nested too deep, a number too long: whatever Jinja's parser and Python's come up with
        raise ModelUnavailable(f"the model's chat template cannot be read: {error}") from None


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return str(value) if isinstance(value, _Verbatim) else json.dumps(value, ensure_ascii=False, indent=indent)


def _placed(messages: Sequence[Message], way: Way) -> Iterator[tuple[Message, list[str]]]:
    """The messages, each with the system texts that begin it because the template has no place for them."""
    waiting: list[str] = []
    for number, message in enumerate(messages):
        if message.role == "system" and not (way.system and (way.later_system or number == 0)):
            waiting += [message.content] if message.content else []
        elif message.role == "user":
            yield message, waiting
            waiting = []
        else:
            yield message, []
    if waiting:
        yield Message("user", waiting[-1]), waiting[:-1]


def _plain(message: Message, hide: Hide, before: list[str], *, parts: bool) -> dict[str, Any]:
    """A message as templates expect it, its contents hidden. An empty content stays empty: templates test for it."""
    whose = "" if message.tool_calls else WHOSE.get(message.role, message.role)  # beside calls few write words
    said = "".join(hide(text, WHOSE["system"]) + "\n\n" for text in before)
    said += hide(message.content, whose) if message.content else ""
    plain: dict[str, Any] = {"role": message.role, "content": [{"type": "text", "text": said}] if parts else said}
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "type": "function",
                "function": {
                    "name": call.name if NAME.fullmatch(call.name) else hide(call.name, "the name of a call"),
                    "arguments": _Verbatim(hide(write_json(call.arguments), "the arguments of a call")),
                },
            }
            for call in message.tool_calls
        ]
    return plain


def _with_tools(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
    """The tools in the system text, for a template that ignores them."""
    lines = "\n".join(f"- {t.name}: {t.description} Arguments: {write_json(_shown(t.parameters))}" for t in tools)
    first = messages[0].content if messages and messages[0].role == "system" else ""
    rest = messages[1:] if messages and messages[0].role == "system" else messages
    return [Message("system", f"{first}\n\n{GENERIC_TOOLS}{lines}".strip()), *rest]


def _shown(parameters: dict[str, JSON]) -> JSON:
    """The arguments' schemas by name; the whole schema where they are not all of it (definitions, alternatives)."""
    whole = set(parameters) - {"type", "properties", "required", "additionalProperties"}
    return parameters if whole else parameters["properties"]


def _without_calls(message: Message) -> Message:
    """Calls and results as plain text, for a template that knows neither."""
    if message.tool_calls:
        calls = "\n".join(write_json({"name": c.name, "arguments": c.arguments}) for c in message.tool_calls)
        return Message("assistant", f"{message.content}\n{calls}".strip())
    if message.role == "tool":
        return Message("user", f"Result: {message.content}")
    return message


def _unmarked(value: Any) -> Any:
    """JSON that is shown as it is, without what would be taken for a placeholder in it."""
    if isinstance(value, str):
        return value.replace(OPEN, "\ufffd").replace(CLOSE, "\ufffd")
    if isinstance(value, dict):
        return {_unmarked(key): _unmarked(below) for key, below in value.items()}
    return [_unmarked(below) for below in value] if isinstance(value, list) else value


def _segments(text: str, contents: list[str]) -> tuple[Segment, ...]:
    """Template text and contents in turns; empty ones are left out."""
    segments, at = [], 0
    for match in PLACEHOLDER.finditer(text):
        if int(match[1]) >= len(contents):  # none of ours: the template wrote it itself
            continue
        segments += [Segment(text[at : match.start()]), Segment(contents[int(match[1])], literal=True)]
        at = match.end()
    segments.append(Segment(text[at:]))
    return tuple(segment for segment in segments if segment.text)
