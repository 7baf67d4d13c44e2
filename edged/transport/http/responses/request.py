"""A request for a response as OpenAI documents it, checked: as `openai.request` does it for chat completions. Pure.

https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Struct, structs

from edged.completions.request import MAX_TOP, ModelAsk, ToolChoice
from edged.transport.http.core.headers import safe
from edged.transport.http.openai import lenient
from edged.transport.http.openai.lenient import SAMPLERS, UNLIMITED
from edged.transport.http.openai.request import Fixed, check_fixed
from edged.transport.http.openai.tools import choice, tools
from edged.transport.http.responses import items
from edged.transport.http.responses.items import Item
from edged.types import JSON, Format, Message, Privacy, Request, ToolSpec
from edged.wire import BOUNDS, check_numbers, decode, question, stops
from edged.wire.dialogue import BadParameter, convert
from edged.wire.sampling import UNSET, Samplers, read_samplers, sampling
from edged.wire.values import checked

NUMBERS = {
    **{name: BOUNDS[name] for name in ("max_tokens", "temperature", "top_p", "seed")},
    "max_output_tokens": BOUNDS["max_tokens"],
    "max_completion_tokens": BOUNDS["max_tokens"],
    "top_logprobs": (0, MAX_TOP),
}
LIMITS = ("max_output_tokens", "max_tokens", "max_completion_tokens")
FIXED: Fixed = {
    "background": ((False,), "a response is waited for, and goes on where its client goes away"),
    "conversation": ((), "name the response to go on from in previous_response_id"),
    "prompt": ((), "write it in instructions and input"),
    "moderation": ((), "nothing is moderated"),
}
# Chat completions' and other servers' parameters that would change the answer.
REFUSED = {
    **{
        name: why.replace("response_format", "text.format").replace("max_tokens", "max_output_tokens")
        for name, why in lenient.REFUSED.items()
    },
    "messages": "write them as items of input",
    "system": "write it in instructions",
    "response_format": "name the shape in text.format",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "n": "one response is made",
    "logit_bias": "biases are not available yet",
    "audio": "the models read and write text",
    "modalities": "the models read and write text",
}
HARMLESS_VALUES: dict[str, JSON] = {**lenient.HARMLESS_VALUES, "n": 1, "modalities": ["text"], "function_call": "none"}
# Not OpenAI's for this API; honoured, because the answer would be another one.
EXTRAS = ("seed", "stop", "logprobs", "max_tokens", "max_completion_tokens")
# Documented, and without effect here: the values that ask for what is done anyhow. Others are named.
WITHOUT_EFFECT: dict[str, tuple[JSON, ...]] = {
    "service_tier": ("auto", "default"),
    "truncation": ("disabled",),
    "max_tool_calls": (),
    "context_management": (),
}
LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")  # the second: thoughts are not the server's secret here
MEANS_SOMETHING = ("model", "input")  # of which an empty value is not the same as none
NO_THINKING = (None, "none", "minimal")


class Body(Struct, forbid_unknown_fields=True):
    """The whole request. Parts that are checked one by one, for errors that name them, are as they came."""

    model: str
    input: Any = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, JSON] | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, JSON] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, JSON] | None = None
    reasoning: dict[str, JSON] | None = None
    # of no effect
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, JSON] | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    truncation: str | None = None
    max_tool_calls: int | None = None
    context_management: Any = None
    # see EXTRAS
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    # see FIXED
    background: Any = None
    conversation: Any = None
    prompt: Any = None
    moderation: Any = None


class ResponseRequest(Struct, frozen=True, kw_only=True):
    """A request whose every part was checked, for an agent or a plain model.

    items: of `input`. logprobs: as in ModelAsk. ignored: names of what has no effect. reasoning: what a plain model
    thinks is to be told beside its answer.
    """

    body: Body
    items: tuple[Item, ...]
    tools: tuple[ToolSpec, ...]
    shown: tuple[ToolSpec, ...]
    choice: ToolChoice
    may_be_many: bool
    response_schema: dict[str, JSON] | None
    max_tokens: int | None
    stop: tuple[str, ...]
    logprobs: int | None
    samplers: Samplers
    ignored: tuple[str, ...]
    reasoning: bool

    @property
    def is_kept(self) -> bool:
        """Whether the response is stored; it is unless the client says no."""
        return self.body.store is not False


def parse(payload: bytes, *, strict: bool = False) -> ResponseRequest:
    """A request from its bytes.

    Args:
        strict: refuse what OpenAI does not document and what has no effect.

    Raises:
        BadParameter: with the parameter and what is allowed.
        BadRequest, TooLarge: it is no JSON object, or nested too deep.
    """
    raw = checked(decode(payload, Format.JSON), "a JSON object with model and input")
    ignored: dict[str, None] = {}
    read, samplers = ({**raw}, UNSET) if strict else _read(raw, ignored)
    body = convert(read, Body, "")
    if strict and (extra := next((name for name in EXTRAS if getattr(body, name) is not None), None)):
        raise BadParameter(extra, "is not a parameter that is known here")
    check_fixed(body, FIXED)
    check_numbers(body, NUMBERS)
    made = items.read(body.input, new_id, lambda name: ignored.setdefault(safe(name)))
    limits = [limit for name in LIMITS if (limit := getattr(body, name)) is not None]
    with _flat():
        specs = tools([_nested(tool) for tool in body.tools or ()])
        shown, called, may_be_many = choice(specs, _nested_choice(body.tool_choice))
    shape = body.text or {}
    _note_effects(body, shape, ignored)
    if strict and ignored:
        raise BadParameter(next(iter(ignored)), "is not known, or has no effect: leave it out")
    return ResponseRequest(
        body=body,
        items=made,
        tools=specs,
        shown=shown,
        choice=called,
        may_be_many=may_be_many,
        response_schema=_schema(shape.get("format")),
        max_tokens=min(limits, default=None),
        stop=stops(body.stop),
        logprobs=_logprobs(body),
        samplers=samplers,
        ignored=tuple(ignored),
        reasoning=_shows_thoughts(body.reasoning),
    )


def model_ask(asked: ResponseRequest, messages: tuple[Message, ...]) -> ModelAsk:
    """For a plain model."""
    body = asked.body
    return ModelAsk(
        model=body.model,
        messages=messages,
        tools=asked.shown,
        choice=asked.choice,
        parallel=asked.may_be_many and body.parallel_tool_calls is True,
        single=bool(asked.shown) and (not asked.may_be_many or body.parallel_tool_calls is False),
        response_schema=asked.response_schema,
        max_tokens=asked.max_tokens,
        sampling=sampling(body.temperature, body.top_p, body.seed, asked.samplers),
        stop=asked.stop,
        logprobs=asked.logprobs,
    )


def agent_request(asked: ResponseRequest, messages: tuple[Message, ...], id: str | None, *, private: bool) -> Request:
    """For an agent, which has its own tools. private: what it goes on from must not leave the board."""
    body = asked.body
    for name in ("tools", "tool_choice"):
        if getattr(body, name) not in (None, [], "auto", "none"):
            raise BadParameter(name, f"{body.model!r} is an agent and has its own tools: leave it out, or name a model")
    if asked.logprobs is not None:
        problem = f"{body.model!r} is an agent, and only models give log-probabilities: leave it out"
        raise BadParameter("top_logprobs" if body.top_logprobs is not None else "include", problem)
    return Request(
        agent=body.model,
        messages=_question(messages),
        id=id,
        stream=bool(body.stream),
        privacy=Privacy.DEVICE if private else None,
        response_schema=asked.response_schema,
        max_tokens=asked.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=asked.stop,
    )


def new_id(beginning: str) -> str:
    """An id that nobody guesses."""
    return f"{beginning}_{secrets.token_hex(16)}"


def _question(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    try:
        return question(messages)
    except BadParameter:
        raise BadParameter("input", "the last item must be a message of the user's, with text") from None


def _read(raw: dict[str, JSON], ignored: dict[str, None]) -> tuple[dict[str, JSON], Samplers]:
    """What counts of a request as it came: see `lenient.read`."""
    body: dict[str, JSON] = {}
    samplers: dict[str, JSON] = {}
    for name, value in raw.items():
        if value is None or (name not in MEANS_SOMETHING and value in ("", [], {})):
            continue
        if name in SAMPLERS:
            samplers[SAMPLERS[name]] = value
        elif name in Body.__struct_fields__:
            body[name] = value
        elif name in REFUSED and value is not False and value != HARMLESS_VALUES.get(name):
            raise BadParameter(name, f"is not supported: {REFUSED[name]}")
        elif name not in REFUSED:
            ignored[safe(name)] = None
    for name in LIMITS:
        if body.get(name) in UNLIMITED:
            del body[name]
    if body.get("seed") in lenient.RANDOM_SEEDS:
        del body["seed"]
    if not body.get("tools") and body.get("tool_choice") in ("auto", "none"):
        del body["tool_choice"]
    return body, read_samplers(samplers)


def _note_effects(body: Body, shape: dict[str, JSON], ignored: dict[str, None]) -> None:
    """Names of what is documented and has no effect here."""
    for name, values in WITHOUT_EFFECT.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            ignored[name] = None
    for tool in body.tools or ():
        for name in tool.keys() - {"type", "function", *FUNCTION_FIELDS} if isinstance(tool, dict) else ():
            ignored[f"tools.{safe(name)}"] = None
    for name in (body.reasoning or {}).keys() - {"effort", "summary", "generate_summary"}:
        ignored[safe(f"reasoning.{name}")] = None
    if (body.reasoning or {}).get("effort") not in NO_THINKING:
        ignored["reasoning.effort"] = None
    if any(value not in INCLUDED for value in body.include or ()):
        ignored["include"] = None
    for name in shape.keys() - {"format", "verbosity"}:
        ignored[safe(f"text.{name}")] = None
    if shape.get("verbosity") not in (None, "medium"):
        ignored["text.verbosity"] = None


def _shows_thoughts(reasoning: dict[str, JSON] | None) -> bool:
    """Whether what a model thinks is told: who asks it to think, or for a summary, wants to see it."""
    if not reasoning or reasoning.get("effort") == "none":
        return False
    summary = reasoning.get("summary", reasoning.get("generate_summary"))
    return summary is not None or reasoning.get("effort") not in NO_THINKING


def _logprobs(body: Body) -> int | None:
    wanted = LOGPROBS in (body.include or ()) or body.logprobs or body.top_logprobs is not None
    return (body.top_logprobs or 0) if wanted else None


def _schema(shape: JSON) -> dict[str, JSON] | None:
    """The JSON Schema of the answer."""
    if shape is None:
        return None
    if not isinstance(shape, dict) or shape.get("type") not in ("text", "json_object", "json_schema"):
        raise BadParameter("text.format", "has a type: text, json_object or json_schema")
    if shape["type"] == "text":
        return None
    schema = shape.get("schema")
    if schema is None and shape["type"] == "json_schema":
        raise BadParameter("text.format.schema", "is required with type json_schema")
    if schema is not None and not isinstance(schema, dict):
        raise BadParameter("text.format.schema", "is a JSON Schema, an object")
    return {"type": "object"} if schema is None else schema


# -- tools: here they are flat, in chat completions they are not -------------------------------------------------------

FUNCTION_FIELDS = ("name", "description", "parameters", "strict")


def _nested(tool: JSON) -> JSON:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    nested = tool.get("function")
    given = nested if isinstance(nested, dict) else tool
    return {"type": "function", "function": {name: given[name] for name in FUNCTION_FIELDS if name in given}}


def _nested_choice(given: str | dict[str, JSON] | None) -> str | dict[str, JSON] | None:
    if not isinstance(given, dict):
        return given
    if given.get("type") == "function" and "name" in given:
        return {"type": "function", "function": {"name": given["name"]}}
    if given.get("type") == "allowed_tools" and "allowed_tools" not in given:
        listed = given.get("tools")
        nested = [_nested_choice(tool) if isinstance(tool, dict) else tool for tool in listed or ()]
        return {"type": "allowed_tools", "allowed_tools": {"mode": given.get("mode", "auto"), "tools": nested}}
    return given


@contextmanager
def _flat() -> Iterator[None]:
    """Names parameters as they stand in this API."""
    try:
        yield
    except BadParameter as error:
        param = error.param.replace(".function", "").replace("tool_choice.allowed_tools", "tool_choice")
        raise BadParameter(param, error.message.removeprefix(f"{error.param}: ")) from None


def echo(asked: ResponseRequest) -> dict[str, JSON]:
    """What a response says of how it was asked for."""
    body = asked.body
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": asked.max_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": asked.is_kept,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}, **(body.text or {})},
        "tool_choice": body.tool_choice or "auto",
        "tools": [_flat_tool(tool, spec) for tool, spec in zip(body.tools or (), asked.tools, strict=True)],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _flat_tool(tool: dict[str, JSON], spec: ToolSpec) -> JSON:
    return {"type": "function", **structs.asdict(spec), "strict": tool.get("strict")}
