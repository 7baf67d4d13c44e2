"""What the model may write, as llguidance grammars. Pure text in, pure text out.

Lark with `%json`: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. Names and punctuation of a call
are fixed strings, so nearly all of it is forced; `%json` leaves the choice of the arguments only.

Its lexer does not go back: of the lexemes that fit, the longest goes on, and when it fits no more, only what it has
come to counts. So text and calls in one grammar must differ at a place where the text's lexeme ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from msgspec import structs

from edged.agent.dialects.chat_template import CallFormat
from edged.agent.grammars.kept import Kept
from edged.types import JSON, ToolSpec

# the spaces json.dumps writes, which the model saw in training; no other white space, which costs tokens for nothing
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# where a model writes calls in a way of its own, it also lays them out
ANY_SPACES = {"whitespace_flexible": True}
MAX_CALLS = 16  # in one turn, where several were asked for: some models repeat calls without end

SPACE = r"[ \t\n\r]*"
FENCE = "```"
ANYTHING = "(?s:.*)"
ARGUMENTS = rf'{SPACE},{SPACE}"arguments"{SPACE}:{SPACE}'
# How a call begins, what follows its name, and how it ends: as json.dumps writes it, and with indent=2.
LAYOUTS = (
    (r'\{"name": "', ', "arguments": ', "}"),
    (r'\{\n  "name": "', r',\n  "arguments": ', "\n}"),
)


def fitted(tools: Sequence[ToolSpec], taken: Mapping[str, Kept]) -> tuple[ToolSpec, ...]:
    """Tools with their parameters as grammars take them, by name; those that are not there stay as they are."""
    return tuple(
        structs.replace(tool, parameters=taken[tool.name].schema) if tool.name in taken else tool for tool in tools
    )


def one_call(tools: Sequence[ToolSpec], calls: CallFormat) -> str:
    """Exactly one call of one of the tools, in the model's own format."""
    return some_calls(tools, calls, most=1)


def some_calls(tools: Sequence[ToolSpec], calls: CallFormat, *, most: int) -> str:
    """One call or more, up to `most`, in the model's own format and each on lines of its own."""
    one = _sequence(_text(calls.before), "call", _text(calls.after))
    return _rules(f"start: {_repeated(one, most)}", *_strict_calls(tools))


def answer(schema: dict[str, JSON]) -> str:
    """A JSON value that matches the schema, compact."""
    return f"start: %json {json.dumps(_strict(schema))}"


def arguments(tool: ToolSpec) -> str:
    """The arguments of a tool alone, as they are in all calls of it."""
    return f"start: %json {json.dumps(_closed(tool.parameters))}"


def words() -> str:
    """An answer in words: it does not begin as JSON, code or a call does."""
    return r"start: /[^\s{\[`<](?s:.*)/"


def text_or_calls(tools: Sequence[ToolSpec], calls: CallFormat, *, most: int, stops: Sequence[str] = ()) -> str:
    """Any text up to one of the stop strings, or up to `most` calls. A call is what begins

    * with the mark of the model's own format, also after some text;
    * with the JSON of a call, bare or in a Markdown fence: so small models write it, whatever their template told them.
      (Of 20 calls that the two Qwen2.5-Coder models made unbound 18 were such, two had doubled braces, none the mark.)

    Such beginnings are not text: once there is one, what follows has to become the call.
    """
    names = "|".join(re.escape(tool.name) for tool in tools)
    talk = rf"TALK: /{ANYTHING}/ & ~/{SPACE}({FENCE}(json)?{SPACE})?{_loose_head(f'({names})')}{ANYTHING}/"
    ways = ["TEXT", *_loose_ways(most)]
    rules = [talk, *_loose_calls(tools)]
    if mark := calls.mark:
        first = _sequence("marked", _text(calls.before.removeprefix(mark)), "call", _text(calls.after))
        more = _sequence(_text("\n" + calls.before), "call", _text(calls.after))
        ways.append(f"{first} ({more}){{0,{most - 1}}}" if most > 1 else first)
        rules += [
            f"TEXT: TALK & ~/{ANYTHING}{_pattern(mark)}{ANYTHING}/",
            f"marked[lazy]: TALK {_text(mark)}",
            *_strict_calls(tools),
        ]
    else:
        rules.append("TEXT: TALK")
    if stops:
        ways.append("stopped")
        rules.append(f"stopped[lazy]: TALK ({' | '.join(_text(stop) for stop in stops)})")
    return _rules(f"start: {' | '.join(ways)}", *rules)


