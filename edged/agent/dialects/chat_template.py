"""How a model is spoken to: its own chat template, to the byte, and the way it writes a tool call. Pure.

The template of the model's file is rendered with Jinja, as the publisher's own software does. Contents (of users,
tools, models) go through it as private-use placeholders and come out as literal segments, so that control tokens
spelled in them stay text. A template that knows tools and writes calls as `<tool_call>` gets them its way (Hermes
format: Qwen, Hermes, SmolLM3); for all others tools are described in the system text and a call is one JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

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


class Dialect:
    """One model's way of writing dialogues.

    Args:
        template: the Jinja source in the model's file; None where it has none.
        tokens: bos_token and eos_token as text.
    """

    def __init__(self, template: str | None, tokens: dict[str, str]) -> None:
        source = template or CHATML
        self.native_tools = "tools" in source and "<tool_call>" in source
        self.calls = HERMES if self.native_tools else GENERIC
        self._tokens = {"bos_token": "", "eos_token": "", **tokens}
        self._template = _compile(source)

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, generate: bool
    ) -> tuple[Segment, ...]:
        """The prompt as segments. generate: end with the beginning of the assistant's message.

        Raises:
            ModelUnavailable: the template refuses these messages.
        """
        contents: list[str] = []

        def hide(text: str) -> str:
            contents.append(text)
            return f"{OPEN}{len(contents) - 1}{CLOSE}"

        shown = messages if self.native_tools or not tools else _with_tools(messages, tools)
        if not self.native_tools:
            shown = [_without_calls(message) for message in shown]
        text = self._render([_plain(m, hide) for m in shown], tools if self.native_tools else (), generate)
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


def _plain(message: Message, hide: Any) -> dict[str, Any]:
    """A message as templates expect it, its contents hidden. An empty content stays empty: templates test for it."""
    plain: dict[str, Any] = {"role": message.role, "content": hide(message.content) if message.content else ""}
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "type": "function",
                "function": {
                    "name": call.name if NAME.fullmatch(call.name) else hide(call.name),
                    "arguments": _Verbatim(hide(write_json(call.arguments))),
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
