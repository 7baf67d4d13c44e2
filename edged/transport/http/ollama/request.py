"""Requests to Ollama's API, checked. What is unknown is ignored, as Ollama does; what would change the answer and
cannot be done is refused by name. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from edged.completions.request import MAX_TOP, ModelAsk
from edged.completions.text import TextAsk
from edged.errors import BadRequest
from edged.transport.http.ollama import values
from edged.transport.http.ollama.values import Options
from edged.types import JSON, Format, Message, Request, Sampling, ToolCall, ToolSpec
from edged.wire import decode, question, thinking
from edged.wire.dialogue import BadParameter, convert
from edged.wire.tools import Function, check_count, specs
from edged.wire.values import checked

ROLES = ("system", "user", "assistant", "tool")
FUNCTION_FIELDS = ("name", "description", "parameters")
MAX_INPUTS = 2048  # texts of one request for embeddings, as on the OpenAI API
Dialogue = list[tuple[str, str]]  # roles and texts


class Asked(Struct, frozen=True, kw_only=True):
    """A request for an answer, by /api/chat or /api/generate.

    model: as the client named it. generates: it came by /api/generate. text, suffix: a bare text to go on with, or with
    a gap between the two. keep_alive, think: see `values`. logprobs: as in ModelAsk.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool
    generates: bool = False
    text: str = ""
    suffix: str = ""
    tools: tuple[ToolSpec, ...] = ()
    images: bool = False
    schema: dict[str, JSON] | None = None
    keep_alive: float | None = None
    think: bool | None = None
    options: Options = Options()
    logprobs: int | None = None

    @property
    def is_bare(self) -> bool:
        """Whether it is a text without a dialogue."""
        return bool(self.text or self.suffix)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked: the model is to be loaded, or released."""
        return not self.messages and not self.is_bare


class Embedding(Struct, frozen=True, kw_only=True):
    """A request for vectors. truncate, normalise: as in EmbedJob."""

    model: str
    texts: tuple[str, ...]
    truncate: bool = True
    normalise: bool = True
    dimensions: int | None = None
    keep_alive: float | None = None


def body(payload: bytes) -> dict[str, JSON]:
    """A request as it came. Raises BadRequest, TooLarge."""
    return checked(decode(payload, Format.JSON), "a JSON object with model")


def chat(given: dict[str, JSON]) -> Asked:
    """A request to /api/chat. Raises BadParameter, BadRequest."""
    raw = [_object(f"messages[{i}]", each) for i, each in enumerate(values.texts(given, "messages"))]
    return _asked(
        given,
        messages=messages(raw),
        tools=tools(values.texts(given, "tools")),
        images=any(each.get("images") for each in raw),
    )


def generate(given: dict[str, JSON]) -> Asked:
    """A request to /api/generate: a prompt with a system text of its own, or a bare text. Raises BadParameter,
    BadRequest."""
    if values.text(given, "template"):
        raise BadParameter("template", "is not supported: a model is asked as its own has it; see raw")
    prompt, system, suffix = (values.text(given, key) for key in ("prompt", "system", "suffix"))
    if suffix or (prompt and values.flag(given, "raw", default=False)):
        return _bare(given, prompt, suffix)
    dialogue: Dialogue = []
    if prompt:
        earlier = context_read(given.get("context"))
        said = [("system", system), *(turn for turn in earlier if turn[0] != "system")] if system else earlier
        dialogue = [*said, ("user", prompt)]
    return _asked(
        given,
        messages=tuple(Message(role, text) for role, text in dialogue),
        generates=True,
        images=bool(given.get("images")),
    )


def _bare(given: dict[str, JSON], prompt: str, suffix: str) -> Asked:
    """A text to go on with, or with a gap to fill. What belongs to a dialogue means nothing there."""
    for key in ("system", "context", "format", "images"):
        if given.get(key):
            raise BadParameter(key, f"means nothing beside {'suffix' if suffix else 'raw'}: leave it out")
    return _asked(given, messages=(), generates=True, text=prompt, suffix=suffix)


def _asked(given: dict[str, JSON], **more: Any) -> Asked:
    return Asked(
        model=values.model(given),
        stream=values.flag(given, "stream", default=True),
        schema=values.shape(given),
        keep_alive=values.keep_alive(given),
        think=values.think(given),
        options=values.options(given),
        logprobs=_logprobs(given),
        **more,
    )


def _logprobs(given: dict[str, JSON]) -> int | None:
    top = given.get("top_logprobs")
    if not values.flag(given, "logprobs", default=False):
        if top:
            raise BadParameter("top_logprobs", "needs logprobs: true")
        return None
    if top is not None and (not isinstance(top, int) or isinstance(top, bool) or not 0 <= top <= MAX_TOP):
        raise BadParameter("top_logprobs", f"is a number of 0 to {MAX_TOP}")
    return top or 0


def embed(given: dict[str, JSON]) -> Embedding:
    """A request to /api/embed. Raises BadParameter, BadRequest."""
    texts = given.get("input")
    texts = [texts] if isinstance(texts, str) and texts else texts or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadParameter("input", "is a text or a list of texts")
    if len(texts) > MAX_INPUTS:
        raise BadParameter("input", f"{len(texts)} of them; at most {MAX_INPUTS} are taken")
    dimensions = given.get("dimensions")
    if dimensions is not None and (not isinstance(dimensions, int) or isinstance(dimensions, bool) or dimensions < 0):
        raise BadParameter("dimensions", "is a number, at least 1")
    return Embedding(
        model=values.model(given),
        texts=tuple(texts),
        truncate=values.flag(given, "truncate", default=True),
        dimensions=dimensions or None,
        keep_alive=values.keep_alive(given),
    )


def embeddings(given: dict[str, JSON]) -> Embedding:
    """A request to /api/embeddings, which takes one text. Raises BadParameter, BadRequest."""
    prompt = values.text(given, "prompt")
    return Embedding(
        model=values.model(given),
        texts=(prompt,) if prompt else (),
        normalise=False,
        keep_alive=values.keep_alive(given),
    )


# -- the dialogue ------------------------------------------------------------------------------------------------------


def messages(raw: Sequence[dict[str, JSON]]) -> tuple[Message, ...]:
    """The dialogue that a list of messages is. Chat templates know no ids: results come in the order of the calls that
    they answer, as far as ids or names say which that is, else as they came."""
    made: list[Message] = []
    waiting: list[dict[str, JSON]] = []  # calls that have no result yet
    results: list[tuple[dict[str, JSON], Message]] = []
    for i, message in enumerate([*raw, {"role": "user"}]):
        if message.get("role") == "tool":
            results.append((message, _message(f"messages[{i}]", message)))
            continue
        made += _in_order(waiting, results)
        waiting, results = [], []
        if i < len(raw):
            made.append(_message(f"messages[{i}]", message))
            waiting = list(message.get("tool_calls") or ())
    return tuple(made)


def _in_order(calls: Sequence[dict[str, JSON]], results: Sequence[tuple[dict[str, JSON], Message]]) -> list[Message]:
    places: dict[int, Message] = {}
    left = list(results)

    def place(fits: Any) -> None:
        for given, message in list(left):
            at = next((i for i, call in enumerate(calls) if i not in places and fits(given, call)), None)
            if at is not None:
                places[at] = message
                left.remove((given, message))

    place(lambda given, call: given.get("tool_call_id") and given["tool_call_id"] == call.get("id"))
    place(lambda given, call: given.get("tool_name") and given["tool_name"] == call["function"].get("name"))
    place(lambda given, call: True)
    return [*(places[at] for at in sorted(places)), *(message for _, message in left)]


def _message(where: str, raw: dict[str, JSON]) -> Message:
    role = raw.get("role")
    if role not in ROLES:
        raise BadParameter(f"{where}.role", f"{role!r}; allowed are {', '.join(ROLES)}")
    content = raw.get("content")
    if content is not None and not isinstance(content, str):
        raise BadParameter(f"{where}.content", "is a text")
    calls = raw.get("tool_calls") or ()
    if calls and role != "assistant":
        raise BadParameter(f"{where}.tool_calls", "only the assistant calls tools")
    if not isinstance(calls, list | tuple):
        raise BadParameter(f"{where}.tool_calls", "is a list")
    made = tuple(_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls))
    content = content or ""
    return Message(role, thinking.without(content) if role == "assistant" else content, made)


def _call(where: str, raw: JSON) -> ToolCall:
    function = _object(f"{where}.function", _object(where, raw).get("function"))
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise BadParameter(f"{where}.function.name", "is required, a text")
    return ToolCall(name, _object(f"{where}.function.arguments", {} if arguments is None else arguments))


def tools(raw: Sequence[JSON]) -> tuple[ToolSpec, ...]:
    """The client's own tools. Raises BadParameter."""
    check_count(raw)
    functions = []
    for i, item in enumerate(raw):
        tool = _object(f"tools[{i}]", item)
        if (kind := tool.get("type") or "function") != "function":
            raise BadParameter(f"tools[{i}].type", f"{kind!r}; allowed is function")
        where = f"tools[{i}].function"
        function = _object(where, tool.get("function"))
        known = {key: function[key] for key in FUNCTION_FIELDS if function.get(key) is not None}
        functions.append((where, convert(known, Function, where)))
    return specs(functions)


