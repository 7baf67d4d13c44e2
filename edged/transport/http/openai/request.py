"""A request for a chat completion as OpenAI documents it, checked: what edged does not do is refused by name, never
ignored. What other servers' clients send beside it is read by `lenient`, unless the configuration is strict. Pure.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from edged.completions.request import MAX_TOP, ModelAsk
from edged.transport.http.openai import lenient
from edged.transport.http.openai.tools import choice, tools
from edged.types import JSON, Format, Message, Request, ToolSpec
from edged.wire import BOUNDS, check_numbers, decode, dialogue, question, stops
from edged.wire.dialogue import BadParameter, convert
from edged.wire.sampling import UNSET, Samplers, sampling
from edged.wire.values import checked

NUMBERS = {
    **{name: BOUNDS[name] for name in ("max_tokens", "temperature", "top_p", "seed")},
    "max_completion_tokens": BOUNDS["max_tokens"],
    "top_logprobs": (0, MAX_TOP),
}

# Parameters that edged knows and has one way for: the values it takes (null is one always), and what to do instead.
Fixed = Mapping[str, tuple[tuple[JSON, ...], str]]
FIXED: Fixed = {
    "n": ((1,), "one choice is made; ask again for another"),
    "frequency_penalty": ((0,), "penalties are not available yet"),
    "presence_penalty": ((0,), "penalties are not available yet"),
    "logit_bias": (({},), "biases are not available yet"),
    "modalities": ((["text"],), "the models read and write text"),
    "audio": ((), "the models read and write text"),
    "functions": ((), "use tools"),
    "function_call": (("none",), "use tool_choice"),
    "store": ((False,), "completions are not kept"),
    "service_tier": (("auto", "default"), "there is one"),
    "reasoning_effort": (("none",), "the models do not reason apart from their answer"),
    "verbosity": (("medium",), "say in the messages how long the answer is to be"),
    "prediction": ((), "predicted outputs are not available yet"),
    "web_search_options": ((), "offer a tool that searches"),
    "moderation": ((), "nothing is moderated"),
}


class StreamOptions(Struct, forbid_unknown_fields=True):
    """include_obfuscation: random characters against listeners on the line, which a client may get or not."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SchemaFormat(Struct, forbid_unknown_fields=True):
    name: str
    schema: dict[str, JSON] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    type: str
    json_schema: SchemaFormat | None = None


class Body(Struct, forbid_unknown_fields=True):
    """The whole request. Parts that are checked one by one, for errors that name them, are as they came."""

    model: str
    messages: list[Any]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, JSON] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    # of no effect: who asks, and what a cache of OpenAI's would do
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, JSON] | None = None
    prompt_cache_retention: str | None = None
    # see FIXED
    n: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None
    modalities: Any = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    store: Any = None
    service_tier: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None


class ChatRequest(Struct, frozen=True, kw_only=True):
    """A request whose every part was checked, for an agent or a plain model. ignored: names of what has no effect.
    reasoning: what a plain model thinks is to be told beside its answer; has_switch: the parameter for that came."""

    body: Body
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    response_schema: dict[str, JSON] | None
    max_tokens: int | None
    stop: tuple[str, ...]
    samplers: Samplers = UNSET
    ignored: tuple[str, ...] = ()
    reasoning: bool = False
    has_switch: bool = False

    @property
    def for_models(self) -> tuple[str, ...]:
        """Names of what has an effect on plain models only."""
        return (*self.samplers.named, *([lenient.SHOW_REASONING] if self.has_switch else []))

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return bool(self.body.stream_options and self.body.stream_options.include_usage)


def parse(payload: bytes, *, strict: bool = False) -> ChatRequest:
    """A request from its bytes.

    Args:
        strict: refuse what OpenAI does not document and what has no effect.

    Raises:
        BadParameter: with the parameter and what is allowed.
        BadRequest, TooLarge: it is no JSON object, or nested too deep.
    """
    raw = checked(decode(payload, Format.JSON), "a JSON object with model and messages")
    read = lenient.Read(raw, UNSET, ()) if strict else lenient.read(raw, Body.__struct_fields__)
    body = convert(read.body, Body, "")
    check_fixed(body, FIXED)
    check_numbers(body, NUMBERS)
    return ChatRequest(
        body=body,
        messages=dialogue.read(body.messages, strict=True),
        tools=tools(body.tools or []),
        response_schema=_response_schema(body.response_format),
        max_tokens=_max_tokens(body),
        stop=stops(body.stop),
        samplers=read.samplers,
        ignored=read.ignored,
        reasoning=read.reasoning,
        has_switch=not strict and lenient.SHOW_REASONING in raw,
    )


def model_ask(chat: ChatRequest) -> ModelAsk:
    """For a plain model."""
    body = chat.body
    shown, called, may_be_many = choice(chat.tools, body.tool_choice)
    if body.top_logprobs is not None and not body.logprobs:
        raise BadParameter("top_logprobs", "needs logprobs: true")
    return ModelAsk(
        model=body.model,
        messages=chat.messages,
        tools=shown,
        choice=called,
        # one unless several are asked for, though OpenAI does it the other way round: small models repeat calls
        parallel=may_be_many and body.parallel_tool_calls is True,
        single=bool(shown) and (not may_be_many or body.parallel_tool_calls is False),
        response_schema=chat.response_schema,
        max_tokens=chat.max_tokens,
        sampling=sampling(body.temperature, body.top_p, body.seed, chat.samplers),
        stop=chat.stop,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def check_fixed(body: Struct, fixed: Fixed) -> None:
    """Raises BadParameter for a parameter that has another value than those it may have."""
    for name, (allowed, reason) in fixed.items():
        value = getattr(body, name)
        if value is not None and value not in allowed:
            instead = f"allowed is {' or '.join(map(_written, allowed))}" if allowed else "leave it out"
            raise BadParameter(name, f"is not supported: {reason}; {instead}")


def agent_request(chat: ChatRequest, id: str | None) -> Request:
    """For an agent, which has its own tools and speaks for several generations. Raises BadParameter."""
    body = chat.body
    for name in ("tools", "tool_choice"):
        if getattr(body, name):
            raise BadParameter(name, f"{body.model!r} is an agent and has its own tools: leave it out, or name a model")
    if body.logprobs or body.top_logprobs is not None:
        name = "logprobs" if body.logprobs else "top_logprobs"
        raise BadParameter(name, f"{body.model!r} is an agent, and only models give log-probabilities: leave it out")
    return Request(
        agent=body.model,
        messages=question(chat.messages),
        id=id,
        stream=bool(body.stream),
        response_schema=chat.response_schema,
        max_tokens=chat.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=chat.stop,
    )


def _response_schema(given: ResponseFormat | None) -> dict[str, JSON] | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return {"type": "object"}
    if given.type != "json_schema":
        raise BadParameter("response_format.type", f"{given.type!r}; allowed are text, json_object, json_schema")
    if given.json_schema is None:
        raise BadParameter("response_format.json_schema", "is required with type json_schema")
    return {"type": "object"} if given.json_schema.schema is None else given.json_schema.schema


def _max_tokens(body: Body) -> int | None:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise BadParameter("max_tokens", "and max_completion_tokens mean the same: leave one out")
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _written(value: JSON) -> str:
    return msgspec.json.encode(value).decode()
