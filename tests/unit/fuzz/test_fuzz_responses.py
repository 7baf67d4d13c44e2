"""What clients say to the Responses API and to that of bare texts."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from edged.errors import CallerError
from edged.transport.http.core import headers
from edged.transport.http.openai import text
from edged.transport.http.openai.lenient import SAMPLERS
from edged.transport.http.responses import items, reply, request
from tests.support.fuzz import anything, damaged, json_values, maps, texts, written

ids = st.sampled_from(["c1", "c2", ""])
parts = st.lists(
    maps(("type", "text", "refusal", "annotations", "image_url"), {
        "type": st.sampled_from(["input_text", "output_text", "refusal", "input_image", "text"]), "text": texts,
    }), max_size=2,
)  # fmt: skip
any_item = maps(
    ("type", "id", "role", "content", "call_id", "name", "arguments", "output", "status", "x\r\ny"),
    {
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "item_reference"]),
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        "content": texts | parts,
        "call_id": ids,
        "name": st.just("f"),
        "arguments": st.sampled_from(["", "{}", '{"a": 1}', "[", "[]"]),
        "output": texts | parts,
    },
)
tools = maps(
    ("type", "name", "description", "parameters", "strict", "function"),
    {"type": st.sampled_from(["function", "web_search"]), "name": st.sampled_from(["f", "g"])},
)
choices = st.sampled_from(
    ["none", "auto", "required", {"type": "function", "name": "f"}, {"type": "allowed_tools", "tools": [{"name": "f"}]}]
)
wanted = maps(
    (*request.Body.__struct_fields__, *SAMPLERS, *request.REFUSED, "keep_alive", "x\r\ny"),
    {
        "model": st.just("small"),
        "input": texts | st.lists(any_item, max_size=4),
        "instructions": texts,
        "tools": st.lists(tools, max_size=2),
        "tool_choice": choices | json_values,
        "text": maps(("format", "verbosity"), {"format": maps(("type", "schema"), {})}),
        "include": st.lists(texts, max_size=2),
        "temperature": st.floats(0, 2),
        "stop": texts,
    },
)
RIGHT = written({"model": "small", "input": "hi"})
CALLED: Any = [
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "x"},
]


@given(wanted.map(written) | anything(RIGHT) | damaged(wanted.map(written)), st.booleans())
@example(RIGHT, True)
@example(written({"model": "m", "input": CALLED}), False)
@example(written({"model": "m", "input": "x", "tools": [None], "tool_choice": {"type": "allowed_tools"}}), False)
@example(
    written({"model": "m", "input": "x", "tool_choice": {"type": "allowed_tools", "tools": 5}, "tools": CALLED}), False
)
@example(written({"model": "m", "input": "x", "reasoning": {"effort": {}}, "text": {"format": {"type": []}}}), False)
@example(written({"model": "m", "input": "x", "service_tier": "x", "include": ["y"], "max_tokens": -1}), False)
def test_response_is_asked_for_or_wrong_by_name(payload: bytes, strict: bool) -> None:
    """For a model and for an agent, also behind what was stored. What is echoed can be stored and sent."""
    try:
        asked = request.parse(payload, strict=strict)
        told = headers.names(asked.ignored)
        assert told.isascii()
        assert told.isprintable()
        msgspec.json.encode(reply.begun("resp_x", 0.0, request.echo(asked)))
        messages = items.messages(
            asked.body.instructions, msgspec.json.decode(msgspec.json.encode(asked.items)), asked.items
        )
        msgspec.json.encode(request.model_ask(asked, messages))
        msgspec.json.encode(request.agent_request(asked, messages, "resp_x", private=True))
    except CallerError as error:
        assert error.message


bare = maps(
    (*text.Body.__struct_fields__, *SAMPLERS, "messages", "keep_alive"),
    {"model": st.just("small"), "prompt": texts | st.lists(texts, max_size=2), "stop": texts},
)


@given(bare.map(written) | anything(RIGHT) | damaged(bare.map(written)), st.booleans())
def test_bare_text_is_asked_for_or_wrong_by_name(payload: bytes, strict: bool) -> None:
    """With a prompt that is not empty."""
    try:
        asked = text.parse(payload, strict=strict)
        assert asked.ask.prompt
        msgspec.json.encode(asked.ask)
    except CallerError as error:
        assert error.message