def _object(where: str, value: JSON) -> dict[str, JSON]:
    if not isinstance(value, dict):
        raise BadParameter(where, "is an object")
    return value


# -- what /api/generate remembers: the client hands it back, nothing is kept here --------------------------------------


def context(messages: Sequence[Message], answer: str) -> list[int]:
    """The dialogue so far. Ollama hands out tokens here; clients hand back what they got and look at none of it."""
    said = [(message.role, message.content) for message in messages]
    return list(msgspec.json.encode([*said, ("assistant", answer)]))


def context_read(given: JSON) -> Dialogue:
    """The dialogue of a `context` that `context` made. Raises BadParameter."""
    if given is None or given == []:
        return []
    try:
        return msgspec.json.decode(bytes(given if isinstance(given, list) else ()), type=Dialogue)
    except (TypeError, ValueError):
        raise BadParameter("context", "is none that this server gave out: begin without it") from None


# -- for those who answer ----------------------------------------------------------------------------------------------


def model_ask(asked: Asked, name: str, sampling: Sampling) -> ModelAsk:
    """For a plain model. name: as it is configured."""
    return ModelAsk(
        model=name,
        messages=asked.messages,
        tools=asked.tools,
        parallel=False,  # as many as the model is best at: see ModelAsk
        response_schema=asked.schema,
        max_tokens=asked.options.max_tokens,
        sampling=sampling,
        stop=asked.options.stop,
        logprobs=asked.logprobs,
    )


