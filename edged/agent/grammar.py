"""What the model may write, as llguidance grammars. Pure text in, pure text out.

Lark with `%json`: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. Names and punctuation of a call
are fixed strings, so nearly all of it is forced; `%json` leaves the choice of the arguments only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from edged.agent.dialect import CallFormat
from edged.types import JSON, ToolSpec

# the spaces json.dumps writes, which the model saw in training; no other white space, which costs tokens nobody reads
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def one_call(tools: Sequence[ToolSpec], calls: CallFormat) -> str:
    """Exactly one call of one of the tools, in the model's own format."""
    rules = [
        f"call_{i}: {_text(_head(tool.name))} %json {json.dumps(_closed(tool.parameters))} {_text('}')}"
        for i, tool in enumerate(tools)
    ]
    choice = " | ".join(f"call_{i}" for i in range(len(tools)))
    parts = [_text(calls.before), f"({choice})", _text(calls.after)]
    return "\n".join([f"start: {' '.join(part for part in parts if part)}", *rules])


def answer(schema: dict[str, JSON]) -> str:
    """A JSON value that matches the schema, compact."""
    return f"start: %json {json.dumps(_strict(schema))}"


def _strict(schema: dict[str, JSON]) -> dict[str, JSON]:
    return {**schema, "x-guidance": SPACES}


def _closed(parameters: dict[str, JSON]) -> dict[str, JSON]:
    """No argument beside those declared."""
    return _strict({**parameters, "additionalProperties": False})


def _head(name: str) -> str:
    return f'{{"name": {json.dumps(name)}, "arguments": '


def _text(text: str) -> str:
    """A Lark string, or nothing for the empty one."""
    return json.dumps(text) if text else ""
