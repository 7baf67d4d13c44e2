"""A `Chat` as the body of POST /chat/completions. Pure.

Servers that call themselves compatible differ in how they want some things spelled. What one refuses is spelled another
way (`respelled`), and the way it takes is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import IntEnum

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from edged.errors import ModelUnavailable
from edged.types import JSON, Chat, Message, Sampling, ToolSpec

CHARS_PER_TOKEN = 4  # of English text; an estimate, used for reservations and where a server does not count
FOLLOW_SCHEMA = "Answer with JSON that follows this JSON Schema, and nothing else: "


class SchemaAs(IntEnum):
    """How the shape of the answer is asked for, the most binding way first."""

    STRICT = 0  #: json_schema, strict: what does not fit cannot be written
    LOOSE = 1  #: json_schema, not strict: OpenAI's strict mode refuses schemas with optional properties
    OBJECT = 2  #: json_object with the schema beside it and in the system text (llama-cpp-python, DeepSeek)


class Spelling(Struct, frozen=True):
    """How one server wants it.

    limit: the name of the bound of the answer (OpenAI's newer models have their own).
    samplers: whether it takes ways of choosing tokens that OpenAI does not document; without them the answer is another
        draw of the same model.
    streams_calls: what may become a call is streamed too (llama-cpp-python then sends an empty stream).
    requires: whether it takes tool_choice "required"; without it the answer is checked all the same.
    """

    schema_as: SchemaAs = SchemaAs.STRICT
    limit: str = "max_tokens"
    samplers: bool = True
    streams_calls: bool = True
    requires: bool = True


def is_streamed(chat: Chat, spelling: Spelling) -> bool:
    """Whether the answer is asked for in pieces, where anyone wants them."""
    return spelling.streams_calls or not (chat.tools and chat.may_call)


def body(chat: Chat, model: str, spelling: Spelling, *, stream: bool) -> bytes:
    """The body, as JSON.

    Raises:
        ModelUnavailable: no server could take it.
    """
    messages = _messages(chat.messages)
    fields: dict[str, JSON] = {
        "model": model,
        "messages": messages,
        "temperature": chat.sampling.temperature,
        "top_p": chat.sampling.top_p,
    }
    fields |= _samplers(chat.sampling) if spelling.samplers else {}
    if chat.max_tokens is not None:
        fields[spelling.limit] = chat.max_tokens
    if chat.sampling.seed is not None:
        fields["seed"] = chat.sampling.seed
    if chat.stop:
        fields["stop"] = list(chat.stop)
    if chat.tools:
        fields["tools"] = [_tool(spec) for spec in chat.tools]
        # "auto" is OpenAI's default, and not everybody's: llama-cpp-python ignores tools without it.
        fields["tool_choice"] = (
            "required" if chat.must_call and spelling.requires else "auto" if chat.may_call else "none"
        )
        if chat.parallel is not None:
            fields["parallel_tool_calls"] = chat.parallel
    if chat.logprobs is not None:
        fields["logprobs"], fields["top_logprobs"] = True, chat.logprobs
    if chat.response_schema is not None:
        fields["response_format"] = _format(chat.response_schema, spelling.schema_as)
        if spelling.schema_as is SchemaAs.OBJECT:
            fields["messages"] = _with_instruction(messages, FOLLOW_SCHEMA + _json(chat.response_schema))
    if stream:
        fields["stream"] = True
        fields["stream_options"] = {"include_usage": True}
    try:
        return msgspec.json.encode(fields)
    except (TypeError, ValueError, RecursionError) as error:  # half a surrogate pair, for one
        raise ModelUnavailable(f"the request cannot be written as JSON: {error}") from None


def idempotency_key(chat: Chat, spelling: Spelling) -> str:
    """Another spelling is another request: under the same key a server may repeat its refusal."""
    parts = [chat.key]
    if chat.response_schema is not None and spelling.schema_as is not SchemaAs.STRICT:
        parts.append(spelling.schema_as.name.lower())
    if spelling.limit != Spelling().limit:
        parts.append(spelling.limit)
    if not spelling.samplers:
        parts.append("samplers")
    if chat.must_call and not spelling.requires:
        parts.append("auto")
    if not is_streamed(chat, spelling):
        parts.append("whole")
    return ":".join(parts)


def respelled(spelling: Spelling, chat: Chat, words: str) -> Spelling | None:
    """Another spelling to try after a server's complaint; None where spelling is not what it complains of."""
    if spelling.limit == "max_tokens" and "max_completion_tokens" in words:
        return replace(spelling, limit="max_completion_tokens")
    if spelling.samplers and any(name in words for name in _samplers(chat.sampling)):
        return replace(spelling, samplers=False)
    if spelling.requires and chat.must_call and "tool_choice" in words:
        return replace(spelling, requires=False)
    about_schema = chat.response_schema is not None and ("response_format" in words or "json_schema" in words)
    if about_schema and spelling.schema_as is not SchemaAs.OBJECT:
        return replace(spelling, schema_as=SchemaAs(spelling.schema_as + 1))
    return None


def estimated_tokens(characters: int) -> int:
    """Estimated tokens of that many characters."""
    return -(-characters // CHARS_PER_TOKEN)


def prompt_characters(chat: Chat) -> int:
    """Characters of everything the model has to read."""
    texts = [message.content for message in chat.messages]
    texts += [call.name + _json(call.arguments) for message in chat.messages for call in message.tool_calls]
    texts += [spec.name + spec.description + _json(spec.parameters) for spec in chat.tools]
    return sum(map(len, texts)) + (len(_json(chat.response_schema)) if chat.response_schema is not None else 0)


def _messages(messages: Iterable[Message]) -> list[dict[str, JSON]]:
    """With ids: calls are numbered, a result answers the oldest call that has none yet."""
    written: list[dict[str, JSON]] = []
    open_calls: deque[str] = deque()
    number = 0
    for message in messages:
        # The content is there even where it is empty: llama-cpp-python takes neither null nor its absence.
        one: dict[str, JSON] = {"role": message.role, "content": message.content}
        if message.role == "tool":
            if not open_calls:
                raise ModelUnavailable("the dialogue has a tool's result without a call before it")
            one["tool_call_id"] = open_calls.popleft()
        elif message.tool_calls:
            one["tool_calls"] = []
            for call in message.tool_calls:
                id = f"call_{number}"
                number += 1
                open_calls.append(id)
                function = {"name": call.name, "arguments": _json(call.arguments)}
                one["tool_calls"].append({"id": id, "type": "function", "function": function})
        written.append(one)
    return written


def _samplers(sampling: Sampling) -> dict[str, JSON]:
    """Those that are set. The penalty of repetitions has two names: llama.cpp's, and vLLM's and MLX's. Each server
    leaves the other one alone."""
    neutral = Sampling()
    names = {
        "top_k": "top_k",
        "min_p": "min_p",
        "repeat_penalty": "repeat_penalty",
        "repetition_penalty": "repeat_penalty",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
    }
    return {
        name: getattr(sampling, field)
        for name, field in names.items()
        if getattr(sampling, field) != getattr(neutral, field)
    }


def _tool(spec: ToolSpec) -> dict[str, JSON]:
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return {"type": "function", "function": function}


def _format(schema: dict[str, JSON], schema_as: SchemaAs) -> dict[str, JSON]:
    if schema_as is SchemaAs.OBJECT:
        return {"type": "json_object", "schema": schema}
    named = {"name": "answer", "schema": schema, "strict": schema_as is SchemaAs.STRICT}
    return {"type": "json_schema", "json_schema": named}


def _with_instruction(messages: list[dict[str, JSON]], sentence: str) -> list[dict[str, JSON]]:
    """With a sentence more in the system text; many templates allow only one, at the beginning."""
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{sentence}".lstrip()}
        return [first, *messages[1:]]
    return [{"role": "system", "content": sentence}, *messages]


def _json(value: JSON) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelUnavailable(f"the request cannot be written as JSON: {error}") from None