def text_ask(asked: Asked, name: str, sampling: Sampling, context: int) -> TextAsk:
    """For a plain model, without a dialogue. context: tokens that there may be."""
    return TextAsk(
        model=name,
        prompt=asked.text,
        suffix=asked.suffix,
        max_tokens=asked.options.max_tokens or context,
        sampling=sampling,
        stop=asked.options.stop,
        logprobs=asked.logprobs,
    )


def agent_request(asked: Asked, name: str, id: str | None) -> Request:
    """For an agent, which has its own tools and its own way of choosing tokens. Raises BadRequest in Ollama's words for
    what it has not."""
    lacking = {
        "tools": asked.tools,
        "thinking": asked.think,
        "logprobs": asked.logprobs is not None,
        "insert": asked.suffix,
        "raw prompts": asked.is_bare,
    }
    for what, wanted in lacking.items():
        if wanted:
            raise lacks(asked.model, what)
    options = asked.options
    return Request(
        agent=name,
        messages=question(asked.messages),
        id=id,
        stream=asked.stream,
        response_schema=asked.schema,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        stop=options.stop,
    )


def lacks(model: str, what: str) -> BadRequest:
    """The error for what a model cannot do, in Ollama's words: clients look for them."""
    return BadRequest(f'"{model}" does not support {what}')