def answer_or_calls(tools: Sequence[ToolSpec], calls: CallFormat, schema: dict[str, JSON], *, most: int) -> str:
    """A JSON value that matches the schema, or up to `most` calls, in the model's own format or as bare JSON."""
    ways = ["answer", _repeated("bare", most)]
    if calls.before:
        ways.append(_repeated(_sequence(_text(calls.before), "call", _text(calls.after)), most))
    bare = [
        # in the lexemes that %json makes, so that the answer may begin in the same way
        f'bare_{i}: "{{" {_text(json.dumps("name"))} ": " {_text(json.dumps(tool.name))} ", " '
        f'{_text(json.dumps("arguments"))} ": " %json {json.dumps(_closed(tool.parameters))} "}}"'
        for i, tool in enumerate(tools)
    ]
    choice = f"bare: {_any_of('bare', tools)}"
    whole = f"answer: %json {json.dumps(_strict(schema))}"
    return _rules(f"start: {' | '.join(ways)}", whole, choice, *bare, *(_strict_calls(tools) if calls.before else ()))


def call_head(names: Sequence[str], *, whole: bool) -> str:
    """A regular expression of Python's: what the JSON of a call begins with, bare or in a fence.

    Args:
        whole: up to the arguments: where other JSON may begin with the name of a tool.
    """
    head = rf"{SPACE}(?:{FENCE}(?:json)?{SPACE})?{_loose_head('(?:' + '|'.join(map(re.escape, names)) + ')')}"
    return head + ARGUMENTS if whole else head


def _strict_calls(tools: Sequence[ToolSpec]) -> list[str]:
    """The rule `call`: the JSON of a call in the spaces models know."""
    heads = [
        f"call_{i}: {_text(_head(tool.name))} %json {json.dumps(_closed(tool.parameters))} {_text('}')}"
        for i, tool in enumerate(tools)
    ]
    return [f"call: {_any_of('call', tools)}", *heads]


def _loose_calls(tools: Sequence[ToolSpec]) -> list[str]:
    """The rules `bare` and `fenced` (its end is LOOSE_END): the JSON of a call in any layout.

    A call that begins as json.dumps writes it, in one line or indented by two, goes on like that: then names and
    punctuation are forced. So small models write nearly all of theirs; any other layout they choose for themselves.
    """
    known = f"({'|'.join(begin for begin, _, _ in LAYOUTS)})"
    rules = [f"bare: {_any_of('bare', tools)}", f"fenced: {_any_of('fenced', tools)}"]
    for i, tool in enumerate(tools):
        name = re.escape(tool.name)
        ways: dict[str, list[str]] = {"bare": [], "fenced": []}
        for kind, before in (("bare", SPACE), ("fenced", f"{SPACE}{FENCE}(json)?{SPACE}")):
            for n, (begin, middle, close) in enumerate(LAYOUTS):
                terminal = f"{kind.upper()}_{i}_{n}"
                ways[kind].append(f"{terminal} {'strict' if n == 0 else 'arguments'}_{i} {_text(close)}")
                rules.append(f'{terminal}: /{before}{begin}{name}"{middle}/')
            ways[kind].append(f"{kind.upper()}_{i} arguments_{i} LOOSE_CLOSE")
            head = _loose_head(name) + ARGUMENTS
            rules.append(f"{kind.upper()}_{i}: /{before}{head}/ & ~/{before}{known}{ANYTHING}/")
        rules += [
            *(f"{kind}_{i}: {' | '.join(all_ways)}" for kind, all_ways in ways.items()),
            f"strict_{i}: %json {json.dumps(_closed(tool.parameters))}",
            f"arguments_{i}: %json {json.dumps({**_closed(tool.parameters), 'x-guidance': ANY_SPACES})}",
        ]
    return [*rules, rf"LOOSE_CLOSE: /{SPACE}\}}/", f"LOOSE_END: /{SPACE}{FENCE}/"]


def _loose_ways(most: int) -> list[str]:
    """One call, or several: bare, in one fence, in a fence each."""
    if most == 1:
        return ["bare", "fenced LOOSE_END"]
    return [f"bare{{1,{most}}}", f"fenced bare{{0,{most - 1}}} LOOSE_END", f"(fenced LOOSE_END){{1,{most}}}"]


def _loose_head(name: str) -> str:
    return rf'\{{{SPACE}"name"{SPACE}:{SPACE}"{name}"'


def _any_of(rule: str, tools: Sequence[ToolSpec]) -> str:
    return " | ".join(f"{rule}_{i}" for i in range(len(tools)))


def _repeated(one: str, most: int) -> str:
    return f'{one} ("\\n" {one}){{0,{most - 1}}}' if most > 1 else one


def _sequence(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _rules(*rules: str) -> str:
    return "\n".join(rules)


def _strict(schema: dict[str, JSON]) -> dict[str, JSON]:
    return {**schema, "x-guidance": SPACES}


def _closed(parameters: dict[str, JSON]) -> dict[str, JSON]:
    """No argument beside those declared, unless the schema says so itself."""
    return _strict({"additionalProperties": False, **parameters})


def _head(name: str) -> str:
    return f'{{"name": {json.dumps(name)}, "arguments": '


def _text(text: str) -> str:
    """A Lark string, or nothing for the empty one."""
    return json.dumps(text) if text else ""


def _pattern(text: str) -> str:
    """A text as part of a Lark regular expression."""
    return re.escape(text).replace("/", r"\/")
